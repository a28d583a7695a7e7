"""A teacher in a job: which prompts it scores, how much it says there, and what it alone reads.

A privileged self-teacher is the student itself under a text that the student does not see (2605.11182).
It knows no other teacher.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from opdcore.contract.document import Document
from opdcore.contract.participant import Participant
from opdcore.contract.scores import Scores
from opdcore.contract.serving import ServedTeacher

PROMPT, PRIVILEGED = "{prompt}", "{privileged}"


class Privileged(Document):
    """Text that the teacher reads and the student does not."""

    source: Literal["rule", "prompt"] = Field(
        description="rule: one text for every prompt, which a student can learn. prompt: each "
        "prompt's own privileged text, which a student cannot know: it learns what is likely under "
        "all of them."
    )
    rule: str | None = Field(default=None, min_length=1, description="The text of source rule.")
    form: str = Field(
        default=f"{PRIVILEGED}\n\n{PROMPT}",
        max_length=4000,
        description="What the teacher reads in place of a raw prompt, or of a chat's last user turn.",
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.source == "rule") != (self.rule is not None):
            raise ValueError("give rule with source rule, and only there")
        if self.form.count(PROMPT) != 1 or self.form.count(PRIVILEGED) != 1:
            raise ValueError(f"form must name {PROMPT} and {PRIVILEGED} once each")
        return self


class Teaching(Document):
    """How a model teaches: whom it scores, beside whom, under what text, and with which weights."""

    weight: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="How much it says beside the other teachers of a prompt.",
    )
    tags: tuple[str, ...] = Field(
        default=(), description="Prompts with one of these tags are scored by it; empty: all."
    )
    privileged: Privileged | None = Field(
        default=None, description="Text that it alone reads; null: it reads what the student reads."
    )
    follows: Literal["frozen", "average", "student"] = Field(
        default="frozen",
        description="frozen: its weights stay. student: its weights are the student's at every step. "
        "average: their moving average. The last two need the student's own model.",
    )
    average_decay: float = Field(
        default=0.99,
        ge=0,
        lt=1,
        description="Of follows average: what a step leaves of the average before it.",
    )

    @model_validator(mode="after")
    def _says_something_new(self) -> Self:
        if self.follows == "student" and self.privileged is None:
            raise ValueError(
                "a teacher that is the student needs privileged text to differ from it"
            )
        return self


class Teacher(Participant, Teaching):
    """One of the pair's teachers."""

    served: ServedTeacher | None = Field(
        default=None,
        description="The server that it is behind; its model's folder then gives tokens and templates. "
        "null: it is loaded by the job.",
    )
    scores: Scores | None = Field(
        default=None,
        description="Where its scores are kept or replayed from; null: it is asked for every one, and none "
        "is kept.",
    )

    @property
    def is_replayed(self) -> bool:
        """Whether the record stands in for it."""
        return self.scores is not None and self.scores.mode == "replay"

    @property
    def tells_top_k(self) -> bool:
        """Whether only its most probable tokens and the sampled one are known."""
        return self.served is not None or self.scores is not None

    @property
    def student_top_k(self) -> bool:
        """Whether it is behind a server that tells the student's top k, which no record keeps."""
        return self.served is not None and self.served.student_top_k and self.scores is None
