"""Scores of verdicts and of single measures: shares with Wilson intervals, AUROC with bootstrap ones.

It knows rows and numbers, not what they are about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.records import Row
from opdcore.lab.record import accuracy_of

RESAMPLES = 2000


def share(judged: Sequence[bool]) -> dict[str, float | int] | None:
    """Share of what is true with its 95 % Wilson interval; None of nothing."""
    if not judged:
        return None
    found = accuracy_of(judged)
    return {"value": _short(found.value), "low": _short(found.low), "high": _short(found.high), "n": found.n}  # fmt: skip


def macro(rows: Sequence[Row], *, by: str, right: Callable[[Row], bool]) -> dict[str, Any]:
    """Mean over groups of the share that is right, beside the plain share with its interval."""
    groups = sorted({row[by] for row in rows})
    shares = [fmean(right(row) for row in rows if row[by] == group) for group in groups]
    return {"macro": _short(fmean(shares)), **(share([right(row) for row in rows]) or {})}


def counted(values: Sequence[str]) -> dict[str, int]:
    """How often each value is there, the most frequent first."""
    return dict(Counter(values).most_common())


def ranked(rows: Sequence[Row], predictors: Mapping[str, int]) -> list[dict[str, Any]]:
    """Each measure's AUROC for success, with its 95 % bootstrap interval by row; best first."""
    found = [
        entry for key, sign in predictors.items() if (entry := _ranked(rows, key, sign)) is not None
    ]
    return sorted(found, key=lambda entry: -entry["auroc"])


def _ranked(rows: Sequence[Row], key: str, sign: int) -> dict[str, Any] | None:
    known = [row for row in rows if row["measures"][key] is not None]
    values = np.array([sign * row["measures"][key] for row in known])
    truth = np.array([row["succeeded"] for row in known], dtype=bool)
    if truth.all() or not truth.any():
        return None
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(known), size=len(known)) for _ in range(RESAMPLES)]
    again = [auroc(values[i], truth[i]) for i in drawn if truth[i].any() and not truth[i].all()]
    low, high = np.percentile(again, [2.5, 97.5])
    return {
        "measure": key,
        "auroc": _short(auroc(values, truth)),
        "low": _short(low),
        "high": _short(high),
        "triples": len(known),
    }


def auroc(values: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """Chance that a true one's value is above a false one's; ties count half."""
    differences = values[truth][:, None] - values[~truth][None, :]
    return float((differences > 0).mean() + 0.5 * (differences == 0).mean())


def _short(value: float) -> float:
    return float(f"{value:.4g}")
