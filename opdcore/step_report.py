"""What a training step tells: its scalars and its position chunks.

It reads what the step left behind and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import torch

from opdcore import alignment as alignments
from opdcore import warning_signs
from opdcore.contract.distill import DistillStage
from opdcore.contract.metrics import POSITION_METRICS
from opdcore.contract.positions import Positions
from opdcore.passes import Passed
from opdcore.rendering import Renderer
from opdcore.rollouts import Rollout
from opdcore.rollouts.rollout import repeats
from opdcore.verifiers.grading import Grade

# Without a knob, positions are reported by quarters of the longest response.
POSITION_CHUNKS = 4


@dataclass(frozen=True)
class ScoredStep:
    """One step after its backward pass."""

    rows: Sequence[int]
    rollouts: Sequence[Rollout]
    grades: Sequence[Grade]
    passed: Passed

    @property
    def tokens(self) -> int:
        """Generated tokens, which are the scored positions."""
        return sum(len(rollout.ids) for rollout in self.rollouts)


def scalars(step: ScoredStep, renderer: Renderer) -> dict[str, float | None]:
    """Metrics of the rollouts and their alignment, by key of the metric table."""
    sampled = torch.cat([batch.logprobs for batch in step.passed.batches])
    difference = (sampled - step.passed.alignment.student_logprob.cpu()).abs().mean().item()
    return {
        "loss": step.passed.loss,
        "sampler_logprob_difference": difference,
        **written(step.rollouts, step.grades, renderer),
        **warning_signs.measure(step.rollouts, step.grades, step.passed, renderer),
        **step.passed.parts,
    } | alignments.summarise(step.passed.alignment)


def written(
    rollouts: Sequence[Rollout], grades: Sequence[Grade], renderer: Renderer
) -> dict[str, float | None]:
    """Metrics of what was written, whatever is learned from it."""
    lengths = [len(rollout.ids) for rollout in rollouts]
    graded = [grade.correct for grade in grades if grade.correct is not None]
    texts = [renderer.decode(rollout.text_ids) for rollout in rollouts]
    return {
        "rollout_accuracy": fmean(graded) if graded else None,
        "rollout_abstained_share": 1 - len(graded) / len(lengths),
        "response_tokens_mean": fmean(lengths),
        "response_tokens_max": float(max(lengths)),
        "truncation_rate": fmean(not rollout.stopped for rollout in rollouts),
        "collapsed_rate": fmean(rollout.collapsed for rollout in rollouts),
        "repetition_rate": fmean(repeats(text) for text in texts),
        "generated_tokens": float(sum(lengths)),
    }


def position_edges(stage: DistillStage) -> tuple[int, ...]:
    """Borders of the position chunks, in response tokens."""
    longest = stage.max_response_tokens
    width = stage.position_chunk_tokens or math.ceil(longest / POSITION_CHUNKS)
    return (*range(0, longest, width), longest)


def positions(step: ScoredStep, stage: DistillStage) -> Positions:
    """Alignment by position chunk."""
    edges = position_edges(stage)
    where = torch.cat([batch.positions for batch in step.passed.batches])
    device = step.passed.alignment.overlap_ratio.device
    columns = alignments.by_position(step.passed.alignment, where.to(device), edges=edges)
    counts = [int(((where >= low) & (where < high)).sum()) for low, high in pairwise(edges)]
    values = {key: tuple(_finite(value) for value in columns[key]) for key in POSITION_METRICS}
    return Positions(edges=edges, positions=tuple(counts), values=values)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
