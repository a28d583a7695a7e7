"""What a training step tells: its scalars, its position chunks, and the traces of some rollouts.

It reads what the step left behind and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch

from opdcore import alignment as alignments
from opdcore import traces, warning_signs
from opdcore.batches import Batch
from opdcore.contract.events import ArtifactWritten, Payload, Positions, TraceWritten
from opdcore.contract.metrics import POSITION_METRICS
from opdcore.contract.prompt import Prompt
from opdcore.contract.recipe import DistillStage
from opdcore.files import hash_file
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
    lengths = [len(rollout.ids) for rollout in step.rollouts]
    graded = [grade.correct for grade in step.grades if grade.correct is not None]
    texts = [renderer.decode(rollout.text_ids) for rollout in step.rollouts]
    sampled = torch.cat([batch.logprobs for batch in step.passed.batches])
    difference = (sampled - step.passed.alignment.student_logprob.cpu()).abs().mean().item()
    return {
        "loss": step.passed.loss,
        "rollout_accuracy": fmean(graded) if graded else None,
        "rollout_abstained_share": 1 - len(graded) / len(lengths),
        "response_tokens_mean": fmean(lengths),
        "response_tokens_max": float(max(lengths)),
        "truncation_rate": fmean(not rollout.stopped for rollout in step.rollouts),
        "repetition_rate": fmean(repeats(text) for text in texts),
        "generated_tokens": float(step.tokens),
        "sampler_logprob_difference": difference,
        **warning_signs.measure(step.rollouts, step.grades, step.passed, renderer),
        **step.passed.parts,
    } | alignments.summarise(step.passed.alignment)


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


def trace(
    step: ScoredStep, prompts: Sequence[Prompt], renderer: Renderer, *,
    run_dir: Path, key: str, number: int, rollouts: int,
) -> Iterator[Payload]:  # fmt: skip
    """Writes the first `rollouts` of step `number` with the values of each of their tokens."""
    columns = {name: getattr(step.passed.alignment, name).cpu() for name in traces.COLUMNS}
    spans = _spans(step.passed.batches)
    kept = [
        _traced(step, index, prompts[step.rows[index]], renderer, {
            name: column[spans[index]].tolist() for name, column in columns.items()
        })
        for index in range(min(rollouts, len(step.rollouts)))
    ]  # fmt: skip
    traces.write(run_dir / key, kept, step=number)
    written = hash_file(run_dir / key)
    yield ArtifactWritten(
        artifact_kind="trace", key=key, sha256=written.sha256, size_bytes=written.size_bytes
    )
    yield TraceWritten(key=key, rollouts=len(kept))


def _traced(
    step: ScoredStep, index: int, prompt: Prompt, renderer: Renderer,
    columns: dict[str, list[float]],
) -> traces.TracedRollout:  # fmt: skip
    rollout = step.rollouts[index]
    return traces.TracedRollout(
        prompt_index=step.rows[index],
        prompt=renderer.text(prompt),
        response=renderer.decode(rollout.text_ids),
        ids=rollout.ids,
        tokens=[renderer.token_text(token) for token in rollout.ids],
        stopped=rollout.stopped,
        correct=step.grades[index].correct,
        columns=columns,
    )


def _spans(batches: Sequence[Batch]) -> dict[int, slice]:
    """Where each rollout's positions lie in the concatenated columns."""
    spans, start = {}, 0
    for batch in batches:
        for index, length in zip(batch.rollouts, batch.lengths, strict=True):
            spans[index] = slice(start, start + length)
            start += length
    return spans


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
