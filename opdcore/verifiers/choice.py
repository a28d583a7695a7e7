"""Grades multiple choice, letters A to E. It knows nothing of the choices' texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from opdcore.verifiers.grading import (
    NO_ANSWER,
    NO_REFERENCE,
    UNREADABLE_REFERENCE,
    Attempt,
    Grade,
    final_line,
    stated_answer,
)

_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_OPENING = r"[\s(\[*$\"'`]*"
# A letter that opens a statement: "B", "(B) Paris", "B. Paris", "**B**", "b", "B because".
_LETTER = re.compile(
    _OPENING + r"(?:(?:option|choice)\s+\(?)?([A-E])(?=$|[\s)\].:,;*$\"'`])", re.IGNORECASE
)
_STRICT = re.compile(_OPENING + r"([A-E])(?=$|[)\].:,;*$\"'`])")
_SEVERAL = re.compile(r"[)\]*]*\s*(?:,|/|&|and\b|or\b)\s*[(\[*]*[A-E](?=$|[)\].:,;*])")
_BRACKETED = re.compile(r"\(([A-E])\)")


@dataclass(frozen=True)
class Choice:
    """Correct where the response settles on the reference's letter and on no other."""

    name: str = "choice"

    def grade(self, items: Sequence[Attempt]) -> list[Grade]:
        return [_grade(item) for item in items]


def _grade(item: Attempt) -> Grade:
    if item.answer is None:
        return Grade(None, NO_REFERENCE)
    wanted = _letter(stated_answer(item.answer) or item.answer)
    if wanted is None:
        return Grade(None, UNREADABLE_REFERENCE)
    given = _chosen(item.response)
    if given is None:
        return Grade(False, NO_ANSWER)
    return Grade(True, None) if given == wanted else Grade(False, f"the choice is {given}")


def _chosen(response: str) -> str | None:
    """The stated letter, or else one that opens the final line, or else the last one in brackets."""
    stated = stated_answer(response)
    if stated is not None:
        return _letter(stated)
    line = final_line(response)
    opening = _STRICT.match(line) if line else None
    if opening:
        return opening.group(1)
    bracketed = _BRACKETED.findall(response)
    return bracketed[-1] if bracketed else None


def _letter(statement: str) -> str | None:
    statement = _WRAPPED.sub(r"\1", statement)
    match = _LETTER.match(statement)
    if match is None or _SEVERAL.match(statement, match.end()):
        return None
    return match.group(1).upper()
