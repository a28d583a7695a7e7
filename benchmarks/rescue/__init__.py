"""The rescue study: failing runs of known causes, their rescues and their control arms."""

from benchmarks.rescue.study import PARTS, summarise

__all__ = ["PARTS", "summarise"]
