"""The engine's rows that need a GPU, beside the same peer; without one each says that it was not run."""

from __future__ import annotations

from benchmarks import engine
from benchmarks.engine import summarise

__all__ = ["PARTS", "summarise"]

PARTS = {name: part for name, part in engine.PARTS.items() if name.startswith("gpu_")}
