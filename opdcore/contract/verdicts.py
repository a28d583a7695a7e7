"""Verdicts: stable codes for why a run will work or not, and the evidence behind one.

It knows only names and numbers; what decides them is elsewhere.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from opdcore.contract.document import Document

Go = Literal["go", "no_go", "undecided"]
Confidence = Literal["low", "medium", "high"]


class VerdictKind(NamedTuple):
    """What a code stands for: whether to go, and its meaning in a few words."""

    go: Go
    meaning: str


BEFORE: dict[str, VerdictKind] = {
    "INVALID_SETUP": VerdictKind("no_go", "Token ids mean different things on the two sides."),
    "OPSD_INSTANCE_PI": VerdictKind("no_go", "The teacher's privileged text differs per prompt."),
    "STUDENT_MALFORMED": VerdictKind("no_go", "The student's rollouts are garbled or endless."),
    "REGRESSION_RISK": VerdictKind("no_go", "The teacher is no better than the student."),
    "PATTERN_MISMATCH": VerdictKind("no_go", "Teacher and student think in different ways."),
    "NO_NEW_KNOWLEDGE": VerdictKind("no_go", "The teacher brings nothing that the student lacks."),
    "HORIZON_RISK": VerdictKind("undecided", "The teacher's signal fades within long responses."),
    "BAD_OBJECTIVE": VerdictKind("no_go", "The objective is known to collapse."),
    "GO": VerdictKind("go", "Nothing speaks against the run."),
}

DURING: dict[str, VerdictKind] = {
    "HEALTHY": VerdictKind("go", "Alignment rises as it does in successful runs."),
    "STALLED_NO_SIGNAL": VerdictKind("no_go", "Loss and gradient were small from the start."),
    "STALLED_MISMATCH": VerdictKind("no_go", "Overlap stays low and the loss stays large."),
    "OVERWRITE": VerdictKind("no_go", "Accuracy falls while alignment improves."),
    "DEPTH_COLLAPSE": VerdictKind("no_go", "Late positions decay, and the decay moves forward."),
    "REPETITION_COLLAPSE": VerdictKind("no_go", "Rollouts repeat themselves until they are cut."),
    "BIASED_TOPK": VerdictKind("no_go", "The truncated objective pushes mass into the tail."),
    "ENTROPY_COLLAPSE_RISK": VerdictKind("undecided", "The student grows far too certain."),
    "AGREEMENT_TRAP": VerdictKind("undecided", "The teacher agrees with wrong rollouts."),
    "TOP1_INSTABILITY": VerdictKind("undecided", "With k = 1 the signal spikes."),
    "MODE_HACKING": VerdictKind("no_go", "The student emits control tokens of the teacher."),
    "HEAVY_TAIL_REWARD": VerdictKind("undecided", "A few tokens dominate the reward."),
}

VERDICTS = BEFORE | DURING


class Evidence(Document):
    """One row of evidence: a measured value beside what it is compared with."""

    metric: str = Field(description="Key of the metric table, or of the probe's.")
    value: float | None = Field(description="What was measured; null where undefined.")
    reference: float | None = Field(default=None, description="A control or a published figure.")
    low: float | None = Field(default=None, description="Lower 95 % bound of the value.")
    high: float | None = Field(default=None, description="Upper 95 % bound of the value.")
    step: int | None = Field(default=None, ge=0, description="Step in question, for the chart.")


class Verdict(Document):
    """The outcome of a diagnosis or of the monitor."""

    code: str = Field(description="A key of the verdict table.")
    go: Go = Field(description="Whether to start or go on.")
    confidence: Confidence = Field(description="How far independent metrics agree.")
    evidence: tuple[Evidence, ...] = Field(default=(), description="What it rests on.")
    explanation: str = Field(description="Two sentences in plain words.")
