"""Sums modulo 5 in which each prompt asks for one of two skills, and who writes which solution to them.

The words are those of the laboratory's family `sums`, so its tokenizer and its students serve. A text
before a prompt may tell its solver something: the rule, with which it knows every skill, or the
answer, which it then writes whatever it has worked out. It knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Literal

from opdcore.contract.prompt import Prompt
from opdcore.lab.solutions import Piece, belief
from opdcore.lab.sums import MODULUS, NAMES, OPENERS, Term, apply

SKILLS = ("minus", "times")
KNOWN = MISTAKEN_FOR = "plus"
SKILL_SHARE = 0.6
TRAIN_PROMPTS, HELD_OUT_PROMPTS = 2000, 288

RULE = "Take care of the sum."
# What stands before a prompt: nothing, the same rule for every one, or a hint of its own.
Told = Literal["nothing", "rule", "answer"]


@dataclass(frozen=True)
class Exercise:
    """A sum of terms with one skill, and the text that its solver reads before it."""

    terms: tuple[Term, ...]
    skill: str
    told: Told = "nothing"

    @property
    def question(self) -> str:
        named = zip(NAMES, self.terms, strict=False)
        return (
            f"Find the sum: {'; '.join(f'{n} {t.left} {t.operator} {t.right}' for n, t in named)}."
        )

    @property
    def hint(self) -> str:
        return f"Answer: {self.answer}."

    @property
    def prompt(self) -> str:
        before = {"nothing": "", "rule": f"{RULE} ", "answer": f"{self.hint} "}[self.told]
        return before + self.question

    @property
    def answer(self) -> str:
        return str(sum(term.value() for term in self.terms) % MODULUS)

    @property
    def tags(self) -> list[str]:
        return [self.skill]

    def by(self, knows: Iterable[str], *, rng: Random) -> list[Piece]:
        """What a solver of those skills writes: terms, values, running sums, and last the answer."""
        pieces, running, knows = [], 0, {KNOWN, *knows}
        for name, term in zip(NAMES, self.terms, strict=False):
            sure = term.operator in knows
            value = _value(term, sure=sure, rng=rng)
            after = (running + value) % MODULUS
            pieces += [
                Piece(f" {rng.choice(OPENERS['L'])}", settled=False),
                Piece(f" {name}: {term.left} {term.operator} {term.right} is"),
                Piece(f" {value}", settled=sure),
                Piece(f", {running} plus {value} is {after}."),
            ]
            running = after
        last = self.answer if self.told == "answer" else str(running)
        return [*pieces, Piece(f" Answer: {last}")]


def draw(rng: Random, *, told: Told = "nothing") -> Exercise:
    """One to four terms, each of the prompt's skill or a sum."""
    skill = rng.choice(SKILLS)
    terms = [_term(skill if rng.random() < SKILL_SHARE else KNOWN, rng)]
    terms += [
        _term(skill if rng.random() < SKILL_SHARE else KNOWN, rng)
        for _ in range(rng.randrange(len(NAMES)))
    ]
    return Exercise(tuple(terms), skill, told)


def prompts(seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Distinct train and held-out prompts, each with the skill as its tag and its hint as privileged."""
    rng = Random(f"two skills {seed}")
    found: dict[str, Exercise] = {}
    while len(found) < TRAIN_PROMPTS + HELD_OUT_PROMPTS:
        exercise = draw(rng)
        found.setdefault(exercise.question, exercise)
    rows = [
        Prompt(prompt=e.question, answer=e.answer, tags=tuple(e.tags), privileged=e.hint)
        for e in found.values()
    ]
    rng.shuffle(rows)
    return rows[:TRAIN_PROMPTS], rows[TRAIN_PROMPTS:]


def _term(operator: str, rng: Random) -> Term:
    return Term(rng.randrange(MODULUS), operator, rng.randrange(MODULUS))


def _value(term: Term, *, sure: bool, rng: Random) -> int:
    if sure:
        return term.value()
    mistaken = apply(MISTAKEN_FOR, term.left, term.right)
    return belief(term.value(), mistaken, guesses=range(MODULUS), rng=rng)
