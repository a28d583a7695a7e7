"""A selection: which prompts are kept for distillation, which are not, and why.

It is one file in the run's folder, and what people browse. It knows names and numbers; how the choice
is made is decided elsewhere.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field

from opdcore.contract.document import Document
from opdcore.contract.select_prompts import Strategy

Source = Literal["train", "teacher_content", "outside"]
Reason = Literal[
    "kept", "no_gap", "smaller_gap", "ungraded", "higher_kl", "unmeasured", "not_drawn",
    "duplicate", "near_duplicate", "beyond_outside_share",
]  # fmt: skip

# What became of a prompt, for people.
REASONS: dict[Reason, str] = {
    "kept": "Kept",
    "no_gap": "The teacher is not right more often",
    "smaller_gap": "Others have a larger gap",
    "ungraded": "The verifier graded none of a side's answers",
    "higher_kl": "Others have a lower divergence",
    "unmeasured": "Its divergence is not finite",
    "not_drawn": "Not drawn",
    "duplicate": "Equal to one before",
    "near_duplicate": "Nearly equal to one before",
    "beyond_outside_share": "More than the outside share",
}


class Choice(Document):
    """One candidate and what became of it."""

    row: int = Field(ge=0, description="Row among all the run's prompts, from 0.")
    source: Source = Field(description="The prompt set's role.")
    source_row: int = Field(ge=0, description="Row within that set, from 0.")
    text: str = Field(description="How the prompt begins.")
    reason: Reason = Field(description="kept, or why not.")
    measure: float | None = Field(
        default=None, description="What it was ranked by: accuracy gap or reverse KL in nats."
    )
    student_accuracy: float | None = Field(default=None, description="avg@n; null if not asked.")
    teacher_accuracy: float | None = Field(default=None, description="avg@n; null if not asked.")
    like_row: int | None = Field(default=None, description="The earlier row that it repeats.")


class Selection(Document):
    """All candidates of one choice: kept ones first, best first."""

    version: Literal[1] = Field(default=1, description="Version of this format.")
    strategy: Strategy = Field(description="How was chosen.")
    steps: int = Field(ge=0, description="Distillation steps done since the stage; 0 at the stage.")
    choices: tuple[Choice, ...] = Field(min_length=1, description="Every candidate.")
    student_tokens: int = Field(
        default=0, ge=0, description="Tokens that the student wrote for it."
    )
    teacher_tokens: int = Field(
        default=0, ge=0, description="Tokens that the teacher wrote for it."
    )

    @property
    def kept(self) -> list[int]:
        """Rows to draw from, best first."""
        return [one.row for one in self.choices if one.reason == "kept"]

    @property
    def counts(self) -> dict[Reason, int]:
        """How many candidates each reason has, kept ones first."""
        found = Counter(one.reason for one in self.choices)
        return {reason: found[reason] for reason in REASONS if found[reason]}
