"""The tokens that each of two models holds most probable, with what the other makes of them.

They are taken out of a comparison while its block is at hand, since the loss's gradient then takes the
place of the logits, and only at the positions that somebody asked for. Knows tokens by their ids alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opdcore.comparison import Comparison, Distribution
from opdcore.logits_chunks import rows_per_chunk
from opdcore.sides import Side
from opdcore.support import top_k_ids

MOST = 8
"""Tokens kept of each side; fewer where the comparison ranked fewer."""


@dataclass(frozen=True, slots=True)
class TopTokens:
    """Both sides' K best tokens at N positions, best first, and the sampled token's ranks from 1.

    Logprobs are in nats: each side's of its own top, and the other side's of the same tokens.
    """

    student_top_ids: Int[Tensor, "N K"]
    student_top_logprobs: Float[Tensor, "N K"]
    student_top_teacher_logprobs: Float[Tensor, "N K"]
    teacher_top_ids: Int[Tensor, "N K"]
    teacher_top_logprobs: Float[Tensor, "N K"]
    teacher_top_student_logprobs: Float[Tensor, "N K"]
    student_rank: Int[Tensor, "N"]
    teacher_rank: Int[Tensor, "N"]


class TopCollector:
    """Collects the top tokens at the positions that are wanted, block after block."""

    def __init__(self, wanted: Bool[Tensor, "N"]) -> None:
        self.wanted = wanted
        self._parts: list[TopTokens] = []

    def take(self, comparison: Comparison, sampled_ids: Int[Tensor, "B"], rows: slice) -> None:
        """Notes a block, which is these `rows` of all positions."""
        places = self.wanted[rows].nonzero().squeeze(1)
        if len(places):
            self._parts.append(_at(comparison, sampled_ids, places))

    def taken(self) -> TopTokens:
        """What was collected, positions in order; raises ValueError where none was wanted."""
        return concatenate(self._parts)


@torch.no_grad()
def most_probable(side: Side, *, k: int, vocabulary: int) -> Int[Tensor, "N K"]:
    """Return the ids of a side's `k` most probable tokens, best first, of the first `vocabulary`."""
    rows = rows_per_chunk(vocabulary, side.hidden.device.type)
    parts = [part.detach() for part in side.hidden.split(rows)]
    return torch.cat([top_k_ids(side.project(part)[:, :vocabulary].float(), k) for part in parts])


def concatenate(parts: Sequence[TopTokens]) -> TopTokens:
    """Return the parts as one, positions in order; raises ValueError when there are none."""
    if not parts:
        raise ValueError("There are no top tokens to concatenate.")
    names = [field.name for field in fields(TopTokens)]
    return TopTokens(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _at(
    comparison: Comparison, sampled_ids: Int[Tensor, "B"], places: Int[Tensor, "P"]
) -> TopTokens:
    student, teacher = comparison.student, comparison.teacher
    ours, theirs = student.best[:, :MOST], teacher.best[:, :MOST]
    return TopTokens(
        student_top_ids=ours[places],
        student_top_logprobs=student.logprobs_at(ours)[places],
        student_top_teacher_logprobs=teacher.logprobs_at(ours)[places],
        teacher_top_ids=theirs[places],
        teacher_top_logprobs=teacher.logprobs_at(theirs)[places],
        teacher_top_student_logprobs=student.logprobs_at(theirs)[places],
        student_rank=_rank(student, sampled_ids, places),
        teacher_rank=_rank(teacher, sampled_ids, places),
    )


def _rank(
    side: Distribution, sampled_ids: Int[Tensor, "B"], places: Int[Tensor, "P"]
) -> Int[Tensor, "P"]:
    """Return how many tokens are at least as probable and come before; ties share the better rank."""
    logits = side.logits[places]
    return 1 + (logits > logits.gather(1, sampled_ids[places, None])).sum(-1)
