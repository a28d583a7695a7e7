"""Traces: rollouts with the values of every token, as Parquet that a page reads by row.

It knows tokens and columns, not how they were computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# Values of every token that a trace keeps, by metric key.
COLUMNS = (
    "token_reward",
    "reverse_kl",
    "student_logprob",
    "teacher_logprob",
    "student_entropy",
    "teacher_entropy",
    "overlap_ratio",
)
_DIGITS = 4


@dataclass(frozen=True)
class TracedRollout:
    """One rollout as it is kept: texts, ids, whether it was right, and its columns by token."""

    prompt_index: int
    prompt: str
    response: str
    ids: Sequence[int]
    tokens: Sequence[str]
    stopped: bool
    correct: bool | None
    columns: Mapping[str, Sequence[float | None]]


def write(path: Path, rollouts: Sequence[TracedRollout], *, step: int) -> None:
    """Writes one row a rollout; values keep four significant digits, non-finite ones are null."""
    rows = [
        {
            "step": step,
            "prompt_index": rollout.prompt_index,
            "prompt": rollout.prompt,
            "response": rollout.response,
            "ids": list(rollout.ids),
            "tokens": list(rollout.tokens),
            "stopped": rollout.stopped,
            "correct": rollout.correct,
        }
        | {name: [_rounded(value) for value in rollout.columns[name]] for name in COLUMNS}
        for rollout in rollouts
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), aside, compression="zstd")
    aside.rename(path)


SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("prompt_index", pa.int64()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("ids", pa.list_(pa.int64())),
        ("tokens", pa.list_(pa.string())),
        ("stopped", pa.bool_()),
        ("correct", pa.bool_()),
        *((name, pa.list_(pa.float32())) for name in COLUMNS),
    ]
)


def _rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")
