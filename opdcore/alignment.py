"""How well student and teacher agree on what the student wrote, position by position.

Measures; it neither trains nor judges. The fields of `Alignment` are the metric keys. A value that is
not defined at a position (an advantage over an empty overlap) is NaN in the column, and is left out
of every mean; a mean over no defined position is None, never 0.

Source: arXiv 2604.13016, section 2.3 (Eq. 6-10), over the full vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opdcore.comparison import Column, Comparison, Distribution
from opdcore.support import TopK, among

EFFECTIVE_PROBABILITY = 1e-3
"""A top-k token counts towards the effective overlap above this probability."""

UNCERTAIN_NATS = 0.5
"""A position is uncertain where both entropies add up to more than this, in nats."""

_SOMETIMES_UNDEFINED = frozenset(
    {"overlap_token_advantage", "overlap_kl", "effective_overlap", "overlap_at_uncertain"}
)


@dataclass(frozen=True, slots=True)
class Alignment:
    """One column of N positions per metric; entropies, divergences and logprobs are in nats."""

    overlap_ratio: Column
    overlap_mass_student: Column
    overlap_mass_teacher: Column
    overlap_token_advantage: Column
    overlap_kl: Column
    empty_overlap_share: Column
    student_entropy: Column
    teacher_entropy: Column
    entropy_gap: Column
    reverse_kl: Column
    forward_kl: Column
    effective_overlap: Column
    overlap_at_uncertain: Column
    top1_agreement: Column
    token_reward: Column
    student_logprob: Column
    teacher_logprob: Column


COLUMNS = tuple(field.name for field in fields(Alignment))


@dataclass(frozen=True, slots=True)
class _Overlap:
    """The student's top-k tokens with both sides' logprobs, and which the teacher shares."""

    student: Float[Tensor, "N K"]
    teacher: Float[Tensor, "N K"]
    shared: Bool[Tensor, "N K"]


@torch.no_grad()
def measure(comparison: Comparison, sampled_ids: Int[Tensor, "N"], *, k: int) -> Alignment:
    """Return every alignment metric at each of N positions.

    Raises ValueError when the comparison ranked fewer than `k` tokens.
    """
    ranked = comparison.top(k)
    student, teacher = comparison.student, comparison.teacher
    overlap = _overlap(student, teacher, ranked)
    columns = _overlap_columns(overlap)
    ours, theirs = comparison.student_entropy, comparison.teacher_entropy
    uncertain = ours + theirs > UNCERTAIN_NATS
    student_logprob = student.logprobs_at(sampled_ids[:, None]).squeeze(1)
    teacher_logprob = teacher.logprobs_at(sampled_ids[:, None]).squeeze(1)
    return Alignment(
        **columns,
        student_entropy=ours,
        teacher_entropy=theirs,
        entropy_gap=(theirs - ours).abs(),
        reverse_kl=comparison.reverse_kl,
        forward_kl=comparison.forward_kl,
        effective_overlap=_effective_overlap(overlap, teacher.logprobs_at(ranked.teacher)),
        overlap_at_uncertain=_where(uncertain, columns["overlap_ratio"]),
        top1_agreement=(ranked.student[:, 0] == ranked.teacher[:, 0]).to(student_logprob.dtype),
        token_reward=teacher_logprob - student_logprob,
        student_logprob=student_logprob,
        teacher_logprob=teacher_logprob,
    )


def concatenate(parts: Sequence[Alignment]) -> Alignment:
    """Return the parts as one, positions in order; raises ValueError when there are none."""
    if not parts:
        raise ValueError("There is no alignment to concatenate.")
    if len(parts) == 1:
        return parts[0]
    return Alignment(*torch.cat([_stacked(part) for part in parts], dim=1))


def summarise(alignment: Alignment) -> dict[str, float | None]:
    """Return each metric's mean over the positions where it is defined, None where there is none."""
    everywhere = torch.zeros_like(alignment.overlap_ratio, dtype=torch.long)
    return {name: means[0] for name, means in _means(alignment, everywhere, chunks=1).items()}


def by_position(
    alignment: Alignment, positions: Int[Tensor, "N"], *, edges: Sequence[int]
) -> dict[str, list[float | None]]:
    """Return each metric's mean in each chunk `edges[i] <= position < edges[i + 1]`.

    `edges` rise; there is one chunk fewer than edges, and positions outside them are left out.
    """
    if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"edges = {list(edges)} do not rise from chunk to chunk.")
    bounds = torch.tensor(edges, device=positions.device)
    chunk = torch.bucketize(positions, bounds, right=True) - 1
    return _means(alignment, chunk, chunks=len(edges) - 1)


def by_group(
    alignment: Alignment, group: Int[Tensor, "N"], *, groups: int
) -> dict[str, list[float | None]]:
    """Return each metric's mean over the positions of each group, which are counted from 0."""
    return _means(alignment, group, chunks=groups)


def _overlap(student: Distribution, teacher: Distribution, ranked: TopK) -> _Overlap:
    return _Overlap(
        student=student.logprobs_at(ranked.student),
        teacher=teacher.logprobs_at(ranked.student),
        shared=among(ranked.student, ranked.teacher),
    )


def _overlap_columns(overlap: _Overlap) -> dict[str, Column]:
    size = overlap.shared.sum(-1)
    kl = _where(size > 0, _kl_on_overlap(overlap))
    return {
        "overlap_ratio": size / overlap.shared.shape[1],
        "overlap_mass_student": _mass(overlap.student, overlap.shared),
        "overlap_mass_teacher": _mass(overlap.teacher, overlap.shared),
        # Eq. 7 is -KL / |overlap|: it shrinks by itself when the overlap grows.
        "overlap_token_advantage": -kl / size,
        "overlap_kl": kl,
        "empty_overlap_share": (size == 0).to(kl.dtype),
    }


def _kl_on_overlap(overlap: _Overlap) -> Column:
    """Return KL between both sides renormalised on the overlap; NaN where it is empty."""
    student = overlap.student.masked_fill(~overlap.shared, -torch.inf).log_softmax(-1)
    teacher = overlap.teacher.masked_fill(~overlap.shared, -torch.inf).log_softmax(-1)
    terms = student.exp() * (student - teacher)
    return terms.masked_fill(~overlap.shared, 0.0).sum(-1)


def _effective_overlap(overlap: _Overlap, teacher_own: Float[Tensor, "N K"]) -> Column:
    """Return the Jaccard overlap of the top-k tokens above 1e-3; NaN where neither side has one."""
    student = overlap.student.exp() > EFFECTIVE_PROBABILITY
    teacher = overlap.teacher.exp() > EFFECTIVE_PROBABILITY
    likely = teacher_own.exp() > EFFECTIVE_PROBABILITY
    both = (student & teacher & overlap.shared).sum(-1)
    return both / (student.sum(-1) + likely.sum(-1) - both)


def _mass(logprobs: Float[Tensor, "N K"], shared: Bool[Tensor, "N K"]) -> Column:
    return logprobs.exp().masked_fill(~shared, 0.0).sum(-1)


def _where(defined: Bool[Tensor, "N"], values: Column) -> Column:
    return values.masked_fill(~defined, torch.nan)


def _stacked(alignment: Alignment) -> Float[Tensor, "M N"]:
    return torch.stack([getattr(alignment, name) for name in COLUMNS])


def _means(
    alignment: Alignment, chunk: Int[Tensor, "N"], *, chunks: int
) -> dict[str, list[float | None]]:
    """Return means per chunk; a NaN in an always-defined metric is a fault and stays visible."""
    inside = (chunk >= 0) & (chunk < chunks)
    columns = _stacked(alignment)[:, inside].double()
    optional = torch.tensor([name in _SOMETIMES_UNDEFINED for name in COLUMNS])
    skipped = columns.isnan() & optional.to(columns.device)[:, None]
    totals = columns.new_zeros(len(COLUMNS), chunks)
    counts = torch.zeros_like(totals)
    totals.index_add_(1, chunk[inside], columns.masked_fill(skipped, 0.0))
    counts.index_add_(1, chunk[inside], (~skipped).to(columns.dtype))
    rows = zip(COLUMNS, totals.tolist(), counts.tolist(), strict=True)
    return {
        name: [t / n if n else None for t, n in zip(total, count, strict=True)]
        for name, total, count in rows
    }
