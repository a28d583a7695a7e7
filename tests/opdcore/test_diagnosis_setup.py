"""The static tier: what folders and prompts say before anything is sampled."""

import subprocess
import sys

from opdcore.contract.prompt import Message, Prompt
from opdcore.contract.rendering import Rendering
from opdcore.diagnosis import setup
from opdcore.diagnosis.setup import Side
from opdcore.lab.record import read_prompts, shipped
from opdcore.rendering import Renderer
from tests.opdcore.diagnoses import SUMS
from tests.opdcore.model_folders import edit_json, make_folder, make_pair

PROMPTS = read_prompts(SUMS / "train.jsonl")[:8]


def side(folder, **rendering) -> Side:
    return Side(folder, Renderer.from_folder(folder, Rendering(**rendering)))


def found(student, teacher, prompts=PROMPTS):
    return {one.code: one for one in setup.findings(student, teacher, prompts)}


def test_the_laboratory_s_pair_has_nothing_to_tell():
    assert found(side(SUMS / "student"), side(SUMS / "teacher")) == {}


def test_ids_that_mean_other_tokens_are_refused():
    told = setup.findings(side(SUMS / "student"), side(shipped("cups") / "teacher"), PROMPTS)
    assert told[0].code == "pair.token_maps_differ"
    assert setup.refuses(told)


def test_end_tokens_that_differ_are_named(tmp_path):
    student = make_folder(tmp_path / "student", "qwen3")
    teacher = make_folder(tmp_path / "teacher", "qwen3", eos="<|endoftext|>",
                          config_eos="<|endoftext|>", generation_eos=("<|endoftext|>",))  # fmt: skip
    told = found(side(student), side(teacher))["setup.stop_ids_differ"]
    assert "<|im_end|>" in told.message
    assert "<|endoftext|>" in told.message
    assert told.severity == "warning"


def test_extra_stop_ids_settle_end_tokens_that_differ(tmp_path):
    student = make_folder(tmp_path / "student", "qwen3")
    teacher = make_folder(tmp_path / "teacher", "qwen2")
    ours, theirs = side(student), side(teacher)
    assert "setup.stop_ids_differ" in found(ours, theirs)
    alike = side(student, extra_stop_ids=theirs.renderer.stop_ids)
    assert "setup.stop_ids_differ" not in found(alike, theirs)


def test_thinking_modes_that_differ_are_told(tmp_path):
    folder = make_folder(tmp_path / "model", "qwen3")
    told = found(side(folder, thinking=True), side(folder, thinking=False))
    assert "on for the student and off for the teacher" in told["setup.thinking_differs"].message
    assert told["setup.prompts_render_differently"].message.startswith("8 of 8")


def test_templates_that_differ_are_told(tmp_path):
    student, teacher = make_pair(tmp_path)
    assert found(side(student), side(teacher))["pair.templates_differ"].severity == "warning"


def test_tokens_special_on_one_side_are_told(tmp_path):
    student, teacher = make_pair(tmp_path, "qwen2", "qwen2")
    content = (teacher / "tokenizer.json").read_text(encoding="utf-8")
    import json

    added = json.loads(content)["added_tokens"]
    thought = next(one for one in added if one["content"] == "<think>")
    edit_json(
        teacher / "tokenizer.json",
        added_tokens=[one | {"special": False} if one is thought else one for one in added],
    )
    config = json.loads((teacher / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "added_tokens_decoder" not in config
    told = found(side(student), side(teacher))["setup.special_tokens_differ"]
    assert "<think>" in told.message


def test_the_same_weights_are_recognised_in_two_folders(tmp_path):
    student, teacher = (make_folder(tmp_path / name, "qwen3") for name in ("a", "b"))
    told = setup.findings(side(student), side(teacher), PROMPTS)
    assert [one.code for one in told] == ["setup.same_weights"]
    assert setup.provenance("unknown", told).relation == "identical"
    assert setup.provenance("descendant", told).stated


def test_a_prompt_that_a_template_refuses_is_refused_by_its_number(tmp_path):
    folder = make_folder(tmp_path / "model", "gemma")
    system = Prompt(
        messages=(Message(role="system", content="a"), Message(role="user", content="b"))
    )
    told = setup.findings(side(folder), side(folder), [PROMPTS[0], system])
    assert told[0].severity == "refusal"
    assert told[0].message.startswith("Prompt 2:")


def test_privileged_text_that_no_stage_uses_is_told():
    prompt = PROMPTS[0].model_copy(update={"privileged": "It is 3."})
    told = found(side(SUMS / "student"), side(SUMS / "teacher"), [prompt, PROMPTS[1]])
    assert told["setup.privileged_unused"].message.startswith("1 prompts")


def test_refusals_stand_first():
    told = setup.findings(side(SUMS / "student"), side(shipped("cups") / "teacher"), PROMPTS)
    severities = [one.severity for one in told]
    assert severities == sorted(severities, key=("refusal", "warning", "note").index)


def test_the_static_tier_and_the_command_load_no_torch():
    program = (
        "import sys, opdcore.__main__, opdcore.diagnosis.command; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
