"""Two next-token distributions, and how far apart they are at every token and every position.

Computed once from the logits of a few positions, and read by the objectives and by the metrics alike.
Knows tokens only by their ids, and nothing of objectives, prompts or batches.

A table of (N, V) numbers costs more to allocate than to fill, so whoever compares many blocks of
positions hands in the same `Buffers` every time; what was computed from a block lasts until the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opdcore.support import TopK, top_k_ids

Table = Float[Tensor, "N V"]
Column = Float[Tensor, "N"]


@dataclass(frozen=True, slots=True)
class Buffers:
    """Tables that a comparison writes to."""

    student_weights: Table
    teacher_weights: Table
    difference: Table
    product: Table

    @classmethod
    def like(cls, table: Table, *, rows: int | None = None) -> Buffers:
        """Return buffers for a vocabulary as large as the table's, and as many positions or `rows`."""
        height = len(table) if rows is None else rows
        return cls(*(table.new_empty(height, table.shape[1]) for _ in range(4)))

    def first(self, rows: int) -> Buffers:
        """Return the same buffers for fewer positions."""
        return Buffers(
            self.student_weights[:rows],
            self.teacher_weights[:rows],
            self.difference[:rows],
            self.product[:rows],
        )


@dataclass(frozen=True, slots=True)
class Distribution:
    """A softmax in its parts: logprob = logit - log_total, probability = weight / total.

    Logits are measured from each row's highest, so that weights are at most 1 and float32 keeps the
    small differences; `best` are the ids of the highest, best first.
    """

    logits: Table
    weights: Table
    total: Float[Tensor, "N 1"]
    log_total: Float[Tensor, "N 1"]
    best: Int[Tensor, "N K"]

    def logprobs_at(self, ids: Int[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return the logprobs of some ids of each row."""
        return self.logits.gather(1, ids) - self.log_total

    def mean(self, values: Table, product: Table) -> Column:
        """Return the expectation of a table of values; `product` is written to."""
        torch.mul(self.weights, values, out=product)
        return product.sum(-1) / self.total.squeeze(1)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Student p against teacher q: a = log p - log q = difference - offset, and its expectations."""

    student: Distribution
    teacher: Distribution
    difference: Table
    offset: Float[Tensor, "N 1"]
    student_entropy: Column
    teacher_entropy: Column
    reverse_kl: Column
    forward_kl: Column

    def top(self, k: int) -> TopK:
        """Return both sides' `k` most probable ids; raises ValueError where fewer are known."""
        return TopK(self.student.best, self.teacher.best).first(k)


def distribution(logits: Table, weights: Table, *, k: int) -> Distribution:
    """Return the softmax of `logits`, which are moved in place, ranked up to `k`.

    Raises ValueError when `k` is not in 1..V.
    """
    best = top_k_ids(logits, k)
    logits.sub_(logits.gather(1, best[:, :1]))
    torch.exp(logits, out=weights)
    total = weights.sum(-1, keepdim=True)
    return Distribution(logits, weights, total, total.log(), best)


def compare(
    student_logits: Table, teacher_logits: Table, *, k: int, buffers: Buffers | None = None
) -> Comparison:
    """Return how far the teacher is from the student; both tables of logits are moved in place.

    Raises ValueError when `k` is not in 1..V.
    """
    own = (buffers or Buffers.like(student_logits)).first(len(student_logits))
    student = distribution(student_logits, own.student_weights, k=k)
    teacher = distribution(teacher_logits, own.teacher_weights, k=k)
    return between(student, teacher, own)


def between(student: Distribution, teacher: Distribution, buffers: Buffers) -> Comparison:
    """Return how far two distributions over one vocabulary are apart."""
    product = buffers.product
    torch.sub(student.logits, teacher.logits, out=buffers.difference)
    offset = student.log_total - teacher.log_total
    return Comparison(
        student=student,
        teacher=teacher,
        difference=buffers.difference,
        offset=offset,
        student_entropy=student.log_total.squeeze(1) - student.mean(student.logits, product),
        teacher_entropy=teacher.log_total.squeeze(1) - teacher.mean(teacher.logits, product),
        reverse_kl=student.mean(buffers.difference, product) - offset.squeeze(1),
        forward_kl=offset.squeeze(1) - teacher.mean(buffers.difference, product),
    )
