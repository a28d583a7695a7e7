"""The teachers study: two teachers of one skill each, and a student that is its own privileged teacher."""

from benchmarks.teachers.study import PARTS, summarise

__all__ = ["PARTS", "summarise"]
