"""The pairs and prompts that the engine is measured on: made from seeds, so that nothing is downloaded.

It knows shapes and where folders lie; `programs.pair` fills them. A pair's weights are random, but for
one thing: its end token is drawn with the probability `hazard` at every position, which fixes how long
responses become, for both engines alike.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import cells
from benchmarks.records import ROOT

FOLDER = ROOT / "state" / "bench"
PROMPTS = 256
PROMPT_TOKENS = 32
# So rare that no run of a benchmark meets it.
NEVER = 1e-9


@dataclass(frozen=True)
class Shape:
    """A decoder with tied embeddings: what its weights, its work and its cache follow from."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    vocabulary: int
    model_type: str = "qwen2"
    dtype: str = "float32"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    @property
    def backbone_parameters(self) -> int:
        """Weights of the layers' matrices, which every token goes through."""
        attention = 2 * self.hidden_size * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head_parameters(self) -> int:
        """Weights of the output head, which is the embedding."""
        return self.hidden_size * self.vocabulary


@dataclass(frozen=True)
class Pair:
    """A student, a teacher, and how likely each position ends the response."""

    student: Shape
    teacher: Shape
    hazard: float = NEVER

    @property
    def folder(self) -> Path:
        """Where it lies once it is made; another shape or hazard has another folder."""
        told = json.dumps(asdict(self), sort_keys=True).encode()
        return FOLDER / "pairs" / hashlib.sha256(told).hexdigest()[:16]

    @property
    def spec(self) -> dict[str, Any]:
        """What `programs.pair` makes it from."""
        return {
            **asdict(self),
            "folder": str(self.folder),
            "prompts": PROMPTS,
            "prompt_tokens": PROMPT_TOKENS,
        }


def small(vocabulary: int, *, hazard: float = NEVER, model_type: str = "qwen2") -> Pair:
    """A student of 1.05 and a teacher of 6.29 million parameters, embeddings not counted."""
    return Pair(
        Shape(128, 4, 4, 4, 512, vocabulary, model_type),
        Shape(256, 6, 8, 8, 1024, vocabulary, model_type),
        hazard,
    )


# Shapes of Qwen2.5-0.5B, 1.5B and 7B, with tied embeddings throughout.
BILLIONS = {
    "0.5b": Shape(896, 24, 14, 2, 4864, 151_936, dtype="bfloat16"),
    "1.5b": Shape(1536, 28, 12, 2, 8960, 151_936, dtype="bfloat16"),
    "7b": Shape(3584, 28, 28, 4, 18_944, 151_936, dtype="bfloat16"),
}


def make(pair: Pair) -> Pair:
    """Makes the pair's folder where it is not there yet, and returns the pair."""
    if not (pair.folder / "prompts.jsonl").exists():
        cells.run("pair", pair.spec)
    return pair
