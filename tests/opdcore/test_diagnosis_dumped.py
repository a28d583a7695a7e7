"""Rollouts that other trainers dumped."""

import json

import pytest

from opdcore.contract.errors import BadInput
from opdcore.contract.prompt import Prompt
from opdcore.contract.rendering import Rendering
from opdcore.diagnosis import dumped
from opdcore.lab.record import read_prompts
from opdcore.rendering import Renderer
from tests.opdcore.diagnoses import SUMS
from tests.opdcore.model_folders import make_folder

PROMPTS = read_prompts(SUMS / "train.jsonl")[:4]
RENDERER = Renderer.from_folder(SUMS / "student", Rendering())
ASKED = PROMPTS[1].prompt


def rows_of(path, *lines, prompts=PROMPTS, renderer=RENDERER):
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return dumped.match(dumped.read(path), prompts, renderer, path=path)


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": ASKED, "completion": " So", "step": 3, "reward": 0.0},
        {"input": ASKED + "\n", "output": " So", "gts": "0", "score": 0.0, "step": 1},
        {"prompt": ASKED, "response": " So"},
        {
            "prompt": [{"role": "user", "content": ASKED}],
            "completion": [{"role": "assistant", "content": " So"}],
        },
    ],
    ids=["trl", "verl", "own", "trl_chat"],
)
def test_the_fields_of_other_trainers_are_read(tmp_path, line):
    found = rows_of(tmp_path / "dump.jsonl", line)
    assert [(row, [one.response for one in some]) for row, some in found.items()] == [(1, [" So"])]


def test_prompts_as_a_chat_template_wrote_them_are_recognised(tmp_path):
    renderer = Renderer.from_folder(make_folder(tmp_path / "model", "qwen2"), Rendering())
    prompt = Prompt(prompt="Why is the sky blue?")
    rendered = renderer.render(prompt)
    # TRL keeps the template's special tokens, verl leaves them out.
    without = renderer.decode(rendered.ids, keep_special=False)
    lines = [{"prompt": rendered.text, "completion": "a"}, {"input": without, "output": "b"}]
    found = rows_of(tmp_path / "dump.jsonl", *lines, prompts=[prompt], renderer=renderer)
    assert [one.response for one in found[0]] == ["a", "b"]


def test_a_short_response_ended_by_itself_and_a_long_one_was_cut(tmp_path):
    text = " So a: 4 plus 3 is 2, 0 plus 2 is 2."
    found = rows_of(tmp_path / "dump.jsonl", {"prompt": ASKED, "completion": text})
    ((whole, stopped),) = dumped.encode(found, RENDERER, longest=96)[1]
    assert stopped
    assert RENDERER.decode(whole[:-1]) == text
    assert whole[-1] in RENDERER.stop_ids
    ((cut, stopped),) = dumped.encode(found, RENDERER, longest=5)[1]
    assert (cut, stopped) == (whole[:5], False)


def test_an_end_token_that_was_dumped_is_not_written_twice(tmp_path):
    end = RENDERER.token_text(RENDERER.stop_ids[0])
    found = rows_of(tmp_path / "dump.jsonl", {"prompt": ASKED, "completion": " So" + end})
    ((ids, stopped),) = dumped.encode(found, RENDERER, longest=96)[1]
    assert stopped
    assert sum(one in RENDERER.stop_ids for one in ids) == 1


@pytest.mark.parametrize(
    ("line", "field", "said"),
    [
        ("{broken", "line 2", "no JSON"),
        ("[1, 2]", "line 2", "no object"),
        ('{"completion": "a"}', "line 2", "no prompt or input"),
        ('{"prompt": "a", "text": "b"}', "line 2", "no response or completion or output"),
        ('{"prompt": "a", "completion": 3}', "line 2, completion", "'3', no text"),
        ('{"prompt": " ", "completion": "a"}', "line 2, prompt", "no text"),
        ('{"prompt": [{"role": "user"}], "completion": "a"}', "line 2, prompt", "no text"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_field_and_remedy(tmp_path, line, field, said):
    path = tmp_path / "dump.jsonl"
    path.write_text(json.dumps({"prompt": ASKED, "completion": "a"}) + "\n" + line + "\n")
    with pytest.raises(BadInput) as caught:
        dumped.read(path)
    assert caught.value.info.code == "rollouts.line"
    assert caught.value.info.field == f"{path}, {field}"
    assert said in caught.value.info.message
    assert caught.value.info.remedy


def test_a_prompt_that_is_not_in_the_set_is_refused_by_its_line(tmp_path):
    with pytest.raises(BadInput, match="none of the 4 prompts") as caught:
        rows_of(tmp_path / "dump.jsonl", {"prompt": "Who?", "completion": "I."})
    assert caught.value.info.field.endswith("line 1, prompt")


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_dump_without_rollouts_is_refused(tmp_path, content):
    path = tmp_path / "dump.jsonl"
    path.write_text(content)
    with pytest.raises(BadInput, match="no rollout"):
        dumped.read(path)


def test_a_dump_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        dumped.read(tmp_path / "none.jsonl")
