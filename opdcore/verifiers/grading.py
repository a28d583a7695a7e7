"""What is graded and what a grade is: attempts, grades, and where a response states its answer.

It knows no verifier, no stage and no prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# "Answer: 4", "**Answer:** 4", "the answer is 4", "The answer is: 4", and GSM8K's "#### 4".
_MARKER = re.compile(r"\banswer(?:\s+is)?\**\s*:\**|\banswer\s+is\b|####", re.IGNORECASE)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")

NO_REFERENCE = "the prompt has no reference answer"
NO_ANSWER = "the response states no answer"
UNREADABLE_REFERENCE = "the reference answer could not be read"


@dataclass(frozen=True)
class Attempt:
    """A response, and what its prompt says of it: question, reference answer (None: none), tests."""

    response: str
    answer: str | None
    tests: tuple[str, ...] = ()
    question: str = ""


@dataclass(frozen=True)
class Grade:
    """A verifier's finding; `correct` is None where it abstained, and callers count those."""

    correct: bool | None
    reason: str | None


class Verifier(Protocol):
    """Anything that grades responses against reference answers, in order, one grade an attempt."""

    @property
    def name(self) -> str: ...
    def grade(self, items: Sequence[Attempt]) -> list[Grade]: ...


def marked_answer(text: str) -> str | None:
    """The text after the last marker, up to the end of its line; None where no marker has any.

    A marker at the end of a line announces the next line that is not blank.
    """
    marks = list(_MARKER.finditer(text))
    if not marks:
        return None
    return first_line(text[marks[-1].end() :])


def boxed_answer(text: str) -> str | None:
    r"""The content of the last \boxed{...}, braces matched; None where there is none or no end."""
    boxes = list(_BOXED.finditer(text))
    if not boxes:
        return None
    start, depth = boxes[-1].end(), 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position].strip()
    return None


def stated_answer(text: str) -> str | None:
    r"""What the text itself marks as its answer: \boxed{...}, or else what follows a marker."""
    return boxed_answer(text) or marked_answer(text)


def first_line(text: str) -> str | None:
    """The first line that is not blank, stripped."""
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


def final_line(text: str) -> str | None:
    """The last line that is not blank, stripped."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), None)
