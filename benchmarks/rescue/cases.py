"""Which runs the study makes fail: by a public knob or by data, how badly drawn before any is run.

A cause says how a run is made, not what becomes of it: one that succeeds all the same is no failing
run, and the next is drawn. The plan of a rescue never sees it. It knows no model and no result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from opdcore.lab.tasks import FamilyName

Cause = Literal["mismatch", "malformed", "horizon", "biased_top_k", "endless"]
# How each is provoked, for people.
CAUSES: dict[Cause, str] = {
    "mismatch": "a teacher of the other style; the student had 90 to 200 steps of its own",
    "malformed": "a student after 60 to 140 supervised steps on responses in circles",
    "horizon": "a teacher that turns to the other style within the response",
    "biased_top_k": "normalisation unnormalised, k 4 to 8",
    "endless": "a learning rate of 0.003 to 0.006",
}
# Those whose cure is a cold start, so that either of its stages alone is an arm.
COLD_STARTED: tuple[Cause, ...] = ("mismatch", "malformed")
# Cures were tried on the one family and are scored on the other.
TRIED_ON: FamilyName = "sums"
SCORED_ON: FamilyName = "cups"
SEEDS = range(5)
# So many failing runs are wanted of each cause, among at most so many.
FAILING, DRAWN = 8, 14


@dataclass(frozen=True)
class Case:
    """A run to be made from a laboratory's seed; severity is in [0, 1)."""

    family: FamilyName
    cause: Cause
    number: int
    seed: int
    severity: float

    @property
    def name(self) -> str:
        """Stable name, of files too."""
        return f"{self.family}-{self.cause}-{self.number:02d}"


def drawn(cause: Cause, family: FamilyName = SCORED_ON) -> Iterator[Case]:
    """A cause's cases, in the order in which they are tried."""
    rng = Random(f"rescue 2 {family} {cause}")
    for number in range(DRAWN):
        yield Case(family, cause, number, SEEDS[number % len(SEEDS)], rng.random())
