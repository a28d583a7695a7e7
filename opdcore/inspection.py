"""What a model folder holds, read without torch: shape, weights, vocabulary, template, special ids.

It takes milliseconds for the weights and a second or two for a large vocabulary. It says what is
wrong with a folder in words that name the remedy, and is what the web and the job both trust. It
knows no pair and no recipe.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from opdcore.contract.document import Document
from opdcore.contract.errors import BadInput
from opdcore.json_files import read_object, read_object_if_there
from opdcore.tokenizer_files import TokenizerFiles, read_tokenizer, token_map_sha256
from opdcore.weights_files import Weights, fingerprint, read_weights

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

# Model types whose code ships with transformers: an `auto_map` beside them is a relic that is
# never followed, since remote code is never trusted.
NATIVE_MODEL_TYPES = frozenset({
    "apertus", "bloom", "codegen", "cohere", "cohere2", "dbrx", "deepseek_v2", "deepseek_v3",
    "ernie4_5", "exaone4", "falcon", "falcon_h1", "gemma", "gemma2", "gemma3", "gemma3_text",
    "gemma3n", "gemma3n_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neo",
    "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe", "helium", "hunyuan_v1_dense", "jamba",
    "lfm2", "llama", "llama4", "llama4_text", "minimax", "ministral", "mistral", "mistral3",
    "mixtral", "mpt", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi",
    "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5", "qwen3_5_text", "qwen3_moe",
    "qwen3_next", "recurrent_gemma", "seed_oss", "smollm3", "stablelm", "starcoder2",
})  # fmt: skip

# Buffers that older checkpoints saved among the parameters.
_BUFFER = re.compile(
    r"(rotary_emb\.inv_freq|\.attn\.bias|\.attention\.bias|masked_bias|position_ids)$"
)
_EMBEDDING = re.compile(r"(embed_tokens|embed_in|wte|word_embeddings|tok_embeddings)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
_KEY_PROJECTION = re.compile(r"layers\.0\.self_attn\.k_proj\.weight$")


class DeclaredIds(Document):
    """The ids of one special token, as each of three files declares it; empty where it does not."""

    tokenizer: tuple[int, ...] = Field(description="By the tokenizer's files.")
    config: tuple[int, ...] = Field(description="By config.json.")
    generation_config: tuple[int, ...] = Field(description="By generation_config.json.")

    def all(self) -> tuple[int, ...]:
        """Every declared id, once, ascending."""
        return tuple(sorted({*self.tokenizer, *self.config, *self.generation_config}))


class ModelCard(Document):
    """What is known of a model folder without loading its weights."""

    architecture: str = Field(description="Class that transformers would load.")
    model_type: str = Field(description="Architecture's short name in config.json.")
    parameters: int = Field(description="Elements of all tensors, buffers left out.")
    weights_bytes: int = Field(description="Size of the safetensors files, in bytes.")
    dtypes: tuple[str, ...] = Field(description="Tensor types, the one with most elements first.")
    quantization: str | None = Field(description="Quantisation method; None: plain weights.")
    vocabulary: int = Field(description="Real tokens, added ones included.")
    padded_vocabulary: int = Field(description="Rows of the embedding, the width of the logits.")
    context_length: int | None = Field(
        description="Longest sequence in tokens; None: not declared."
    )
    hidden_size: int = Field(description="Width of the residual stream.")
    layers: int = Field(description="Transformer layers.")
    heads: int = Field(description="Query heads of a layer.")
    kv_heads: int = Field(description="Key and value heads of a layer.")
    head_dim: int = Field(description="Width of a head.")
    intermediate_size: int = Field(description="Width of the feed-forward layer.")
    tied_embeddings: bool = Field(description="Whether the output head is the embedding.")
    chat_template_sha256: str | None = Field(description="Hash of the template; None: has none.")
    bos: DeclaredIds = Field(description="Beginning of a sequence.")
    eos: DeclaredIds = Field(description="End of a response; any of them stops sampling.")
    pad: DeclaredIds = Field(description="Padding.")
    token_map_sha256: str = Field(description="Hash of the id-to-token map.")
    weights_fingerprint: str = Field(description="Hash of headers, sizes and sampled blocks.")

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template_sha256 is not None


def inspect(folder: Path | str) -> ModelCard:
    """Read a folder's card; raise BadInput, with a code that starts `model.`, if it is unusable."""
    return inspect_with_tokenizer(Path(folder))[0]


def inspect_with_tokenizer(folder: Path) -> tuple[ModelCard, TokenizerFiles]:
    """Read a folder's card as `inspect` does, and hand over the tokenizer loaded for it."""
    config = _read_config(folder)
    weights = read_weights(folder)
    files = read_tokenizer(folder)
    card = ModelCard(
        architecture=_architecture(config),
        model_type=str(config["model_type"]),
        weights_bytes=weights.bytes,
        dtypes=_dtypes(weights),
        quantization=_quantization(config),
        weights_fingerprint=fingerprint(weights),
        **_shape(folder, config, weights),
        **_tokens(folder, files),
    )
    return card, files


def declared_ids(folder: Path, files: TokenizerFiles, name: str) -> DeclaredIds:
    """What a folder's three files say about one special token; `name` is bos, eos or pad."""
    config = _text_config(read_object(folder / CONFIG, "model.broken_config"))
    generation = read_object_if_there(folder / GENERATION_CONFIG, "model.broken_config")
    own = files.special_id(f"{name}_token")
    return DeclaredIds(
        tokenizer=() if own is None else (own,),
        config=_ids(config.get(f"{name}_token_id")),
        generation_config=_ids(generation.get(f"{name}_token_id")),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise BadInput(
            "model.not_a_folder",
            f"{folder} is not a folder.",
            remedy="Give the folder that holds config.json and the safetensors files.",
        )
    if not (folder / CONFIG).is_file():
        raise _no_config(folder)
    config = read_object(folder / CONFIG, "model.broken_config")
    _refuse_remote_code(folder, config)
    _refuse_other_kinds(folder, config)
    return config


def _no_config(folder: Path) -> BadInput:
    if (folder / "adapter_config.json").exists():
        return BadInput(
            "model.adapter",
            f"{folder} is an adapter without its base model.",
            remedy="Merge it into its base: "
            "`PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(out)`.",
            field="adapter_config.json",
        )
    return BadInput(
        "model.no_config",
        f"{folder} has no {CONFIG}.",
        remedy="Give a Hugging Face model folder, as `model.save_pretrained(folder)` writes it.",
        field=CONFIG,
    )


def _refuse_remote_code(folder: Path, config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    if config.get("auto_map") and model_type not in NATIVE_MODEL_TYPES:
        raise BadInput(
            "model.remote_code",
            f"{folder} needs Python code of its own (`auto_map`, model type {model_type!r}), "
            "which is never run.",
            remedy="Use a model whose architecture ships with transformers.",
            field=f"{CONFIG}: auto_map",
        )


def _refuse_other_kinds(folder: Path, config: Mapping[str, Any]) -> None:
    if not isinstance(config.get("model_type"), str):
        raise _missing(folder, "model_type")
    names = config.get("architectures") or []
    generative = ("CausalLM", "LMHeadModel", "ConditionalGeneration")
    if names and not any(str(name).endswith(generative) for name in names):
        raise BadInput(
            "model.not_causal",
            f"{folder} holds {names[0]}, which does not generate text.",
            remedy="Use a causal language model, such as Qwen3ForCausalLM.",
            field=f"{CONFIG}: architectures",
        )


def _missing(folder: Path, key: str) -> BadInput:
    return BadInput(
        "model.config_incomplete",
        f"{folder / CONFIG} does not say `{key}`.",
        remedy="Save the model again with `model.save_pretrained(folder)`.",
        field=f"{CONFIG}: {key}",
    )


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if names else str(config["model_type"])


def _quantization(config: Mapping[str, Any]) -> str | None:
    declared = config.get("quantization_config")
    return str(declared.get("quant_method", "unknown")) if isinstance(declared, dict) else None


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a multimodal configuration; else the whole."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def _shape(folder: Path, config: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    text = _text_config(config)
    hidden_size = _size(folder, text, "hidden_size", "n_embd", "d_model")
    heads = _size(folder, text, "num_attention_heads", "n_head", "n_heads")
    kv_heads = _optional_size(text, "num_key_value_heads", "num_kv_heads") or heads
    head_of_output = _named(weights, _HEAD)
    tied = text.get("tie_word_embeddings")
    tied = head_of_output is None if tied is None else bool(tied)
    width = _width(folder, text, weights)
    return {
        "parameters": _parameters(weights, tied=tied),
        "padded_vocabulary": width,
        "context_length": _optional_size(
            text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length"
        ),
        "hidden_size": hidden_size,
        "layers": _size(folder, text, "num_hidden_layers", "n_layer", "n_layers"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": _head_dim(text, weights, hidden_size // heads, kv_heads),
        "intermediate_size": _optional_size(text, "intermediate_size", "n_inner", "ffn_dim")
        or 4 * hidden_size,
        "tied_embeddings": tied,
    }


def _size(folder: Path, config: Mapping[str, Any], *names: str) -> int:
    found = _optional_size(config, *names)
    if found is None:
        raise _missing(folder, names[0])
    return found


def _optional_size(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if type(value) is int and value > 0:
            return value
    return None


def _named(weights: Weights, pattern: re.Pattern[str]) -> str | None:
    return next((name for name in weights.tensors if pattern.search(name)), None)


def _head_dim(config: Mapping[str, Any], weights: Weights, usual: int, kv_heads: int) -> int:
    """Declared, else read off the key projection, since some classes have defaults of their own."""
    declared = _optional_size(config, "head_dim")
    projection = _named(weights, _KEY_PROJECTION)
    if declared is not None or projection is None:
        return declared or usual
    return weights.tensors[projection].shape[0] // kv_heads


def _width(folder: Path, config: Mapping[str, Any], weights: Weights) -> int:
    declared = _size(folder, config, "vocab_size")
    embedding = _named(weights, _EMBEDDING)
    rows = declared if embedding is None else weights.tensors[embedding].shape[0]
    if rows != declared:
        raise BadInput(
            "model.width_mismatch",
            f"{folder} declares vocab_size {declared} and its embedding has {rows} rows.",
            remedy="Save config.json and weights together with `model.save_pretrained(folder)`.",
            field=f"{CONFIG}: vocab_size",
        )
    return rows


def _parameters(weights: Weights, *, tied: bool) -> int:
    skipped = _named(weights, _HEAD) if tied and _named(weights, _EMBEDDING) else None
    return sum(
        entry.elements
        for name, entry in weights.tensors.items()
        if name != skipped and not _BUFFER.search(name)
    )


def _dtypes(weights: Weights) -> tuple[str, ...]:
    elements: dict[str, int] = {}
    for entry in weights.tensors.values():
        elements[entry.dtype] = elements.get(entry.dtype, 0) + entry.elements
    return tuple(sorted(elements, key=lambda dtype: -elements[dtype]))


def _tokens(folder: Path, files: TokenizerFiles) -> dict[str, Any]:
    template = files.chat_template
    return {
        "vocabulary": len(files.token_map),
        "chat_template_sha256": None
        if template is None
        else hashlib.sha256(template.encode()).hexdigest(),
        "token_map_sha256": token_map_sha256(files.token_map),
        **{name: declared_ids(folder, files, name) for name in ("bos", "eos", "pad")},
    }


def _ids(declared: object) -> tuple[int, ...]:
    values = declared if isinstance(declared, list) else [declared]
    return tuple(value for value in values if type(value) is int and value >= 0)
