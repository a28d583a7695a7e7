"""Traces: rollouts with the values of every token, as Parquet that a page reads by row.

It knows tokens and columns, not how they were computed. Both models' top tokens lie flat in a row,
`top_width` of each position after the other; their texts stand once a row, beside their ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

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
# The sampled token's place among all tokens of either side, from 1.
RANKS = ("student_rank", "teacher_rank")
# Each side's top tokens, and both sides' logprobs of them in nats.
TOP_IDS = ("student_top_ids", "teacher_top_ids")
TOP_LOGPROBS = (
    "student_top_logprobs",
    "student_top_teacher_logprobs",
    "teacher_top_logprobs",
    "teacher_top_student_logprobs",
)
_DIGITS = 4
# Columns worth a dictionary; measured values hardly repeat.
_REPEATING = ["tokens", "top_texts", *TOP_IDS, *RANKS]
# Rollouts are read alone, but a group of few tokens would be more headings than values.
_GROUP_TOKENS = 4096

Values = NDArray[np.float32]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class TracedTop:
    """Both sides' top tokens at T positions, `width` of each; `texts` by id, for each id in them."""

    width: int
    ids: Mapping[str, Whole]  # (T, width), by TOP_IDS
    logprobs: Mapping[str, Values]  # (T, width), by TOP_LOGPROBS
    ranks: Mapping[str, Whole]  # (T,), by RANKS
    texts: Mapping[int, str]


@dataclass(frozen=True)
class Text:
    """A text of the student: its prompt, ids, whether it was right, and the step that wrote it."""

    prompt_index: int
    ids: Sequence[int]
    stopped: bool
    correct: bool | None
    written_step: int


@dataclass(frozen=True)
class TracedRollout:
    """One rollout as it is kept; its text may have been written before the step of the trace."""

    text: Text
    prompt: str
    response: str
    tokens: Sequence[str]
    columns: Mapping[str, Values]
    top: TracedTop


def write(path: Path, rollouts: Sequence[TracedRollout], *, step: int) -> None:
    """Writes one row a rollout; values keep four significant digits, non-finite ones are null.

    Logprobs of top tokens are kept in half precision, which is three digits.
    """
    tokens = sum(len(rollout.text.ids) for rollout in rollouts)
    group = max(1, _GROUP_TOKENS * len(rollouts) // max(1, tokens))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    pq.write_table(
        _table(rollouts, step),
        aside,
        compression="zstd",
        row_group_size=group,
        use_dictionary=_REPEATING,
        write_statistics=False,
    )
    aside.rename(path)


def texts(path: Path, most: int) -> list[Text]:
    """The first texts of a trace that its own step wrote, at most one a prompt."""
    names = [field.name for field in fields(Text)]
    found: dict[int, Text] = {}
    for row in pq.ParquetFile(path).read(["step", *names], use_threads=False).to_pylist():
        if row.pop("step") == row["written_step"]:
            found.setdefault(row["prompt_index"], Text(**row))
    return list(found.values())[:most]


def rounded(values: NDArray[np.floating]) -> Values:
    """The values with four significant digits; what is not finite stays as it is."""
    wide = values.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (_DIGITS - 1 - np.floor(np.log10(np.abs(wide))))
        cut = np.round(wide * scale) / scale
    usable = np.isfinite(cut)
    return np.where(usable, cut, wide).astype(np.float32)


def _table(rollouts: Sequence[TracedRollout], step: int) -> pa.Table:
    plain = [
        ("step", pa.int64(), [step for _ in rollouts]),
        ("written_step", pa.int64(), [rollout.text.written_step for rollout in rollouts]),
        ("prompt_index", pa.int64(), [rollout.text.prompt_index for rollout in rollouts]),
        ("prompt", pa.string(), [rollout.prompt for rollout in rollouts]),
        ("response", pa.string(), [rollout.response for rollout in rollouts]),
        ("stopped", pa.bool_(), [rollout.text.stopped for rollout in rollouts]),
        ("correct", pa.bool_(), [rollout.text.correct for rollout in rollouts]),
        ("ids", pa.list_(pa.int32()), [rollout.text.ids for rollout in rollouts]),
        ("tokens", pa.list_(pa.string()), [rollout.tokens for rollout in rollouts]),
        ("top_width", pa.int32(), [rollout.top.width for rollout in rollouts]),
        ("top_text_ids", pa.list_(pa.int32()), [list(one.top.texts) for one in rollouts]),
        ("top_texts", pa.list_(pa.string()), [list(one.top.texts.values()) for one in rollouts]),
    ]
    columns = {name: pa.array(values, type=kind) for name, kind, values in plain}
    for name in COLUMNS:
        columns[name] = _numbers([rollout.columns[name] for rollout in rollouts])
    for name in TOP_LOGPROBS:
        columns[name] = _halves([rollout.top.logprobs[name] for rollout in rollouts])
    for name in TOP_IDS:
        columns[name] = _whole([rollout.top.ids[name] for rollout in rollouts])
    for name in RANKS:
        columns[name] = _whole([rollout.top.ranks[name] for rollout in rollouts])
    return pa.table(columns)


def _numbers(rows: Sequence[Values]) -> pa.ListArray:
    flat = rounded(np.concatenate([row.ravel() for row in rows]))
    return pa.ListArray.from_arrays(_offsets(rows), pa.array(flat, mask=~np.isfinite(flat)))


def _halves(rows: Sequence[Values]) -> pa.ListArray:
    """Half precision: three digits, enough for a bar and its percentage."""
    flat = np.concatenate([row.ravel() for row in rows]).astype(np.float16)
    return pa.ListArray.from_arrays(_offsets(rows), pa.array(flat, mask=~np.isfinite(flat)))


def _whole(rows: Sequence[Whole]) -> pa.ListArray:
    flat = np.concatenate([row.ravel() for row in rows])
    return pa.ListArray.from_arrays(_offsets(rows), pa.array(flat, type=pa.int32()))


def _offsets(rows: Sequence[NDArray[np.generic]]) -> pa.Array:
    return pa.array(np.cumsum([0, *(row.size for row in rows)]), type=pa.int32())
