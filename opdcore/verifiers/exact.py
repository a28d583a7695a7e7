"""Grades by equality of text, blanks normalised. It knows nothing of numbers or of mathematics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opdcore.verifiers.grading import (
    NO_ANSWER,
    NO_REFERENCE,
    Attempt,
    Grade,
    final_line,
    marked_answer,
)


@dataclass(frozen=True)
class Exact:
    """Correct where the marked answer, or else the final line, equals the reference answer."""

    name: str = "exact"

    def grade(self, items: Sequence[Attempt]) -> list[Grade]:
        return [_grade(item) for item in items]


def _grade(item: Attempt) -> Grade:
    if item.answer is None:
        return Grade(None, NO_REFERENCE)
    given = marked_answer(item.response) or final_line(item.response)
    if given is None:
        return Grade(False, NO_ANSWER)
    wanted = marked_answer(item.answer) or item.answer
    if given.split() == wanted.split():
        return Grade(True, None)
    return Grade(False, f"the answer is {given[:80]!r}")
