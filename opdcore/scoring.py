"""One pass over the valid positions that gives the loss, its gradient and every alignment metric.

The logits of a whole batch never exist at once: rows go through both language-model heads in chunks,
and each chunk is back-propagated to its hidden states before the next one starts. Within a chunk the
comparison goes block by block, small enough for the processor's cache, and each block's gradient takes
the place of its logits. Knows heads only as callables from hidden states to logits, and nothing of
batches, padding or optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opdcore import alignment as alignments
from opdcore.alignment import Alignment
from opdcore.comparison import Buffers, Comparison, between, compare, distribution
from opdcore.known_gradient import carry_back
from opdcore.logits_chunks import rows_per_block, rows_per_chunk
from opdcore.losses import Objective, add_forward, add_reverse, chosen, position_losses
from opdcore.sides import Project, Reference, Side
from opdcore.top_tokens import TopCollector


@dataclass(frozen=True, slots=True)
class Scored:
    """The un-scaled loss summed over the positions, their number, and their alignment.

    `trained` counts the positions that the loss trains on; `initial_kl_sum` is KL(student || student
    at the stage's start) summed over all positions, None where the objective has no use for it.
    `losses` are the summands: 0 where a selection passes over a position, NaN where it weighs nothing.
    """

    loss_sum: float
    losses: Float[Tensor, "N"]
    positions: int
    trained: int
    initial_kl_sum: float | None
    alignment: Alignment


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The sampled ids, how much each weighs in the loss (None: all 1), and where they begin."""

    ids: Int[Tensor, "N"]
    weights: Float[Tensor, "N"] | None
    start: int = 0

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + len(self.ids))

    def at(self, rows: slice) -> _Tokens:
        weights = None if self.weights is None else self.weights[rows]
        return _Tokens(self.ids[rows], weights, self.start + rows.start)


@dataclass(frozen=True, slots=True)
class _Pass:
    """What is asked at every block, and what was seen so far."""

    objective: Objective
    k: int
    vocabulary: int
    temperature: float
    loss_scale: float
    buffers: Buffers
    totals: Float[Tensor, "3"]
    parts: list[Alignment]
    losses: list[Float[Tensor, "N"]]
    collector: TopCollector | None


def score(  # noqa: PLR0913 - two sides, what is measured, and how
    student: Side,
    teacher: Reference,
    sampled_ids: Int[Tensor, "N"],
    *,
    objective: Objective,
    k: int,
    vocabulary: int,
    temperature: float,
    loss_scale: float,
    initial: Reference | None = None,
    weights: Float[Tensor, "N"] | None = None,
    collector: TopCollector | None = None,
    chunk_rows: int | None = None,
) -> Scored:
    """Back-propagate `loss_scale` times the summed loss and return what was seen on the way.

    Gradients land in the student's head and, through its hidden states, in the rest of the student.
    All sides are cut to the first `vocabulary` ids, which they share; `sampled_ids` lie below it.
    `k` is the metrics' support size, `objective.k` the loss's. `initial` is the student as it was at
    the stage's start, needed where the objective says so. A position's loss counts by its weight; where
    that is 0 it is measured and has no part in the loss. `collector` takes both sides' top tokens on the way.
    """
    hidden = student.hidden
    sides = [teacher, *([initial] if initial else [])]
    collected = torch.zeros_like(hidden)
    tokens = _Tokens(sampled_ids, weights)
    seen = _Pass(
        objective=objective,
        k=k,
        vocabulary=vocabulary,
        temperature=temperature,
        loss_scale=loss_scale / temperature,
        buffers=_buffers(vocabulary, hidden),
        totals=torch.zeros(3, dtype=torch.float64, device=hidden.device),
        parts=[],
        losses=[],
        collector=collector,
    )
    for rows in _slices(len(hidden), chunk_rows or rows_per_chunk(vocabulary, hidden.device.type)):
        others = [side.at(rows) for side in sides]
        collected[rows] = _score_chunk(student.at(rows), others, tokens.at(rows), seen)
    if hidden.requires_grad:
        carry_back(hidden, collected)
    loss_sum, counted, initial_kl = seen.totals.tolist()
    return Scored(
        loss_sum=loss_sum,
        losses=torch.cat(seen.losses),
        positions=len(sampled_ids),
        trained=int(counted),
        initial_kl_sum=initial_kl if initial else None,
        alignment=alignments.concatenate(seen.parts),
    )


def likelihood(
    hidden: Float[Tensor, "N H"],
    project: Project,
    ids: Int[Tensor, "N"],
    *,
    vocabulary: int,
    loss_scale: float,
) -> float:
    """Back-propagate `loss_scale` times the summed negative log-likelihood of `ids`; return the sum.

    Over all that the head can say, which is about `vocabulary` tokens, at temperature 1.
    dL/dz_j = p_j - [j = id].
    """
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)

    def gradient_of(logits: Tensor, rows: slice) -> Tensor:
        chosen = ids[rows, None]
        logprobs = logits.float().log_softmax(-1)
        total.sub_(logprobs.gather(1, chosen).sum(dtype=torch.float64))
        own = torch.full(chosen.shape, -loss_scale, device=hidden.device)
        return logprobs.exp_().mul_(loss_scale).scatter_add_(1, chosen, own)

    back_through_head(hidden, project, gradient_of, vocabulary=vocabulary)
    return total.item()


def back_through_head(
    hidden: Float[Tensor, "N H"],
    project: Project,
    gradient_of: Callable[[Float[Tensor, "N W"], slice], Float[Tensor, "N W"]],
    *,
    vocabulary: int,
) -> None:
    """Back-propagate the gradient in the logits of each chunk of rows, which `gradient_of` gives."""
    collected = torch.zeros_like(hidden)
    for rows in _slices(len(hidden), rows_per_chunk(vocabulary, hidden.device.type)):
        leaf = hidden[rows].detach().requires_grad_()
        logits = project(leaf)
        with torch.no_grad():
            gradient = gradient_of(logits.detach(), rows)
        carry_back(logits, gradient.to(logits.dtype))
        collected[rows] = leaf.grad
    if hidden.requires_grad:
        carry_back(hidden, collected)


@torch.no_grad()
def surprise(
    hidden: Float[Tensor, "N H"], project: Project, ids: Int[Tensor, "N"], *, vocabulary: int
) -> float:
    """The summed negative log-likelihood of `ids`, as `likelihood` has it, without a gradient."""
    parts = _slices(len(hidden), rows_per_chunk(vocabulary, hidden.device.type))
    chosen = [
        project(hidden[rows]).float().log_softmax(-1).gather(1, ids[rows, None]) for rows in parts
    ]
    return -torch.cat(chosen).sum(dtype=torch.float64).item()


def _buffers(vocabulary: int, like: Tensor) -> Buffers:
    rows = max(1, min(rows_per_block(vocabulary, like.device.type), len(like)))
    return Buffers.like(like.new_empty(0, vocabulary, dtype=torch.float32), rows=rows)


def _slices(rows: int, step: int) -> Iterator[slice]:
    """Yield row slices that cover all positions; one empty slice where there are none."""
    for start in range(0, max(1, rows), step):
        yield slice(start, start + step)


def _comparable(logits: Float[Tensor, "N W"], seen: _Pass) -> Float[Tensor, "N V"]:
    """Return float32 logits of the shared ids at the temperature, in place where they are float32."""
    if logits.shape[1] < seen.vocabulary:
        raise ValueError(
            f"The head gives {logits.shape[1]} logits, fewer than {seen.vocabulary} tokens."
        )
    shared = logits[:, : seen.vocabulary].float()
    return shared if seen.temperature == 1.0 else shared.div_(seen.temperature)


def _as_gradient(own: Float[Tensor, "N V"], logits: Float[Tensor, "N W"]) -> Float[Tensor, "N W"]:
    """Return the gradient that took the place of the logits, as wide and of the type that they are."""
    gradient = logits.detach()
    if own.data_ptr() != gradient.data_ptr():
        gradient[:, : own.shape[1]] = own
    gradient[:, own.shape[1] :] = 0
    return gradient


def _score_chunk(student: Side, others: list[Reference], tokens: _Tokens, seen: _Pass) -> Tensor:
    """Back-propagate a chunk into the student's head; return the gradient in its hidden states."""
    leaf = student.hidden.detach().requires_grad_()
    logits = student.project(leaf)
    with torch.no_grad():
        own = _comparable(logits.detach(), seen)
        tables = [_comparable(side.logits(own), seen) for side in others]
        for rows in _slices(len(own), len(seen.buffers.product)):
            _score_block(own[rows], [table[rows] for table in tables], tokens.at(rows), seen)
    carry_back(logits, _as_gradient(own, logits))
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)


def _score_block(logits: Tensor, others: list[Tensor], tokens: _Tokens, seen: _Pass) -> None:
    """Put the loss's gradient in the place of the student's logits, and note what was seen."""
    objective = seen.objective
    widest = max(seen.k, objective.k) if objective.form == "top_k" else seen.k
    comparison = compare(logits, others[0], k=widest, buffers=seen.buffers)
    seen.parts.append(alignments.measure(comparison, tokens.ids, k=seen.k))
    if seen.collector is not None:
        seen.collector.take(comparison, tokens.ids, tokens.rows)

    part = chosen(comparison, objective)
    if tokens.weights is not None:
        part &= tokens.weights > 0
    weights = part if tokens.weights is None else part * tokens.weights
    scale = (weights * seen.loss_scale)[:, None]
    start = _from_the_start(comparison, others[1:])
    target = _extrapolated(comparison, start, objective)
    losses = position_losses(
        target, tokens.ids, objective=objective, scale=scale, gradient=logits
    ) + _added(comparison, start, objective, scale, gradient=logits)

    losses = (losses * weights).masked_fill(~part, 0.0)
    seen.totals[0] += losses.sum(dtype=torch.float64)
    seen.totals[1] += part.sum()
    if start is not None:
        seen.totals[2] += start.reverse_kl.sum(dtype=torch.float64)
    if tokens.weights is not None:
        losses = losses.masked_fill(tokens.weights == 0, torch.nan)
    seen.losses.append(losses)


def _from_the_start(comparison: Comparison, initial: list[Tensor]) -> Comparison | None:
    """Return the student against itself as it was at the stage's start."""
    if not initial:
        return None
    fresh = Buffers.like(initial[0])
    k = comparison.student.best.shape[1]
    was = distribution(initial[0], fresh.teacher_weights, k=k)
    return between(comparison.student, was, fresh)


def _extrapolated(
    comparison: Comparison, start: Comparison | None, objective: Objective
) -> Comparison:
    """Return the student against the teacher, moved on by what it adds to the student's start.

    log q' = log q + (lambda - 1) (log q - log r) up to a constant, r the student at the stage's start
    (G-OPD, 2602.12125); lambda = 1 is the teacher itself.
    """
    if objective.extrapolation == 1.0 or start is None:
        return comparison
    fresh = Buffers.like(comparison.difference)
    added = comparison.teacher.logits - start.teacher.logits
    moved = comparison.teacher.logits + (objective.extrapolation - 1) * added
    k = comparison.student.best.shape[1]
    return between(comparison.student, distribution(moved, fresh.teacher_weights, k=k), fresh)


def _added(
    comparison: Comparison,
    start: Comparison | None,
    objective: Objective,
    scale: Tensor,
    *,
    gradient: Tensor,
) -> Tensor:
    """Add what an objective has besides its own loss, and return it at each position."""
    losses = torch.zeros_like(comparison.reverse_kl)
    if objective.high_entropy_forward_weight:
        high = comparison.teacher_entropy >= objective.high_entropy_nats
        weight = (objective.high_entropy_forward_weight * high)[:, None]
        forward = add_forward(comparison, scale=weight * scale, gradient=gradient)
        losses += weight.squeeze(1) * forward
    if objective.initial_kl_weight and start is not None:
        weight = objective.initial_kl_weight
        losses += weight * add_reverse(start, scale=weight * scale, gradient=gradient)
    return losses
