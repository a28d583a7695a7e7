"""Columns of a series: points, and buckets that lose neither a spike nor a NaN.

Pure numbers. A point is a step and a float32; NaN and the infinities stand for themselves, and a
value that was undefined at its step is one particular NaN, so that it is drawn as a gap and not
counted as a failure. It knows no row and no run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.uint32]
Blob = bytes | memoryview  # SQLite gives the one, PostgreSQL the other

# A quiet NaN with a payload that arithmetic never produces.
_MISSING_BITS = np.uint32(0x7FC0_57A1)


@dataclass(frozen=True)
class Points:
    """Values of one series by ascending step."""

    steps: Integers
    values: Floats

    def __len__(self) -> int:
        return int(self.steps.size)


@dataclass(frozen=True)
class Buckets:
    """Runs of neighbouring points: the last step and value, the extremes, the non-finite values.

    Extremes are NaN where a bucket holds no finite value.
    """

    steps: NDArray[np.int64]
    last: Floats
    minimum: Floats
    maximum: Floats
    nonfinite: Integers

    def __len__(self) -> int:
        return int(self.steps.size)


def points(steps: Sequence[int], values: Sequence[float | None]) -> Points:
    """Columns of rows in the order they came: sorted by step, the last value of a step stands."""
    column = np.array([np.nan if value is None else value for value in values], dtype=np.float32)
    missing = np.array([value is None for value in values], dtype=bool)
    column.view(np.uint32)[missing] = _MISSING_BITS
    return _sorted(np.asarray(steps, dtype=np.uint32), column)


def join(parts: Sequence[Points]) -> Points:
    """One series of several, where a later part wins over an earlier one at the same step."""
    if not parts:
        return Points(np.empty(0, np.uint32), np.empty(0, np.float32))
    steps = np.concatenate([part.steps for part in parts])
    return _sorted(steps, np.concatenate([part.values for part in parts]))


def upto(part: Points, step: int) -> Points:
    """The points at or before a step."""
    end = int(np.searchsorted(part.steps, step, side="right"))
    return Points(part.steps[:end], part.values[:end])


def split(part: Points, size: int) -> list[Points]:
    """Neighbouring spans of at most `size` points."""
    return [
        Points(part.steps[i : i + size], part.values[i : i + size])
        for i in range(0, len(part), size)
    ]


def singles(part: Points, *, offset: int = 0) -> Buckets:
    """One bucket a point, its steps moved by `offset`."""
    undefined = part.values.view(np.uint32) == _MISSING_BITS
    finite = np.isfinite(part.values)
    shown = np.where(finite, part.values, np.float32(np.nan))
    return Buckets(
        steps=part.steps.astype(np.int64) + offset,
        last=shown,
        minimum=shown,
        maximum=shown,
        nonfinite=(~finite & ~undefined).astype(np.uint32),
    )


def concatenate(parts: Sequence[Buckets]) -> Buckets:
    """Buckets one after the other."""
    return Buckets(
        steps=np.concatenate([np.empty(0, np.int64), *(part.steps for part in parts)]),
        last=_floats([part.last for part in parts]),
        minimum=_floats([part.minimum for part in parts]),
        maximum=_floats([part.maximum for part in parts]),
        nonfinite=np.concatenate([np.empty(0, np.uint32), *(part.nonfinite for part in parts)]),
    )


def merge(buckets: Buckets, size: int) -> Buckets:
    """Every `size` neighbours in one; extremes and counts are exact, whatever was merged before."""
    if size <= 1 or not len(buckets):
        return buckets
    starts = np.arange(0, len(buckets), size)
    ends = np.minimum(starts + size, len(buckets)) - 1
    return Buckets(
        steps=buckets.steps[ends],
        last=buckets.last[ends],
        minimum=np.fmin.reduceat(buckets.minimum, starts),
        maximum=np.fmax.reduceat(buckets.maximum, starts),
        nonfinite=np.add.reduceat(buckets.nonfinite, starts).astype(np.uint32),
    )


def fit(buckets: Buckets, count: int) -> Buckets:
    """At most `count` buckets."""
    return merge(buckets, -(-len(buckets) // max(1, count)))


def pack(buckets: Buckets) -> bytes:
    """The five columns as they are stored, little-endian, four bytes a number."""
    columns = (
        buckets.steps.astype("<u4"),
        buckets.last.astype("<f4"),
        buckets.minimum.astype("<f4"),
        buckets.maximum.astype("<f4"),
        buckets.nonfinite.astype("<u4"),
    )
    return b"".join(column.tobytes() for column in columns)


def unpack(blob: Blob, *, offset: int = 0) -> Buckets:
    """What `pack` stored, its steps moved by `offset`."""
    steps, last, minimum, maximum, nonfinite = np.frombuffer(blob, "<u4").reshape(5, -1)
    return Buckets(
        steps=steps.astype(np.int64) + offset,
        last=last.view("<f4"),
        minimum=minimum.view("<f4"),
        maximum=maximum.view("<f4"),
        nonfinite=nonfinite,
    )


def _floats(parts: Sequence[Floats]) -> Floats:
    return np.concatenate([np.empty(0, np.float32), *parts])


def _sorted(steps: Integers, values: Floats) -> Points:
    if steps.size < 2 or bool(np.all(steps[1:] > steps[:-1])):
        return Points(steps, values)
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    last_of_step = np.append(steps[1:] != steps[:-1], True)
    return Points(steps[last_of_step], values[last_of_step])
