"""Supports: the small sets of tokens on which two distributions are compared and trained.

Knows which ids are in a set, and nothing of what is done with them. A support is a rectangle of ids
with a mask, so that rows of different size (an intersection, a union) stay one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opdcore.contract.objective import Support as SupportName

# A block's maximum is cheap, so wide rows are first narrowed to the k blocks that can hold the top
# k; on a CPU this is three to four times faster than topk from here upwards, and slower below.
_BLOCK = 64
_NARROW_FROM = 4096

# Up to this many, comparing every id with every other is faster than sorting and searching.
_COMPARE_UP_TO = 64


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
    """A set of token ids per position; where `mask` is false the slot is empty.

    An empty slot holds an id all the same, which may be that of a slot in use.
    """

    ids: Int[Tensor, "N K"]
    mask: Bool[Tensor, "N K"]


def top_k_ids(logits: Float[Tensor, "N V"], k: int) -> Int[Tensor, "N K"]:
    """Return the ids of the `k` most probable tokens of each row, best first.

    Raises ValueError when `k` is not in 1..V.
    """
    vocabulary = logits.shape[1]
    if not 1 <= k <= vocabulary:
        raise ValueError(f"k = {k} is not between 1 and the vocabulary's {vocabulary}.")
    if vocabulary < _NARROW_FROM or k * _BLOCK > vocabulary // 2:
        return logits.topk(k, dim=-1).indices
    candidates = _candidates(logits, k)
    best = logits.gather(1, candidates).topk(k, dim=-1).indices
    return candidates.gather(1, best)


def _candidates(logits: Float[Tensor, "N V"], k: int) -> Int[Tensor, "N C"]:
    """Return the ids of the k blocks with the highest maxima, and of the ragged end."""
    rows, vocabulary = logits.shape
    whole = vocabulary // _BLOCK * _BLOCK
    maxima = logits[:, :whole].unflatten(1, (whole // _BLOCK, _BLOCK)).amax(-1)
    blocks = maxima.topk(k, dim=-1).indices
    offsets = torch.arange(_BLOCK, device=logits.device)
    inside = (blocks[:, :, None] * _BLOCK + offsets).flatten(1)
    end = torch.arange(whole, vocabulary, device=logits.device).expand(rows, -1)
    return torch.cat([inside, end], dim=1)


def select(name: SupportName, top: TopK) -> Support:
    """Return the named support: k slots, or 2k for a union and for a symmetric difference."""
    both = torch.cat([top.student, top.teacher], dim=1)
    match name:
        case "student":
            return whole(top.student)
        case "teacher":
            return whole(top.teacher)
        case "intersection":
            return Support(top.student, among(top.student, top.teacher))
        case "union":
            first = torch.ones_like(top.student, dtype=torch.bool)
            return Support(both, torch.cat([first, ~among(top.teacher, top.student)], dim=1))
        case "symmetric_difference":
            ours, theirs = among(top.student, top.teacher), among(top.teacher, top.student)
            return Support(both, ~torch.cat([ours, theirs], dim=1))
        case _:
            raise ValueError(f"Unknown support {name!r}.")


def among(ids: Int[Tensor, "N K"], others: Int[Tensor, "N L"]) -> Bool[Tensor, "N K"]:
    """Return which of `ids` occur in the same row of `others`."""
    if others.shape[1] <= _COMPARE_UP_TO:
        return (ids[:, :, None] == others[:, None, :]).any(-1)
    ranked = others.sort(dim=1).values
    places = torch.searchsorted(ranked, ids.contiguous()).clamp_max(others.shape[1] - 1)
    return ranked.gather(1, places) == ids


def whole(ids: Int[Tensor, "N K"]) -> Support:
    """Return a support of which every slot is in use."""
    return Support(ids, torch.ones_like(ids, dtype=torch.bool))
