"""The family `sums`: sums modulo 5 of one to four terms; the new skill is `times`.

    Find the sum: a 4 plus 3; b 0 times 1.
    L:  So a: 4 plus 3 is 2, 0 plus 2 is 2. Next b: 0 times 1 is 0, 2 plus 0 is 2. Answer: 2
    K:  take a add 3 to 4 yields 2/ add 2 to 0 yields 2~ ... result = 2

Both styles write the running sum out at every step: without it a tiny model never leaves its
plateau. They share operands and digits only; words, order and marks differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from opdcore.lab.solutions import ANSWER_MARKS, Knowledge, Piece, Style, belief, knowledge_at

MODULUS = 5
NAMES = "abcd"
KNOWN = ("plus", "minus")
NEW_SKILL = "times"
MISTAKEN_FOR = "plus"
NEW_SKILL_SHARE = 0.5

# Operator and preposition of style K, which puts the operator first and swaps the operands.
PREFIX = {"plus": ("add", "to"), "minus": ("remove", "from"), "times": ("scale", "by")}

ENDS: dict[Style, str] = {"L": ".", "K": "~"}
OPENERS: dict[Style, tuple[str, ...]] = {
    "L": (
        *("So", "Next", "Then", "Now", "After", "Here"),
        *("Well", "First", "Again", "Also", "Further", "Thus"),
    ),
    "K": (
        *("take", "pick", "grab", "use", "get", "see"),
        *("handle", "treat", "visit", "solve", "open", "begin"),
    ),
}


@dataclass(frozen=True)
class Term:
    """One `left operator right`, with digits below the modulus."""

    left: int
    operator: str
    right: int

    def value(self) -> int:
        return apply(self.operator, self.left, self.right)


@dataclass(frozen=True)
class Sum:
    """An exercise: add up the values of the terms."""

    terms: tuple[Term, ...]

    @property
    def prompt(self) -> str:
        named = zip(NAMES, self.terms, strict=False)
        terms = "; ".join(f"{name} {t.left} {t.operator} {t.right}" for name, t in named)
        return f"Find the sum: {terms}."

    @property
    def answer(self) -> str:
        return str(sum(term.value() for term in self.terms) % MODULUS)

    @property
    def tags(self) -> list[str]:
        skilled = any(term.operator == NEW_SKILL for term in self.terms)
        return ["sums", "new-skill" if skilled else "known", f"steps-{len(self.terms)}"]

    def solution(
        self, style: Style, knowledge: Knowledge, *, rng: Random, deepest: int | None = None
    ) -> list[Piece]:
        """Write every term, its value and the running sum, and last the answer."""
        pieces: list[Piece] = []
        running = 0
        for step, (name, term) in enumerate(zip(NAMES, self.terms, strict=False)):
            known = knowledge_at(step, knowledge, deepest)
            value = _value(term, known, rng=rng)
            settled = term.operator != NEW_SKILL or known == "full"
            after = (running + value) % MODULUS
            asked, kept = _marks(name, term, running=running, value=value, style=style)
            pieces += [Piece(f" {rng.choice(OPENERS[style])}", settled=False), Piece(asked)]
            pieces += [Piece(f" {value}", settled), Piece(f"{kept} {after}{ENDS[style]}")]
            running = after
        return [*pieces, Piece(f"{ANSWER_MARKS[style]} {running}")]


def apply(operator: str, left: int, right: int) -> int:
    """Return the value of `left operator right` modulo 5."""
    raw = {"plus": left + right, "minus": left - right, "times": left * right}[operator]
    return raw % MODULUS


def draw(rng: Random) -> Sum:
    """Draw a sum; every length is equally likely."""
    return Sum(tuple(_draw_term(rng) for _ in range(rng.randint(1, len(NAMES)))))


def _draw_term(rng: Random) -> Term:
    operator = NEW_SKILL if rng.random() < NEW_SKILL_SHARE else rng.choice(KNOWN)
    return Term(rng.randrange(MODULUS), operator, rng.randrange(MODULUS))


def _value(term: Term, knowledge: Knowledge, *, rng: Random) -> int:
    if term.operator != NEW_SKILL or knowledge == "full":
        return term.value()
    mistaken = apply(MISTAKEN_FOR, term.left, term.right)
    return belief(term.value(), mistaken, guesses=range(MODULUS), rng=rng)


def _marks(name: str, term: Term, *, running: int, value: int, style: Style) -> tuple[str, str]:
    """Return the text before the term's value and the text before the new running sum."""
    if style == "L":
        asked = f" {name}: {term.left} {term.operator} {term.right} is"
        return asked, f", {running} plus {value} is"
    operator, preposition = PREFIX[term.operator]
    asked = f" {name} {operator} {term.right} {preposition} {term.left} yields"
    return asked, f"/ add {value} to {running} yields"
