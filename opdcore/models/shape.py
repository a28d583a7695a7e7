"""The shape of a Llama-like decoder, read from config.json; it knows no torch and no weights.

`Shape.of` answers None for whatever our own decoder does not compute exactly as the architecture's
authors meant it: other families, sliding windows, other rotary scalings. Those go through transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FAMILIES = frozenset({"llama", "qwen2", "qwen3"})


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3's stretched rotary frequencies: long waves are slowed by `factor`, short ones kept."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes and switches of a decoder; `width` is that of the residual stream."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    epsilon: float
    rope_theta: float
    scaling: Llama3Scaling | None
    qkv_bias: bool
    output_bias: bool
    feed_forward_bias: bool
    head_norms: bool
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape | None:
        """The shape that a config.json declares; None where the decoder is not one of ours."""
        family = config.get("model_type")
        rope = _Rope.of(config)
        if family not in FAMILIES or rope is None or not _plain(config):
            return None
        heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        bias = bool(config.get("attention_bias", False))
        return cls(
            vocabulary=int(config["vocab_size"]),
            width=width,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or (128 if family == "qwen3" else width // heads)),
            feed_forward=int(config["intermediate_size"]),
            epsilon=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=rope.theta,
            scaling=rope.scaling,
            qkv_bias=bias or family == "qwen2",
            output_bias=bias and family != "qwen2",
            feed_forward_bias=bool(config.get("mlp_bias", False)) and family == "llama",
            head_norms=family == "qwen3",
            tied=bool(config.get("tie_word_embeddings", False)),
        )


@dataclass(frozen=True, slots=True)
class _Rope:
    theta: float
    scaling: Llama3Scaling | None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Rope | None:
        """Rotary parameters as either of the two ways of writing them down says; None: another kind."""
        told = config.get("rope_parameters") or config.get("rope_scaling") or {}
        theta = float(told.get("rope_theta", config.get("rope_theta", 10_000.0)))
        match told.get("rope_type", told.get("type", "default")):
            case "default":
                return cls(theta, None)
            case "llama3":
                return cls(theta, _llama3(told))
        return None


def _llama3(told: Mapping[str, Any]) -> Llama3Scaling:
    return Llama3Scaling(
        factor=float(told["factor"]),
        low_frequency_factor=float(told["low_freq_factor"]),
        high_frequency_factor=float(told["high_freq_factor"]),
        original_context=int(told["original_max_position_embeddings"]),
    )


def _plain(config: Mapping[str, Any]) -> bool:
    """Whether nothing else is asked for that changes what the layers compute."""
    kinds = set(config.get("layer_types") or ())
    return (
        config.get("hidden_act", "silu") == "silu"
        and not config.get("use_sliding_window", False)
        and kinds <= {"full_attention"}
        and config.get("quantization_config") is None
    )


def rotary_frequencies(shape: Shape) -> list[float]:
    """Radians per position of each of the head_dim / 2 planes (arXiv 2104.09864; Llama 3's scaling)."""
    half = shape.head_dim // 2
    plain = [shape.rope_theta ** (-plane / half) for plane in range(half)]
    scaling = shape.scaling
    return plain if scaling is None else [_stretched(rate, scaling) for rate in plain]


def _stretched(rate: float, scaling: Llama3Scaling) -> float:
    turns = scaling.original_context * rate / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = min(1.0, max(0.0, (turns - low) / (high - low)))
    return rate * (kept + (1 - kept) / scaling.factor)
