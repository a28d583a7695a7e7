"""One side of a comparison at N positions: a model's hidden states and head, or what a server told.

The student's side is always the former. A teacher behind a server tells its most probable tokens and the
sampled one; the rest of its distribution is taken to have the student's shape, within the mass that is
left and no token above the least probable one of its most probable. Comparing with that, the KL is the one with a
single bucket for the tail, and no loss on the told tokens sees the difference. It knows no objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

Project = Callable[[Tensor], Tensor]
# Rounds in which mass that a token cannot take goes to those below it.
ROUNDS = 6
_LEAST_MASS = 1e-9
# So much less probable than the least one told is any other token at most, so that ranks are the told ones.
BELOW_NATS = 1e-3


class Reference(Protocol):
    """Whom the student is compared with."""

    def at(self, rows: slice) -> Reference:
        """The same side at some of its positions."""
        ...

    def logits(self, student: Float[Tensor, "N V"]) -> Float[Tensor, "N W"]:
        """Its logits; `student` are the student's at the same positions, which are left as they are."""
        ...


@dataclass(frozen=True, slots=True)
class Side:
    """A model's hidden states at N positions, and its head."""

    hidden: Float[Tensor, "N H"]
    project: Project

    def at(self, rows: slice) -> Side:
        """The same side at some of its positions."""
        return Side(self.hidden[rows], self.project)

    def logits(self, student: Float[Tensor, "N V"]) -> Float[Tensor, "N W"]:  # noqa: ARG002 - a model knows all
        """The head's."""
        return self.project(self.hidden)


@dataclass(frozen=True, slots=True)
class KnownSide:
    """What a server told of N positions: its `k` most probable tokens, best first, then others.

    Among those is the sampled one; they may be among the former too.
    """

    ids: Int[Tensor, "N K"]
    logprobs: Float[Tensor, "N K"]
    k: int

    def at(self, rows: slice) -> KnownSide:
        """The same side at some of its positions."""
        return KnownSide(self.ids[rows], self.logprobs[rows], self.k)

    def logits(self, student: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Logprobs of the told tokens, and the student's shape for the rest of the mass."""
        told = torch.full_like(student, -torch.inf).scatter_(1, self.ids, self.logprobs)
        known = told > -torch.inf
        rest = (1 - told.logsumexp(-1, keepdim=True).exp()).clamp_min(_LEAST_MASS)
        most = self.logprobs[:, : self.k].amin(-1, keepdim=True) - BELOW_NATS
        tail = _shared_out(student.masked_fill(known, -torch.inf), rest, most)
        return torch.where(known, told, tail)


def _shared_out(
    shape: Float[Tensor, "N V"], rest: Float[Tensor, "N 1"], most: Float[Tensor, "N 1"]
) -> Float[Tensor, "N V"]:
    """Logprobs of a mass `rest` shared in the shape of some logits, no token above `most`."""
    full = torch.zeros_like(shape, dtype=torch.bool)
    tail = shape.log_softmax(-1) + rest.log()
    for _ in range(ROUNDS):
        over = (tail > most) & ~full
        if not over.any():
            break
        full |= over
        left = rest - full.sum(-1, keepdim=True) * most.exp()
        free = shape.masked_fill(full, -torch.inf).log_softmax(-1)
        tail = torch.where(full, most, free + left.clamp_min(_LEAST_MASS).log())
    return tail.nan_to_num(nan=-torch.inf)
