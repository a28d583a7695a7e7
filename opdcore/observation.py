"""Two models' agreement on a text that nobody learns from: the measures of a training pass, no gradient.

Knows heads only as callables from hidden states to logits, as the training pass does.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opdcore import alignment as alignments
from opdcore.alignment import Alignment
from opdcore.comparison import Buffers, compare
from opdcore.logits_chunks import rows_per_block, rows_per_chunk
from opdcore.sides import Reference, Side
from opdcore.top_tokens import TopCollector


@torch.no_grad()
def observe(
    student: Side,
    teacher: Reference,
    sampled_ids: Int[Tensor, "N"],
    *,
    k: int,
    vocabulary: int,
    temperature: float,
    collector: TopCollector | None = None,
) -> Alignment:
    """Return the alignment at N positions, with the top tokens taken by a collector on the way.

    Both sides are cut to the first `vocabulary` ids, which they share; `sampled_ids` lie below it.
    """
    device = sampled_ids.device.type
    height = max(1, rows_per_block(vocabulary, device))
    buffers = Buffers.like(student.hidden.new_empty(0, vocabulary), rows=height)
    parts: list[Alignment] = []
    start = 0
    for chunk in sampled_ids.split(rows_per_chunk(vocabulary, device)):
        rows = slice(start, start + len(chunk))
        own = _tempered(student.project(student.hidden[rows]), vocabulary, temperature)
        its = _tempered(teacher.at(rows).logits(own), vocabulary, temperature)
        blocks = own.split(height), its.split(height), chunk.split(height)
        for ours, theirs, ids in zip(*blocks, strict=True):
            comparison = compare(ours, theirs, k=k, buffers=buffers)
            parts.append(alignments.measure(comparison, ids, k=k))
            if collector is not None:
                collector.take(comparison, ids, slice(start, start + len(ids)))
            start += len(ids)
    return alignments.concatenate(parts)


def _tempered(
    logits: Float[Tensor, "N W"], vocabulary: int, temperature: float
) -> Float[Tensor, "N V"]:
    """Return a table of its own, since a comparison moves its logits in place."""
    return logits[:, :vocabulary].float() / temperature
