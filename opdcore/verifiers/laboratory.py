"""Grades the laboratory's exercises by their own check. It knows no other task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opdcore.lab import solutions
from opdcore.verifiers.grading import NO_REFERENCE, UNREADABLE_REFERENCE, Attempt, Grade


@dataclass(frozen=True)
class Laboratory:
    """Correct where the answer after the last answer mark of either style is the reference's."""

    name: str = "laboratory"

    def grade(self, items: Sequence[Attempt]) -> list[Grade]:
        return [_grade(item) for item in items]


def _grade(item: Attempt) -> Grade:
    if item.answer is None:
        return Grade(None, NO_REFERENCE)
    correct = solutions.check(item.answer, item.response)
    if correct is None:
        return Grade(None, UNREADABLE_REFERENCE)
    return Grade(correct, None if correct else "the final answer is wrong or missing")
