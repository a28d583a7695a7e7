"""Intervals by prompt: the mean of per-prompt values and how far chance may have moved it.

Prompts are drawn with replacement, always with the same seed; what varies within a prompt varies with
it. It knows numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from opdcore.contract.outcome import RESAMPLES
from opdcore.contract.probe import Measure

Values = NDArray[np.float64]

LEVEL = 0.95
# Prompts drawn at once, which bounds the memory of a large probe.
_DRAWN_AT_ONCE = 4_000_000
# Pairs of a correct and an incorrect rollout grow with the square of the prompts.
_AUROC_PROMPTS = 2048


def mean(
    values: Sequence[float | None], *, level: float = LEVEL, span: tuple[float, float] | None = None
) -> Measure:
    """The mean of the defined values, one a prompt, with its percentile bootstrap interval.

    `span` holds what the values of a rate can be: where all prompts say the same of one, the interval
    still reaches -ln((1 - level) / 2) / n from it, since n equal prompts do not prove a rate: the rule
    of three, for two sides.
    """
    defined = np.array([value for value in values if value is not None], dtype=float)
    if not defined.size:
        return Measure(value=None, prompts=0)
    centre = float(defined.mean())
    drawn = np.concatenate([defined[rows].mean(-1) for rows in _draws(defined.size)])
    low, high = np.quantile(drawn, _tails(level)).tolist()
    if span is not None and low == high:
        reach = math.log(2 / (1 - level)) / defined.size
        low, high = max(span[0], centre - reach), min(span[1], centre + reach)
    return Measure(value=centre, low=low, high=high, prompts=defined.size)


def auroc(scores: Mapping[int, Sequence[tuple[float, bool]]], *, level: float = LEVEL) -> Measure:
    """Chance that a correct rollout scores higher than an incorrect one, over all pairs of them.

    `scores` gives (score, correct) of each rollout by prompt; a tie counts half.
    """
    prompts = [pairs for pairs in scores.values() if pairs][:_AUROC_PROMPTS]
    wins, right, wrong = _wins(prompts)
    if not (right.sum() and wrong.sum()):
        return Measure(value=None, prompts=len(prompts))
    weights = np.concatenate([_counts(rows, len(prompts)) for rows in _draws(len(prompts))])
    pairs = (weights @ right) * (weights @ wrong)
    drawn = np.einsum("ri,ij,rj->r", weights, wins, weights, optimize=True)[pairs > 0]
    low, high = np.quantile(drawn / pairs[pairs > 0], _tails(level)).tolist()
    value = float(wins.sum() / (right.sum() * wrong.sum()))
    return Measure(value=value, low=min(low, value), high=max(high, value), prompts=len(prompts))


def _wins(prompts: Sequence[Sequence[tuple[float, bool]]]) -> tuple[Values, Values, Values]:
    """Pairs that the correct rollouts of prompt i win against the incorrect ones of j; their numbers."""
    n = len(prompts)
    rows = [(score, place, correct) for place, row in enumerate(prompts) for score, correct in row]
    right = np.array([(score, place) for score, place, correct in rows if correct]).reshape(-1, 2)
    wrong = np.array([(score, place) for score, place, correct in rows if not correct]).reshape(
        -1, 2
    )
    wins = np.zeros((n, n))
    for score, place in right:
        won = (score > wrong[:, 0]) + 0.5 * (score == wrong[:, 0])
        wins[int(place)] += np.bincount(wrong[:, 1].astype(int), weights=won, minlength=n)
    return wins, _per_prompt(right, n), _per_prompt(wrong, n)


def _per_prompt(rows: Values, prompts: int) -> Values:
    return np.bincount(rows[:, 1].astype(int), minlength=prompts).astype(float)


def _draws(prompts: int) -> Iterator[NDArray[np.int64]]:
    """Blocks (rows, prompts) of prompts drawn with replacement, RESAMPLES rows in all."""
    rng = np.random.default_rng(0)
    height = max(1, min(RESAMPLES, _DRAWN_AT_ONCE // prompts))
    for start in range(0, RESAMPLES, height):
        yield rng.integers(prompts, size=(min(height, RESAMPLES - start), prompts))


def _counts(rows: NDArray[np.int64], prompts: int) -> Values:
    """How often each prompt was drawn in each row."""
    offset = np.arange(len(rows))[:, None] * prompts
    counts = np.bincount((rows + offset).ravel(), minlength=rows.shape[0] * prompts)
    return counts.reshape(len(rows), prompts).astype(float)


def _tails(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]
