"""A run whose processes a launcher has started: `accelerate launch -m opdcore run ...`, or torchrun.

Each of them is the same command; the launcher says who is which and where they meet, watches them, and
ends all when one fails. It knows no job.
"""

from __future__ import annotations

import os

# Set by torch's elastic launcher, which accelerate uses too, and by nobody else.
_MARK = "TORCHELASTIC_RUN_ID"


def rank() -> int | None:
    """Which of the launcher's processes this is, counted from 0; None without a launcher."""
    return int(os.environ["RANK"]) if _MARK in os.environ else None


def count() -> int:
    """How many the launcher has started; 1 without one."""
    return int(os.environ["WORLD_SIZE"]) if _MARK in os.environ else 1
