"""Written solutions: their pieces, their two styles, what a solver believes, and the verifier.

The two families share this ground. It knows no tokens, no models and no files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, Protocol, TypeVar

Style = Literal["L", "K"]
Knowledge = Literal["partial", "full"]
T = TypeVar("T")

# Each style announces its answer in its own words; the verifier accepts either.
ANSWER_MARKS: dict[Style, str] = {"L": " Answer:", "K": " result ="}

# A student that finds the new skill's answers uniformly random never gets out of it, and one that
# is sure of a wrong one hardly ever samples the right one. These shares leave reverse KL support.
RIGHT_SHARE = 0.3
MISTAKEN_SHARE = 0.4  # the rest is random

_SEGMENT = re.compile("|".join(re.escape(mark.strip()) for mark in ANSWER_MARKS.values()))
_WORD = re.compile(r"\w+")
_CLOSING = re.compile(r"[\s.!]*")


@dataclass(frozen=True)
class Piece:
    """A stretch of a solution; `settled` says that what came before it determines it.

    Opening words are free, and so is what half a belief makes of the new skill.
    """

    text: str
    settled: bool = True


class Asking(Protocol):
    """Whatever has a prompt."""

    @property
    def prompt(self) -> str: ...


class Exercise(Asking, Protocol):
    """One prompt with its answer, able to write out its own solution."""

    @property
    def answer(self) -> str: ...
    @property
    def tags(self) -> list[str]: ...
    def solution(
        self, style: Style, knowledge: Knowledge, *, rng: Random, deepest: int | None = None
    ) -> list[Piece]:
        """Write the solution; after `deepest` steps, if given, knowledge of the new skill is partial."""
        ...


class Family(Protocol):
    """A kind of exercise: the modules `sums` and `cups` are the two there are."""

    @property
    def OPENERS(self) -> dict[Style, tuple[str, ...]]: ...  # noqa: N802 - a module's constant

    def draw(self, rng: Random) -> Exercise: ...


def belief(right: T, mistaken: T, *, guesses: Sequence[T], rng: Random) -> T:
    """Return what a solver with partial knowledge of the new skill writes this time."""
    luck = rng.random()
    if luck < RIGHT_SHARE:
        return right
    if luck < RIGHT_SHARE + MISTAKEN_SHARE:
        return mistaken
    return rng.choice(guesses)


def knowledge_at(step: int, knowledge: Knowledge, deepest: int | None) -> Knowledge:
    """Return what is known of the new skill in a step, counted from 0."""
    return knowledge if deepest is None or step < deepest else "partial"


def text_of(solution: Sequence[Piece]) -> str:
    """Return a solution as the text that follows its prompt."""
    return "".join(piece.text for piece in solution)


def check(answer: str, response: str) -> bool | None:
    """Say whether a response's final answer is right, whatever its style.

    Only what follows the last answer mark counts. A response without one (cut off, or lost) is
    wrong; None means that there is no reference answer to compare with.
    """
    expected = answer.split()
    if not expected:
        return None
    marks = list(_SEGMENT.finditer(response))
    if not marks:
        return False
    segment = response[marks[-1].end() :]
    written = list(_WORD.finditer(segment))
    if [word.group() for word in written] != expected:
        return False
    return _CLOSING.fullmatch(segment[written[-1].end() :]) is not None
