"""Which triples the study makes: kinds of pairs, and how severe each is, drawn before any is run.

It knows no model and no result. A kind says how a pair is made, not what becomes of it: a mild case
of any kind may well succeed. Two sets stand beside the scored ones: more runs that should be healthy,
for the monitor's false alarms, and attempts at the papers' central failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from opdcore.contract.probe import Relation
from opdcore.lab.tasks import FamilyName

Kind = Literal["learnable", "mismatch", "nothing_new", "reverse", "horizon", "same_pipeline"]
KINDS: tuple[Kind, ...] = ("learnable", "mismatch", "nothing_new", "reverse", "horizon")
FITTED_ON: FamilyName = "sums"
SCORED_ON: FamilyName = "cups"
SEEDS = range(5)
# Of each kind: thresholds need fewer than scores do.
TRIPLES = {FITTED_ON: 6, SCORED_ON: 14}
MORE_HEALTHY = 48
ATTEMPTS = 6

# What a diagnosis would be right to say of a kind where the run fails. Where it succeeds, that is GO.
RIGHT_CODES: dict[Kind, tuple[str, ...]] = {
    "learnable": ("GO",),
    "mismatch": ("PATTERN_MISMATCH",),
    "nothing_new": ("NO_NEW_KNOWLEDGE", "REGRESSION_RISK"),
    "reverse": ("REGRESSION_RISK", "NO_NEW_KNOWLEDGE"),
    "horizon": ("HORIZON_RISK",),
    "same_pipeline": ("NO_NEW_KNOWLEDGE",),
}
# What a person who registers such a pair would say of its teacher.
RELATIONS: dict[Kind, Relation] = {
    "learnable": "descendant",
    "mismatch": "unrelated",
    "nothing_new": "same_pipeline",
    "reverse": "ancestor",
    "horizon": "unrelated",
    "same_pipeline": "same_pipeline",
}


@dataclass(frozen=True)
class Triple:
    """A pair to be made from a laboratory's seed; severity is in [0, 1)."""

    family: FamilyName
    kind: Kind
    number: int
    seed: int
    severity: float

    @property
    def name(self) -> str:
        """Stable name, of files too."""
        return f"{self.family}-{self.kind}-{self.number:02d}"


def plan(family: FamilyName) -> Sequence[Triple]:
    """All triples of a family; the kinds take turns, so that a study cut short has some of each."""
    drawn = [_drawn(family, kind, TRIPLES[family]) for kind in KINDS]
    return [triple for turn in zip(*drawn, strict=True) for triple in turn]


def more_healthy(family: FamilyName) -> Sequence[Triple]:
    """Learnable triples beyond the plan's, which are run and not probed."""
    return _drawn(family, "learnable", TRIPLES[family] + MORE_HEALTHY)[TRIPLES[family] :]


def attempts(family: FamilyName) -> Sequence[Triple]:
    """Teachers of the student's own data and recipe that should score clearly higher."""
    return _drawn(family, "same_pipeline", ATTEMPTS)


def _drawn(family: FamilyName, kind: Kind, count: int) -> list[Triple]:
    rng = Random(f"severities {family} {kind}")
    return [
        Triple(family, kind, number, SEEDS[number % len(SEEDS)], rng.random())
        for number in range(count)
    ]
