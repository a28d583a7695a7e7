"""Factories of small, real Hugging Face model folders: five architectures, one shared tokenizer.

Each factory writes what `save_pretrained` writes (safetensors, config, generation config, fast
tokenizer, chat template), so a test meets the files that a user brings. The byte-level BPE
tokenizer is trained on CPython's own documentation. The weights are random and teach nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|pad|>",
    "<think>",
    "</think>",
)

# Like Qwen 2's: a default system message, then one block for each message.
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Like Qwen 3's: earlier reasoning is cut from the history, `enable_thinking=False` writes an empty
# thought, tools are listed as JSON.
CHATML_THINKING = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and loop.index0 < ns.last and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

# Like Llama 3's: the template writes BOS itself.
LLAMA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# Like Gemma's: no system role, roles must alternate, the assistant is called model.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@dataclass(frozen=True)
class FolderShape:
    """What one folder is made of; a token is named by its text, a width in rows."""

    model_type: str
    template: str | None
    eos: str
    config_eos: str
    generation_eos: tuple[str, ...]
    bos: str | None = None
    writes_bos: bool = False
    pad: str | None = "<|pad|>"
    width_multiple: int = 64
    hidden_size: int = 32
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 64
    context_length: int = 256
    tied: bool = True
    dtype: torch.dtype = torch.float32
    seed: int = 0
    vocabulary: int = 600
    extra_tokens: tuple[str, ...] = ()
    max_shard_size: str = "5GB"
    extra_config: dict[str, Any] = field(default_factory=dict)


SHAPES = {
    "llama": FolderShape(
        "llama", LLAMA, "<|eot_id|>", "<|eot_id|>", ("<|endoftext|>", "<|eot_id|>"),
        bos="<|begin_of_text|>", writes_bos=True, tied=False,
    ),
    "qwen2": FolderShape(
        "qwen2", CHATML, "<|im_end|>", "<|endoftext|>", ("<|im_end|>", "<|endoftext|>"),
        width_multiple=128,
    ),
    "qwen3": FolderShape(
        "qwen3", CHATML_THINKING, "<|im_end|>", "<|im_end|>", ("<|im_end|>",),
        width_multiple=256, extra_config={"head_dim": 16},
    ),
    "gpt_neox": FolderShape(
        "gpt_neox", None, "<|endoftext|>", "<|endoftext|>", (),
        pad=None, width_multiple=512, kv_heads=4, tied=False,
    ),
    "gemma": FolderShape(
        "gemma", GEMMA, "<end_of_turn>", "<|endoftext|>", ("<end_of_turn>",),
        bos="<|begin_of_text|>", writes_bos=True, kv_heads=1, extra_config={"head_dim": 8},
    ),
}  # fmt: skip


def make_folder(folder: Path, kind: str = "qwen2", **overrides: Any) -> Path:
    """Write one model folder of `kind` (a key of `SHAPES`) and return it; overrides are fields."""
    shape = replace(SHAPES[kind], **overrides)
    backend = train_tokenizer(shape.vocabulary, shape.extra_tokens)
    _save_tokenizer(folder, shape, backend)
    _save_model(folder, shape, backend)
    return folder


def make_pair(folder: Path, student: str = "qwen2", teacher: str = "qwen3") -> tuple[Path, Path]:
    """Write a student and a teacher that share a token map and differ in width and template."""
    return make_folder(folder / "student", student), make_folder(folder / "teacher", teacher)


def train_tokenizer(vocabulary: int = 600, extra_tokens: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE tokenizer; the same arguments always give the same token map."""
    tokenizer = Tokenizer.from_str(_trained_tokenizer(vocabulary))
    tokenizer.add_special_tokens(list(extra_tokens))
    return tokenizer


@cache
def _trained_tokenizer(vocabulary: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(topics.topics.values())[:30], trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return str(tokenizer.to_str())


def _save_tokenizer(folder: Path, shape: FolderShape, backend: Tokenizer) -> None:
    if shape.writes_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{shape.bos} $A",
            pair=f"{shape.bos} $A $B",
            special_tokens=[(shape.bos, backend.token_to_id(shape.bos))],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=shape.bos, eos_token=shape.eos, pad_token=shape.pad
    )
    tokenizer.chat_template = shape.template
    tokenizer.save_pretrained(folder)


def _save_model(folder: Path, shape: FolderShape, backend: Tokenizer) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(shape.seed)
        model = AutoModelForCausalLM.from_config(_config(shape, backend), dtype=shape.dtype)
    model.generation_config = GenerationConfig(
        eos_token_id=[backend.token_to_id(token) for token in shape.generation_eos] or None
    )
    model.save_pretrained(folder, max_shard_size=shape.max_shard_size)


def _config(shape: FolderShape, backend: Tokenizer) -> Any:
    step = shape.width_multiple
    grouped = {} if shape.model_type == "gpt_neox" else {"num_key_value_heads": shape.kv_heads}
    return AutoConfig.for_model(
        shape.model_type,
        vocab_size=-(-backend.get_vocab_size() // step) * step,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.context_length,
        tie_word_embeddings=shape.tied,
        bos_token_id=None if shape.bos is None else backend.token_to_id(shape.bos),
        eos_token_id=backend.token_to_id(shape.config_eos),
        pad_token_id=None if shape.pad is None else backend.token_to_id(shape.pad),
        dtype=str(shape.dtype).removeprefix("torch."),
        **grouped,
        **shape.extra_config,
    )


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file in a folder; None removes the key."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content.update(changes)
    kept = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(kept), encoding="utf-8")
