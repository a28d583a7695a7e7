"""Supports: the small sets of tokens on which two distributions are compared and trained.

Knows which ids are in a set, and nothing of what is done with them. A support is a rectangle of ids
with a mask, so that rows of different size (an intersection, a union) stay one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opdcore.contract.recipe import Support as SupportName

# A block's maximum is cheap, so wide rows are first narrowed to the k blocks that can hold the top
# k; on a CPU this is three to four times faster than topk from here upwards, and slower below.
_BLOCK = 64
_NARROW_FROM = 4096


@dataclass(frozen=True, slots=True)
class TopK:
    """Both sides' most probable token ids, best first; a wider pair serves every smaller k."""

    student: Int[Tensor, "N K"]
    teacher: Int[Tensor, "N K"]

    def first(self, k: int) -> TopK:
        """Return the same ranking cut to its best `k`."""
        if k > self.student.shape[1]:
            raise ValueError(f"k = {k}, but only the top {self.student.shape[1]} are known.")
        return TopK(self.student[:, :k], self.teacher[:, :k])


@dataclass(frozen=True, slots=True)
class Support:
    """A set of token ids per position; where `mask` is false the slot is empty."""

    ids: Int[Tensor, "N K"]
    mask: Bool[Tensor, "N K"]


def top_k_ids(logprobs: Float[Tensor, "N V"], k: int) -> Int[Tensor, "N K"]:
    """Return the ids of the `k` most probable tokens of each row, best first.

    Raises ValueError when `k` is not in 1..V.
    """
    vocabulary = logprobs.shape[1]
    if not 1 <= k <= vocabulary:
        raise ValueError(f"k = {k} is not between 1 and the vocabulary's {vocabulary}.")
    if vocabulary < _NARROW_FROM or k * _BLOCK > vocabulary // 2:
        return logprobs.topk(k, dim=-1).indices
    candidates = _candidates(logprobs, k)
    best = logprobs.gather(1, candidates).topk(k, dim=-1).indices
    return candidates.gather(1, best)


def _candidates(logprobs: Float[Tensor, "N V"], k: int) -> Int[Tensor, "N C"]:
    """Return the ids of the k blocks with the highest maxima, and of the ragged end."""
    rows, vocabulary = logprobs.shape
    whole = vocabulary // _BLOCK * _BLOCK
    maxima = logprobs[:, :whole].view(rows, whole // _BLOCK, _BLOCK).amax(-1)
    blocks = maxima.topk(k, dim=-1).indices
    offsets = torch.arange(_BLOCK, device=logprobs.device)
    inside = (blocks[:, :, None] * _BLOCK + offsets).flatten(1)
    end = torch.arange(whole, vocabulary, device=logprobs.device).expand(rows, -1)
    return torch.cat([inside, end], dim=1)


def top_k(
    student_logprobs: Float[Tensor, "N V"], teacher_logprobs: Float[Tensor, "N V"], *, k: int
) -> TopK:
    """Return both sides' top-k ids; raises ValueError when `k` exceeds the vocabulary."""
    return TopK(top_k_ids(student_logprobs.detach(), k), top_k_ids(teacher_logprobs.detach(), k))


def select(name: SupportName, top: TopK, *, vocabulary: int) -> Support:
    """Return the named support: k slots, or 2k for the union, whose duplicates are masked."""
    match name:
        case "student":
            return _whole(top.student)
        case "teacher":
            return _whole(top.teacher)
        case "intersection":
            return Support(top.student, among(top.student, top.teacher, vocabulary=vocabulary))
        case "union":
            repeated = among(top.teacher, top.student, vocabulary=vocabulary)
            first = torch.ones_like(top.student, dtype=torch.bool)
            return Support(
                torch.cat([top.student, top.teacher], 1), torch.cat([first, ~repeated], 1)
            )
        case _:
            raise ValueError(f"Unknown support {name!r}.")


def among(
    ids: Int[Tensor, "N K"], others: Int[Tensor, "N L"], *, vocabulary: int
) -> Bool[Tensor, "N K"]:
    """Return which of `ids` occur in the same row of `others`."""
    return members(_whole(others), vocabulary=vocabulary).gather(1, ids)


def members(support: Support, *, vocabulary: int) -> Bool[Tensor, "N V"]:
    """Return the support as a membership table over the vocabulary."""
    counts = torch.zeros(
        support.ids.shape[0], vocabulary, dtype=torch.int8, device=support.ids.device
    )
    # Added, not written: in a union an id may fill one live slot and one masked slot.
    return counts.scatter_add_(1, support.ids, support.mask.to(torch.int8)).bool()


def _whole(ids: Int[Tensor, "N K"]) -> Support:
    return Support(ids, torch.ones_like(ids, dtype=torch.bool))
