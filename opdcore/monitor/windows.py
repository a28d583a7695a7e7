"""Windows over a run's series: how it began, how it is, how fast and how surely it changes.

Levels are medians, slopes Theil-Sen, noise the median deviation about the slope, so that a few odd
steps move nothing. A value that is missing or not finite is left out. It knows no verdict.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from opdcore.contract.positions import Positions

KEYS = (
    "overlap_ratio", "effective_overlap", "top1_agreement", "overlap_mass_student",
    "overlap_mass_teacher", "student_entropy", "teacher_entropy", "entropy_gap", "reverse_kl",
    "loss", "grad_norm", "token_reward", "response_tokens_mean", "truncation_rate", "repetition_rate", "rollout_accuracy",
    "incorrect_reverse_kl", "control_token_share", "reward_tail_share", "reward_largest",
)  # fmt: skip
CHUNK_KEYS = ("student_entropy", "overlap_ratio")
# A level is the median of so many steps: two odd ones among them do not move it.
LEVEL_STEPS = 5
SHORTEST, LONGEST = 10, 20
# A median deviation times this is a standard deviation, where noise is normal.
SIGMA = 1.4826

T = TypeVar("T")
Row = dict[str, float]
Chunks = dict[str, list[float | None]]


class Accuracy(NamedTuple):
    """An evaluation of the student: accuracy with its 95 % interval."""

    step: int
    value: float
    low: float
    high: float


@dataclass
class Windows:
    """The steps that matter of one stage; `size` is the window's length in steps."""

    size: int
    steps: int
    step: int = 0
    seen: int = 0
    first: list[Row] = field(default_factory=list)
    recent: deque[Row] = field(default_factory=deque)
    first_chunks: list[Chunks] = field(default_factory=list)
    recent_chunks: deque[Chunks] = field(default_factory=deque)
    highest: Row = field(default_factory=dict)
    opening: Accuracy | None = None
    best: Accuracy | None = None
    earlier: Accuracy | None = None
    latest: Accuracy | None = None
    _noise: Row = field(default_factory=dict)

    @classmethod
    def of(cls, steps: int) -> Windows:
        """A tenth of the stage, and never fewer than 10 or more than 20 steps."""
        size = min(LONGEST, max(SHORTEST, steps // 10))
        return cls(
            size=size, steps=steps, recent=deque(maxlen=size), recent_chunks=deque(maxlen=size)
        )

    def add(
        self, step: int, values: Mapping[str, float | None], positions: Positions | None
    ) -> None:
        """Takes a step in."""
        row = {key: value for key in KEYS if (value := finite(values.get(key))) is not None}
        self.step, self.seen = step, self.seen + 1
        self._noise = {}
        self.recent.append(row)
        if len(self.first) < LEVEL_STEPS:
            self.first.append(row)
        if positions is not None:
            self._add_chunks(_counted(positions))
        for key in ("overlap_mass_student", "effective_overlap"):
            level = self.now(key)
            if level is not None:
                self.highest[key] = max(level, self.highest.get(key, level))

    def evaluated(self, accuracy: Accuracy) -> None:
        """Takes an evaluation in."""
        self.opening = self.opening or accuracy
        self.earlier, self.latest = self.latest, accuracy
        if self.best is None or accuracy.value > self.best.value:
            self.best = accuracy

    def lost_accuracy(self) -> bool:
        """Below the best evaluation beyond chance: twice in a row, or below the first one too.

        A run that learns dips now and then, and is back at the next evaluation.
        """
        if self.best is None or self.opening is None or self.latest is None:
            return False
        below_start = self.latest.high < self.opening.low
        again = self.earlier is not None and self.earlier.high < self.best.low
        return self.latest.high < self.best.low and (below_start or again)

    def start(self, key: str) -> float | None:
        """The level at which the stage began."""
        return _level([row[key] for row in self.first if key in row])

    def now(self, key: str) -> float | None:
        """The level of the last steps."""
        return _level([row[key] for row in _last(self.recent) if key in row])

    def values(self, key: str) -> list[float]:
        """The window's values, without those that are missing."""
        return [row[key] for row in self.recent if key in row]

    def change(self, key: str) -> float:
        """Level now minus level at the start; 0 where either is not known."""
        start, now = self.start(key), self.now(key)
        return 0.0 if start is None or now is None else now - start

    def rose(self, key: str, by: float) -> bool:
        """Whether the level is up by more than `by`, and by more than noise explains."""
        change = self.change(key)
        return change > by and change > self.noise(key)

    def fell(self, key: str, by: float) -> bool:
        """Whether the level is down by more than `by`, and by more than noise explains."""
        change = self.change(key)
        return change < -by and change < -self.noise(key)

    def trend(self, key: str) -> float:
        """What the window's Theil-Sen slope adds up to over the window; 0 where that is noise."""
        values = self.values(key)
        if len(values) < SHORTEST:
            return 0.0
        total = theil_sen(values) * (len(values) - 1)
        return total if abs(total) > self.noise(key) else 0.0

    def noise(self, key: str) -> float:
        """Two standard errors of a change of level, from the deviation about the window's slope."""
        if key not in self._noise:
            self._noise[key] = self._deviation(key)
        return self._noise[key]

    def _deviation(self, key: str) -> float:
        values = self.values(key)
        if len(values) < LEVEL_STEPS:
            return math.inf
        slope = theil_sen(values)
        rest = [value - slope * index for index, value in enumerate(values)]
        middle = median(rest)
        spread = SIGMA * median(abs(one - middle) for one in rest)
        # A median's standard error is 1.25 times that of a mean, and a change has two of them.
        return 2 * 1.25 * spread * math.sqrt(2 / LEVEL_STEPS)

    def start_chunk(self, key: str) -> list[float | None]:
        """By chunk, the level at which the stage began."""
        return _by_chunk(self.first_chunks, key)

    def now_chunk(self, key: str) -> list[float | None]:
        """By chunk, the level of the last steps."""
        return _by_chunk(_last(self.recent_chunks), key)

    def older_chunk(self, key: str) -> list[float | None]:
        """By chunk, the level before the last steps, as far back as the window goes."""
        return _by_chunk(list(self.recent_chunks)[:-LEVEL_STEPS][-LEVEL_STEPS:], key)

    def state(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "step": self.step, "seen": self.seen, "first": self.first, "recent": [*self.recent],
            "first_chunks": self.first_chunks, "recent_chunks": [*self.recent_chunks],
            "highest": self.highest, "opening": self.opening, "best": self.best,
            "earlier": self.earlier, "latest": self.latest,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`."""
        self.step, self.seen = state["step"], state["seen"]
        self.first, self.first_chunks = list(state["first"]), list(state["first_chunks"])
        self.recent.extend(state["recent"])
        self.recent_chunks.extend(state["recent_chunks"])
        self.highest = dict(state["highest"])
        for name in ("opening", "best", "earlier", "latest"):
            setattr(self, name, Accuracy(*state[name]) if state.get(name) else None)

    def _add_chunks(self, chunks: Chunks) -> None:
        self.recent_chunks.append(chunks)
        if len(self.first_chunks) < LEVEL_STEPS:
            self.first_chunks.append(chunks)


def theil_sen(values: Sequence[float]) -> float:
    """The median of the slopes between all pairs of steps, per step."""
    if len(values) < 2:
        return 0.0
    earlier, later = _pairs(len(values))
    found = np.asarray(values)
    return float(np.median((found[later] - found[earlier]) / (later - earlier)))


def finite(value: float | None) -> float | None:
    """The value, or None where there is none to reckon with."""
    return value if value is not None and math.isfinite(value) else None


_PAIRS: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}


def _pairs(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if count not in _PAIRS:
        rows = np.array(list(combinations(range(count), 2)))
        _PAIRS[count] = rows[:, 0], rows[:, 1]
    return _PAIRS[count]


def _level(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _last(window: deque[T]) -> list[T]:
    return list(window)[-LEVEL_STEPS:]


def _counted(positions: Positions) -> Chunks:
    """Each chunk's means where enough rollouts reached it."""
    return {
        key: [finite(value) for value in positions.reached(key)]
        for key in CHUNK_KEYS
        if key in positions.values
    }


def _by_chunk(steps: Sequence[Chunks], key: str) -> list[float | None]:
    """Levels by chunk, where most of the steps reached it."""
    columns = zip(*(one[key] for one in steps if key in one), strict=True)
    known = [[value for value in column if value is not None] for column in columns]
    return [_level(values) if 2 * len(values) > len(steps) else None for values in known]
