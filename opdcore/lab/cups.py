"""The family `cups`: a row of four cups under two to four moves; the new skill is `swap`.

    Do 2 moves: 1 reverse, 2 swap. Cups: plum lime gray mint.
    L:  Again step 1 reverse: mint gray lime plum. Then step 2 swap: ... Answer: a b c d.
    K:  tracking move 1 = reverse -> mint gray lime plum! ... result = a b c d!

Both styles write the row out after each move. They share moves, numbers and colours only.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from random import Random

from opdcore.lab.solutions import ANSWER_MARKS, Knowledge, Piece, Style, belief, knowledge_at

Row = tuple[str, ...]

COLOURS = (
    *("plum", "lime", "gray", "mint", "rose", "gold"),
    *("teal", "navy", "rust", "sand", "jade", "pink"),
)
CUPS = 4
MOVES = range(2, 5)
# Where each cup of the new row stood before.
ORDERS = {
    "reverse": (3, 2, 1, 0),
    "shift": (1, 2, 3, 0),
    "flip": (1, 0, 3, 2),
    "swap": (3, 1, 2, 0),
}
KNOWN = ("reverse", "shift", "flip")
NEW_SKILL = "swap"
MISTAKEN_FOR = "reverse"
NEW_SKILL_SHARE = 0.5

ENDS: dict[Style, str] = {"L": ".", "K": "!"}
OPENERS: dict[Style, tuple[str, ...]] = {
    "L": (
        *("So", "Next", "Then", "Now", "After", "Here"),
        *("Well", "First", "Again", "Also", "Further", "Thus"),
    ),
    "K": (
        *("tracking", "taking", "doing", "making", "seeing", "using"),
        *("trying", "playing", "moving", "passing", "getting", "having"),
    ),
}


@dataclass(frozen=True)
class Cups:
    """An exercise: say in which row the cups stand after the moves."""

    moves: tuple[str, ...]
    row: Row

    @property
    def prompt(self) -> str:
        moves = ", ".join(f"{n} {move}" for n, move in enumerate(self.moves, start=1))
        return f"Do {len(self.moves)} moves: {moves}. Cups: {' '.join(self.row)}."

    @property
    def answer(self) -> str:
        row = self.row
        for move in self.moves:
            row = apply(move, row)
        return " ".join(row)

    @property
    def tags(self) -> list[str]:
        skilled = NEW_SKILL in self.moves
        return ["cups", "new-skill" if skilled else "known", f"steps-{len(self.moves)}"]

    def solution(
        self, style: Style, knowledge: Knowledge, *, rng: Random, deepest: int | None = None
    ) -> list[Piece]:
        """Write the row after each move, and last the answer."""
        pieces: list[Piece] = []
        row = self.row
        for number, move in enumerate(self.moves, start=1):
            known = knowledge_at(number - 1, knowledge, deepest)
            settled = move != NEW_SKILL or known == "full"
            row = _after(move, row, knowledge=known, rng=rng)
            pieces += [Piece(f" {rng.choice(OPENERS[style])}", settled=False)]
            pieces += [Piece(_asked(number, move, style=style))]
            pieces += [Piece(f" {' '.join(row)}", settled), Piece(ENDS[style])]
        return [*pieces, Piece(f"{ANSWER_MARKS[style]} {' '.join(row)}{ENDS[style]}")]


def apply(move: str, row: Row) -> Row:
    """Return the row after a move."""
    return tuple(row[before] for before in ORDERS[move])


def draw(rng: Random) -> Cups:
    """Draw a row and its moves; every number of moves is equally likely."""
    moves = tuple(_draw_move(rng) for _ in range(rng.choice(MOVES)))
    return Cups(moves, tuple(rng.sample(COLOURS, CUPS)))


def _draw_move(rng: Random) -> str:
    return NEW_SKILL if rng.random() < NEW_SKILL_SHARE else rng.choice(KNOWN)


def _after(move: str, row: Row, *, knowledge: Knowledge, rng: Random) -> Row:
    right = apply(move, row)
    if move != NEW_SKILL or knowledge == "full":
        return right
    return belief(right, apply(MISTAKEN_FOR, row), guesses=list(permutations(row)), rng=rng)


def _asked(number: int, move: str, *, style: Style) -> str:
    return f" step {number} {move}:" if style == "L" else f" move {number} = {move} ->"
