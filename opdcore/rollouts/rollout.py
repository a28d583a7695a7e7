"""A rollout: one response sampled from a model. It knows no prompt set and no verifier."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

# 2604.08527: a response repeats itself where its last 10,000 characters compress tenfold.
REPETITION_TAIL_CHARACTERS = 10_000
REPETITION_COMPRESSION = 10.0


@dataclass(frozen=True)
class Rollout:
    """One response: token ids with their log-probabilities; `stopped` if it ended by a stop id.

    The stop id is the last of `ids` and is trained on like any other token.
    """

    prompt_index: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The ids that make up the text: all but the stop id."""
        return self.ids[:-1] if self.stopped else self.ids


def repeats(text: str) -> bool:
    """Whether a response's tail is degenerate repetition, by how far it compresses."""
    tail = text[-REPETITION_TAIL_CHARACTERS:].encode()
    return len(tail) / len(zlib.compress(tail)) > REPETITION_COMPRESSION
