"""A rollout: one response sampled from a model. It knows no prompt set and no verifier."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

# 2604.08527: a response repeats itself where its last 10,000 characters compress tenfold.
REPETITION_TAIL_CHARACTERS = 10_000
REPETITION_COMPRESSION = 10.0
# Tokens of the longest cycle that is looked for while a response is written.
LONGEST_CYCLE = 32


@dataclass(frozen=True)
class Rollout:
    """One response: token ids with their log-probabilities; `stopped` if it ended by a stop id.

    The stop id is the last of `ids` and is trained on like any other token. One that `collapsed` was cut
    where its end had repeated itself too often.
    """

    prompt_index: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool
    collapsed: bool = False

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The ids that make up the text: all but the stop id."""
        return self.ids[:-1] if self.stopped else self.ids


def is_loop(ids: Sequence[int], times: int) -> bool:
    """Whether the same 1 to LONGEST_CYCLE ids stand `times` times in a row at the end."""
    if times == 0:
        return False
    for period in range(1, min(LONGEST_CYCLE, len(ids) // times) + 1):
        tail = ids[-period * times :]
        # One comparison tells most of what is no loop.
        if tail[-1] == tail[-1 - period] and tail[period:] == tail[:-period]:
            return True
    return False


def repeats(text: str) -> bool:
    """Whether a response's tail is degenerate repetition, by how far it compresses."""
    tail = text[-REPETITION_TAIL_CHARACTERS:].encode()
    return len(tail) / len(zlib.compress(tail)) > REPETITION_COMPRESSION
