"""Passes that learn given responses by their own tokens, divided among the run's processes.

It knows nothing of where responses come from, of optimizers, or of the steps before and after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opdcore.batches import Batch, cut, response_hidden
from opdcore.contract.recipe import TrainingStage
from opdcore.contract.training import TrainingKnobs
from opdcore.rollouts import Rollout
from opdcore.scoring import likelihood
from opdcore.workspace import Workspace


@dataclass(frozen=True)
class _Pass:
    """One micro-batch's pass, and how much its loss weighs."""

    batch: Batch
    stage: TrainingKnobs
    scale: float


def learn(
    stage: TrainingStage, work: Workspace, responses: Mapping[int, Sequence[int]], *, weight: float
) -> float:
    """Back-propagates `weight` times the mean negative log-likelihood of the tokens; returns the mean.

    `responses` are by row, each after the student's own prompt.
    """
    total = sum(len(ids) for ids in responses.values())
    passes = [_Pass(batch, stage, weight / total) for batch in batches(stage, work, responses)]
    sizes = [one.batch.size for one in passes]
    return sum(work.processes.divide(work, _learn, passes, sizes=sizes, trains=True)) / total


def batches(
    stage: TrainingStage, work: Workspace, responses: Mapping[int, Sequence[int]]
) -> list[Batch]:
    """The responses after the student's own prompts, those of like length together."""
    written = [
        Rollout(index, ids, (0.0,) * len(ids), stopped=True)
        for index, ids in enumerate(map(tuple, responses.values()))
    ]
    prompts = [[work.prompt_ids[row][0] for row in responses]]
    parts = work.processes.count
    return list(cut(written, prompts, tokens=stage.micro_batch_tokens, parts=parts))


def _learn(work: Workspace, asked: _Pass) -> float:
    student, batch, stage = work.trained, asked.batch, asked.stage
    again = stage.recomputes(batch.longest)
    return likelihood(
        response_hidden(student, batch, side=0, precision=stage.precision, recompute=again),
        student.project,
        batch.sampled_ids.to(work.student.device),
        vocabulary=work.vocabulary,
        loss_scale=asked.scale,
    )
