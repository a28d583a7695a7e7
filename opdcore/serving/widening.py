"""A model as vLLM can serve it on a CPU: the same function, with wide enough heads and a head of its own.

vLLM's attention on a CPU knows heads of 32 dimensions and more. A narrower head of d dimensions is spread
over D = f d: dimension i of either half goes to place f i of the new half, where the rotary angles,
base^(-2 i / d), are the same. The score's scale 1/sqrt(D) is made good by sqrt(f) in the queries; where
queries and keys are normalised, by which they are sqrt(f) larger already, by 1/sqrt(f) in the keys' norm.

A head that is tied to the embedding is written out, since there vLLM packs it when it starts and does not
pack it anew when it reads new weights. It knows tensors by the names that Llama, Qwen2 and Qwen3 give
them, and no server.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NARROWEST = 32
WEIGHTS, CONFIG = "model.safetensors", "config.json"
_KNOWN = frozenset({"llama", "qwen2", "qwen3"})
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_OUTWARD = ("q_proj", "k_proj", "v_proj")


def factor(config: Mapping[str, Any]) -> int:
    """By how much the heads are to be widened; 1 where they are wide enough, or of another kind."""
    width = head_width(config)
    if width >= NARROWEST or NARROWEST % width or config.get("model_type") not in _KNOWN:
        return 1
    return NARROWEST // width


def head_width(config: Mapping[str, Any]) -> int:
    """Dimensions of a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def widened(name: str, tensor: Tensor, config: Mapping[str, Any], f: int) -> Tensor:
    """One tensor of the model whose heads are `f` times as wide."""
    wide = head_width(config)
    layer = name.split(".")[-2] if "." in name else ""
    normed = config["model_type"] == "qwen3"
    if f == 1:
        return tensor
    if layer in _OUTWARD:
        scale = math.sqrt(f) if layer == "q_proj" and not normed else 1.0
        heads = tensor.unflatten(0, (-1, wide))
        return _spread(heads, 1, f).flatten(0, 1).mul_(scale)
    if layer == "o_proj":
        return _spread(tensor.unflatten(1, (-1, wide)), 2, f).flatten(1, 2)
    if layer in {"q_norm", "k_norm"}:
        return _spread(tensor, 0, f).mul_(1 / math.sqrt(f) if layer == "k_norm" else 1.0)
    return tensor


def widen_folder(source: Path, target: Path) -> Path:
    """A folder that a server can serve: the source itself where nothing is to be changed."""
    config = json.loads((source / CONFIG).read_bytes())
    if config.get("model_type") not in _KNOWN or (
        factor(config) == 1 and not config.get("tie_word_embeddings")
    ):
        return source
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix in {".json", ".jinja", ".txt"} and "safetensors" not in file.name:
            shutil.copy(file, target / file.name)
    tensors: dict[str, Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors |= load_file(file)
    write(tensors, config, target / WEIGHTS, f=factor(config))
    wide = config | {
        "head_dim": head_width(config) * factor(config),
        "tie_word_embeddings": False,
    }
    (target / CONFIG).write_text(json.dumps(wide, indent=1), encoding="utf-8")
    return target


def write(tensors: Mapping[str, Tensor], config: Mapping[str, Any], file: Path, *, f: int) -> None:
    """The weights as the server reads them, whole or not at all."""
    if EMBEDDING in tensors and config.get("model_type") in _KNOWN:
        tensors = {HEAD: tensors[EMBEDDING].clone(), **tensors}
    wide = {
        name: widened(name, tensor.detach(), config, f).contiguous()
        for name, tensor in tensors.items()
    }
    aside = file.with_suffix(".part")
    save_file(wide, aside, metadata={"format": "pt"})
    aside.rename(file)


def _spread(tensor: Tensor, dim: int, f: int) -> Tensor:
    """Zeros after each entry of both halves along a dimension."""
    shape = list(tensor.shape)
    shape[dim] *= f
    spread = tensor.new_zeros(shape)
    places = torch.arange(0, shape[dim], f)
    return spread.index_copy_(dim, places, tensor)
