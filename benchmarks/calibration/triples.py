"""Which triples the study makes: kinds of pairs, and how severe each is, drawn before any is run.

It knows no model and no result. A kind says how a pair is made, not what becomes of it: a mild case
of any kind may well succeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from opdcore.contract.probe import Relation
from opdcore.lab.tasks import FamilyName

Kind = Literal["learnable", "mismatch", "nothing_new", "reverse", "horizon"]
KINDS: tuple[Kind, ...] = ("learnable", "mismatch", "nothing_new", "reverse", "horizon")
FITTED_ON: FamilyName = "sums"
SCORED_ON: FamilyName = "cups"
SEEDS = range(5)
TRIPLES_BY_KIND = 14

# What a diagnosis would be right to say of a kind where the run fails. Where it succeeds, that is GO.
RIGHT_CODES: dict[Kind, tuple[str, ...]] = {
    "learnable": ("GO",),
    "mismatch": ("PATTERN_MISMATCH",),
    "nothing_new": ("NO_NEW_KNOWLEDGE", "REGRESSION_RISK"),
    "reverse": ("REGRESSION_RISK", "NO_NEW_KNOWLEDGE"),
    "horizon": ("HORIZON_RISK",),
}
# What a person who registers such a pair would say of its teacher.
RELATIONS: dict[Kind, Relation] = {
    "learnable": "descendant",
    "mismatch": "unrelated",
    "nothing_new": "same_pipeline",
    "reverse": "ancestor",
    "horizon": "descendant",
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
    drawn = {kind: Random(f"severities {family} {kind}") for kind in KINDS}
    return [
        Triple(family, kind, number, SEEDS[number % len(SEEDS)], drawn[kind].random())
        for number in range(TRIPLES_BY_KIND)
        for kind in KINDS
    ]
