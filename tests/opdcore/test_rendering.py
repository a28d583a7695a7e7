"""Rendering equals transformers' own, token by token, for every kind of template."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from opdcore.contract.errors import BadInput
from opdcore.contract.prompt import Message, Prompt
from opdcore.contract.rendering import Rendering
from opdcore.rendering import Renderer
from tests.opdcore.model_folders import SHAPES, SPECIAL_TOKENS, edit_json, make_folder

CHATS = "qwen2", "qwen3", "llama", "gemma"

RAW_TEXTS = (
    "Natalia sold 48 clips in April. How many in all?",
    "  leading, trailing  \n\n",
    "Größe 你好 👩🏽\u200d🔬 e\u0301 \x00 \u2028",
    "a literal <|im_end|> and <think> in the text",
)

TALK = (
    Message(role="user", content="What is 2 + 2?"),
    Message(role="assistant", content="<think>easy</think>\n\n4"),
    Message(role="user", content="  And <b>'3 + 3'</b>?  "),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: make_folder(root / kind, kind) for kind in SHAPES}


def make_renderer(folder: Path, **rendering: object) -> Renderer:
    return Renderer.from_folder(folder, Rendering.model_validate(rendering))


def assert_same_as_transformers(folder: Path, prompt: Prompt, **rendering: object) -> None:
    rendered = make_renderer(folder, **rendering).render(prompt)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    turns = prompt.messages or (Message(role="user", content=prompt.prompt or ""),)
    messages = [turn.model_dump() for turn in turns]
    if rendering.get("system_prompt"):
        messages.insert(0, {"role": "system", "content": rendering["system_prompt"]})
    thinking = rendering.get("thinking")
    options = {} if thinking is None else {"enable_thinking": thinking}
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **options
    )
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    assert rendered.text == text
    assert list(rendered.ids) == ids["input_ids"]


@pytest.mark.parametrize("kind", CHATS)
def test_chat_renders_as_transformers_does(folders: dict[str, Path], kind: str) -> None:
    assert_same_as_transformers(folders[kind], Prompt(messages=TALK))


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("text", RAW_TEXTS)
def test_raw_prompt_is_wrapped_as_one_user_message(
    folders: dict[str, Path], kind: str, text: str
) -> None:
    assert_same_as_transformers(folders[kind], Prompt(prompt=text))


def test_thinking_reaches_the_template(folders: dict[str, Path]) -> None:
    prompt = Prompt(messages=TALK)
    for thinking in (None, True, False):
        assert_same_as_transformers(folders["qwen3"], prompt, thinking=thinking)
        text = make_renderer(folders["qwen3"], thinking=thinking).render(prompt).text
        assert text.endswith("<think>\n\n</think>\n\n") == (thinking is False)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_system_prompt_comes_first(folders: dict[str, Path], kind: str) -> None:
    assert_same_as_transformers(folders[kind], Prompt(messages=TALK), system_prompt="Be brief.")


def test_system_prompt_replaces_the_prompts_own(folders: dict[str, Path]) -> None:
    own = Prompt(messages=(Message(role="system", content="Be long."), TALK[0]))
    text = make_renderer(folders["qwen2"], system_prompt="Be brief.").render(own).text
    assert "Be brief." in text
    assert "Be long." not in text


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("text", RAW_TEXTS)
def test_raw_text_is_encoded_as_transformers_does(
    folders: dict[str, Path], kind: str, text: str
) -> None:
    rendered = make_renderer(folders[kind], chat_template="none").render(Prompt(prompt=text))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders[kind])
    assert rendered.text == text
    assert list(rendered.ids) == tokenizer.encode(text)


def test_bos_is_written_once_by_template_or_tokenizer(folders: dict[str, Path]) -> None:
    bos = 588 + SPECIAL_TOKENS.index("<|begin_of_text|>")
    for mode in ("auto", "none"):
        ids = make_renderer(folders["llama"], chat_template=mode).render(Prompt(prompt="hi")).ids
        assert ids[0] == bos
        assert ids.count(bos) == 1


def test_a_prompt_to_continue_does_not_end_in_eos(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["gpt_neox"], tmp_path / "model"))
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 588)]
    )
    backend.save(str(folder / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast.from_pretrained(folder).encode("hi there")
    assert theirs[-1] == 588
    assert list(make_renderer(folder).render(Prompt(prompt="hi there")).ids) == theirs[:-1]


def test_tokens_that_only_the_tokenizer_config_declares_are_known(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["qwen2"], tmp_path / "model"))
    edit_json(folder / "tokenizer_config.json", pad_token="<|own_pad|>")
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    renderer = make_renderer(folder, chat_template="none")
    ids = renderer.render(Prompt(prompt="a<|own_pad|>b")).ids
    assert list(ids) == theirs.encode("a<|own_pad|>b")
    assert theirs.pad_token_id in ids


def test_model_without_template_reads_raw_prompts(folders: dict[str, Path]) -> None:
    assert make_renderer(folders["gpt_neox"]).render(Prompt(prompt="2 + 2 =")).text == "2 + 2 ="


def test_messages_without_template_are_refused_unless_joining_is_asked(
    folders: dict[str, Path],
) -> None:
    with pytest.raises(BadInput) as caught:
        make_renderer(folders["gpt_neox"]).render(Prompt(messages=TALK))
    assert caught.value.info.code == "rendering.no_template"
    joined = make_renderer(folders["gpt_neox"], chat_template="none").render(Prompt(messages=TALK))
    assert joined.text.startswith("What is 2 + 2?\n\n<think>")


def test_system_prompt_without_template_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(BadInput) as caught:
        make_renderer(folders["gpt_neox"], system_prompt="Be brief.").render(Prompt(prompt="hi"))
    assert caught.value.info.field == "rendering.system_prompt"


def test_what_the_template_raises_is_the_users_to_mend(folders: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match="System role not supported") as caught:
        make_renderer(folders["gemma"], system_prompt="Be brief.").render(Prompt(prompt="hi"))
    assert caught.value.info.code == "rendering.template_refused"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "x < y"),
        ("{{ {'b': messages[0].content, 'a': 'é'} | tojson(sort_keys=True) }}", None),
        ("{{ messages | tojson(indent=2) }}", None),
        ("{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% set ns = namespace(a=1) %}{% set ns.a = dict(b=2).b %}{{ ns.a }}", "2"),
        ("{% if tools %}tools{% else %}none{% endif %}\n  {% if true %}\nx{% endif %}", "nonex"),
        ("{{ strftime_now('%Y') is string }}{{ eos_token }}{{ bos_token }}", None),
    ],
)
def test_template_helpers_equal_those_of_transformers(
    folders: dict[str, Path], tmp_path: Path, template: str, expected: str | None
) -> None:
    folder = Path(shutil.copytree(folders["qwen2"], tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    prompt = Prompt(prompt="x < y")
    assert_same_as_transformers(folder, prompt)
    if expected is not None:
        assert make_renderer(folder).render(prompt).text == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace(__class__=1) %}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ none.x.y }}",
    ],
)
def test_template_cannot_leave_its_sandbox(
    folders: dict[str, Path], tmp_path: Path, template: str
) -> None:
    folder = Path(shutil.copytree(folders["qwen2"], tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        make_renderer(folder).render(Prompt(prompt="hi"))
    assert caught.value.info.code == "rendering.template_refused"


def test_template_that_does_not_compile_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["qwen2"], tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("{% for %}", encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        make_renderer(folder)
    assert caught.value.info.code == "rendering.broken_template"


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("text", RAW_TEXTS)
def test_decode_inverts_encoding(folders: dict[str, Path], kind: str, text: str) -> None:
    renderer = make_renderer(folders[kind], chat_template="none")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders[kind])
    ids = renderer.render(Prompt(prompt=text)).ids
    assert renderer.decode(ids) == tokenizer.decode(list(ids))
    assert renderer.decode(ids).endswith(text)
    bare = renderer.decode(ids, keep_special=False)
    assert bare == tokenizer.decode(list(ids), skip_special_tokens=True)


def test_token_texts_join_to_the_text(folders: dict[str, Path]) -> None:
    renderer = make_renderer(folders["gpt_neox"])
    text = "Half as many:\tfunction café — fine\n<|im_end|>"
    ids = renderer.render(Prompt(prompt=text)).ids
    pieces = [renderer.token_text(one) for one in ids]
    assert pieces[-1] == "<|im_end|>"
    whole = [piece for piece in pieces if "�" not in piece]
    assert all(piece in text for piece in whole)
    assert len(whole) > 10


def test_part_of_a_character_is_shown_as_the_replacement_character(
    folders: dict[str, Path],
) -> None:
    renderer = make_renderer(folders["gpt_neox"])
    ids = renderer.render(Prompt(prompt="你")).ids
    assert len(ids) > 1
    assert renderer.token_text(ids[0]) == "�"
    assert renderer.decode(ids) == "你"


def test_padding_row_has_a_name(folders: dict[str, Path]) -> None:
    assert make_renderer(folders["qwen2"]).token_text(639) == "[unused 639]"


def test_every_declared_eos_and_the_extra_ids_stop(folders: dict[str, Path]) -> None:
    assert make_renderer(folders["qwen2"]).stop_ids == (588, 590)
    assert make_renderer(folders["qwen2"], extra_stop_ids=[599]).stop_ids == (588, 590, 599)


def test_stop_id_without_a_token_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(BadInput) as caught:
        make_renderer(folders["qwen2"], extra_stop_ids=[639])
    assert caught.value.info.field == "rendering.extra_stop_ids"


def test_many_prompts_render_in_order_as_single_ones_do(folders: dict[str, Path]) -> None:
    renderer = make_renderer(folders["gpt_neox"])
    prompts = [Prompt(prompt=f"{i} + {i} =") for i in range(10_002)]
    many = renderer.render_many(prompts)
    assert len(many) == 10_002
    for place in (0, 9_999, 10_000, 10_001):
        assert many[place] == renderer.render(prompts[place])
