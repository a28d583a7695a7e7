"""The outcome: one function says what success is, everywhere.

A run is judged on the same held-out prompts before and after: the gain must be above chance and
recover at least half of the gap to the teacher. It knows per-prompt numbers and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from opdcore.contract.document import Document

OutcomeCode = Literal["success", "partial", "no_gain", "regressed", "inconclusive", "unmeasured"]
Scores = Sequence[float | None]

RESAMPLES = 2000
SUCCESS_RECOVERY = 0.5
# Two-sided 5 % level with 80 % power: z(0.975) + z(0.8).
DETECTABLE_STANDARD_ERRORS = 2.8


class Interval(NamedTuple):
    """A mean with its 95 % bootstrap interval by prompt."""

    value: float
    low: float
    high: float


class Outcome(Document):
    """What became of a run, with the numbers that say so."""

    code: OutcomeCode = Field(description="What became of it.")
    explanation: str = Field(description="Why, in plain words.")
    before: float | None = Field(default=None, description="Target metric before the run.")
    after: float | None = Field(default=None, description="Target metric after the run.")
    teacher: float | None = Field(default=None, description="Target metric of the teacher.")
    gain: float | None = Field(default=None, description="after - before, in better direction.")
    gain_low: float | None = Field(default=None, description="Lower 95 % bound of the gain.")
    gain_high: float | None = Field(default=None, description="Upper 95 % bound of the gain.")
    recovery: float | None = Field(
        default=None, description="gain / (teacher - before); null where that gap includes 0."
    )
    recovery_low: float | None = Field(default=None, description="Lower 95 % bound of recovery.")
    recovery_high: float | None = Field(default=None, description="Upper 95 % bound of recovery.")
    smallest_detectable_gain: float | None = Field(
        default=None, description="Gain that this held-out set shows with 80 % power."
    )
    prompts: int = Field(default=0, ge=0, description="Held-out prompts graded each time.")


def mean_interval(scores: Scores) -> Interval | None:
    """Mean of the defined scores with a percentile bootstrap interval by prompt; None if none."""
    defined = np.array([score for score in scores if score is not None], dtype=float)
    return _interval(defined) if defined.size else None


def judge(
    before: Scores,
    after: Scores,
    teacher: Scores | None = None,
    *,
    better: Literal["up", "down"] = "up",
    guards: dict[str, tuple[Scores, Scores]] | None = None,
) -> Outcome:
    """Judges a run on paired per-prompt scores of the target metric (None where abstained).

    `guards` maps a metric's name to its scores before and after, signed so that more is better; a
    guard fell where the upper bound of its change is below 0. Scores are paired by position, so
    sequences of unequal length raise ValueError.
    """
    sign = 1.0 if better == "up" else -1.0
    rows = _paired(before, after, teacher)
    if rows.shape[0] == 0:
        return Outcome(code="unmeasured", explanation="No held-out prompt was graded each time.")
    start, end = sign * rows[:, 0], sign * rows[:, 1]
    gain = _interval(end - start)
    numbers = {
        "before": float(rows[:, 0].mean()),
        "after": float(rows[:, 1].mean()),
        "gain": gain.value,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "smallest_detectable_gain": _detectable(end - start),
        "prompts": rows.shape[0],
    }
    gap, recovery = None, None
    if teacher is not None:
        numbers["teacher"] = float(rows[:, 2].mean())
        gap = _interval(sign * rows[:, 2] - start)
        recovery = _recovery(end - start, sign * rows[:, 2] - start) if _off_zero(gap) else None
    if recovery is not None:
        numbers |= dict(zip(("recovery", "recovery_low", "recovery_high"), recovery, strict=True))
    code, why = _code(gain, gap, recovery, numbers["smallest_detectable_gain"])
    fallen = _fallen(guards or {})
    if fallen and code in ("success", "partial"):
        code, why = "regressed", f"The target improved, but a guard metric fell: {fallen}."
    return Outcome(code=code, explanation=why, **numbers)


def _paired(before: Scores, after: Scores, teacher: Scores | None) -> NDArray[np.float64]:
    columns = [before, after] if teacher is None else [before, after, teacher]
    rows = [row for row in zip(*columns, strict=True) if None not in row]
    return np.array(rows, dtype=float).reshape(len(rows), len(columns))


def _resampled_means(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """(RESAMPLES, columns) means of rows drawn with replacement, always with the same seed."""
    rng = np.random.default_rng(0)
    n = columns.shape[0]
    weights = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    return np.asarray(weights @ columns)


def _interval(values: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(_resampled_means(values[:, None])[:, 0], [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def _off_zero(interval: Interval) -> bool:
    return interval.low > 0 or interval.high < 0


def _recovery(gain: NDArray[np.float64], gap: NDArray[np.float64]) -> Interval:
    means = _resampled_means(np.stack([gain, gap], axis=1))
    means = means[means[:, 1] != 0]
    low, high = np.quantile(means[:, 0] / means[:, 1], [0.025, 0.975])
    return Interval(float(gain.mean() / gap.mean()), float(low), float(high))


def _detectable(differences: NDArray[np.float64]) -> float | None:
    """2.8 standard errors, and never less than 3 / n, since n equal prompts do not prove a rate."""
    n = differences.size
    if n < 2:
        return None
    standard_error = differences.std(ddof=1) / np.sqrt(n)
    return float(max(DETECTABLE_STANDARD_ERRORS * standard_error, 3 / n))


def _code(
    gain: Interval, gap: Interval | None, recovery: Interval | None, detectable: float | None
) -> tuple[OutcomeCode, str]:
    if gain.high < 0:
        return "regressed", f"The target metric got worse by {-gain.value:.3f}, beyond chance."
    if gap is not None and gap.high < 0:
        return "no_gain", "The teacher does worse than the student did; there is no gap to close."
    if gain.low > 0 and recovery is not None and recovery.value >= SUCCESS_RECOVERY:
        return "success", f"The student recovered {recovery.value:.0%} of the gap to its teacher."
    if gain.low > 0 and recovery is not None:
        return "partial", f"A gain beyond chance, but only {recovery.value:.0%} of the gap."
    if gain.low > 0:
        return "partial", "A gain beyond chance; the gap to the teacher is unknown or within noise."
    return _without_gain(gap, detectable)


def _without_gain(gap: Interval | None, detectable: float | None) -> tuple[OutcomeCode, str]:
    needed = SUCCESS_RECOVERY * gap.value if gap is not None else None
    if detectable is None:
        return "inconclusive", "One held-out prompt cannot show a gain; use more."
    if needed is None or detectable > needed:
        wanted = "unknown" if needed is None else f"{needed:.3f}"
        why = (
            f"No gain was seen, but this held-out set shows only gains above {detectable:.3f}, and "
            f"half of the gap to the teacher is {wanted}; use more held-out prompts."
        )
        return "inconclusive", why
    return "no_gain", "No gain beyond chance, on a held-out set large enough to show one."


def _fallen(guards: dict[str, tuple[Scores, Scores]]) -> str:
    names = []
    for name, (before, after) in guards.items():
        rows = _paired(before, after, None)
        if rows.shape[0] and _interval(rows[:, 1] - rows[:, 0]).high < 0:
            names.append(name)
    return ", ".join(names)
