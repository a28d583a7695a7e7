"""All prompts that a run may draw from, in one list: the train set's, then those of the other roles.

A row of the train set is the same number everywhere. It knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from opdcore.contract.prompt import Prompt
from opdcore.contract.selection import Source


class Place(NamedTuple):
    """Where a row comes from: a prompt set's role, and the row in that set."""

    source: Source
    row: int


@dataclass(frozen=True)
class Pool:
    """The prompts of each role; empty where the job has no such set."""

    train: tuple[Prompt, ...]
    teacher_content: tuple[Prompt, ...] = ()
    outside: tuple[Prompt, ...] = ()

    def rows(self, source: Source) -> range:
        """The rows of a role's prompts."""
        first, content = len(self.train), len(self.train) + len(self.teacher_content)
        spans = {
            "train": range(first),
            "teacher_content": range(first, content),
            "outside": range(content, content + len(self.outside)),
        }
        return spans[source]

    def place(self, row: int) -> Place:
        """Where a row comes from."""
        sources: tuple[Source, ...] = ("train", "teacher_content", "outside")
        source = next(one for one in sources if row in self.rows(one))
        return Place(source, row - self.rows(source).start)

    def __getitem__(self, row: int) -> Prompt:
        source, place = self.place(row)
        prompts: tuple[Prompt, ...] = getattr(self, source)
        return prompts[place]
