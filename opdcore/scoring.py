"""One pass over the valid positions that gives the loss, its gradient and every alignment metric.

The logits of a whole batch never exist at once: rows go through both language-model heads in chunks,
and each chunk is back-propagated to its hidden states before the next one starts. Knows heads only as
callables from hidden states to logits, and nothing of batches, padding or optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from opdcore import alignment as alignments
from opdcore.alignment import Alignment
from opdcore.losses import Objective, position_losses
from opdcore.support import top_k

Project = Callable[[Tensor], Tensor]

# Bytes that one chunk's (rows, V) tables may take, of which about ten of float32 live at the peak:
# both sides' logits, logprobs and probabilities, a product, and the gradients on the way back.
_CHUNK_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}
_TABLES = 10


@dataclass(frozen=True, slots=True)
class Scored:
    """The un-scaled loss summed over the positions, their number, and their alignment."""

    loss_sum: float
    positions: int
    alignment: Alignment


def score(  # noqa: PLR0913 - two sides, what is measured, and how
    student_hidden: Float[Tensor, "N H"],
    project_student: Project,
    teacher_hidden: Float[Tensor, "N G"],
    project_teacher: Project,
    sampled_ids: Int[Tensor, "N"],
    *,
    objective: Objective,
    k: int,
    vocabulary: int,
    temperature: float,
    loss_scale: float,
    chunk_rows: int | None = None,
) -> Scored:
    """Back-propagate `loss_scale` times the summed loss and return what was seen on the way.

    Gradients land in the student's head and, through `student_hidden`, in the rest of the student.
    Both sides are cut to the first `vocabulary` ids, which they share; `sampled_ids` lie below it.
    `k` is the metrics' support size, `objective.k` the loss's.
    """
    widest = max(k, objective.k) if objective.form == "top_k" else k
    collected = torch.zeros_like(student_hidden)
    loss_sum = torch.zeros((), dtype=torch.float64, device=student_hidden.device)
    parts: list[Alignment] = []
    for rows in _chunks(student_hidden, vocabulary, chunk_rows):
        leaf = student_hidden[rows].detach().requires_grad_()
        student = _logprobs(project_student, leaf, vocabulary, temperature)
        with torch.no_grad():
            teacher = _logprobs(project_teacher, teacher_hidden[rows], vocabulary, temperature)
        top, ids = top_k(student, teacher, k=widest), sampled_ids[rows]
        parts.append(alignments.measure(student, teacher, ids, k=k, top=top))

        losses = position_losses(student, teacher, ids, objective=objective, top=top)
        (losses.sum() * loss_scale).backward()
        loss_sum += losses.detach().sum(dtype=torch.float64)
        collected[rows] = leaf.grad
    if student_hidden.requires_grad:
        student_hidden.backward(collected)
    return Scored(loss_sum.item(), len(sampled_ids), alignments.concatenate(parts))


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """Return how many positions fit the byte budget of one chunk on this kind of device."""
    budget = _CHUNK_BYTES["cuda" if device.type == "cuda" else "cpu"]
    return max(1, budget // (_TABLES * 4 * vocabulary))


def _chunks(hidden: Tensor, vocabulary: int, chunk_rows: int | None) -> Iterator[slice]:
    """Yield row slices that cover all positions; one empty slice where there are none."""
    step = chunk_rows or rows_per_chunk(vocabulary, hidden.device)
    for start in range(0, max(1, len(hidden)), step):
        yield slice(start, start + step)


def _logprobs(
    project: Project, hidden: Tensor, vocabulary: int, temperature: float
) -> Float[Tensor, "N V"]:
    logits = project(hidden)
    if logits.shape[1] < vocabulary:
        raise ValueError(
            f"The head gives {logits.shape[1]} logits, fewer than {vocabulary} tokens."
        )
    logits = logits[:, :vocabulary].float()
    if temperature != 1.0:
        logits = logits / temperature
    return functional.log_softmax(logits, dim=-1)
