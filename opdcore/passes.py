"""One step's forward and backward passes: every model over the rollouts, every part of the loss.

Whatever a step trains on leaves its gradient in the student's weights here. It knows nothing of
sampling, of optimizers, or of the steps before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from opdcore import alignment as alignments
from opdcore import supervision
from opdcore.alignment import Alignment
from opdcore.batches import Batch, response_hidden
from opdcore.contract.distill import DistillStage
from opdcore.horizon import Horizon
from opdcore.losses import Objective
from opdcore.models import LoadedModel
from opdcore.rollouts import Rollout
from opdcore.scoring import Scored, score
from opdcore.sides import Side
from opdcore.teachers import Scoring
from opdcore.top_tokens import TopCollector, TopTokens, concatenate
from opdcore.workspace import Workspace


@dataclass(frozen=True)
class Passed:
    """What a step's passes told: the loss, its parts, and the alignment at the batches' positions.

    `top` is of the first `traced` rollouts' positions alone, in the batches' order; None without any.
    """

    loss: float
    losses: Tensor  # (N,) by position; NaN where one is masked
    parts: dict[str, float | None]
    alignment: Alignment
    batches: Sequence[Batch]
    traced: int
    top: TopTokens | None


def objective_of(stage: DistillStage) -> Objective:
    """The knobs that the losses know."""
    return Objective(**{field.name: getattr(stage, field.name) for field in fields(Objective)})


def scoring_of(stage: DistillStage, work: Workspace) -> Scoring:
    """How the stage puts a prompt's teachers together."""
    return Scoring(work.vocabulary, stage.temperature, stage.divergence, stage.precision, k=stage.k)


def back_propagate(
    stage: DistillStage,
    work: Workspace,
    rows: Sequence[int],
    rollouts: Sequence[Rollout],
    *,
    horizon: Horizon | None = None,
    traced: int = 0,
    k: int | None = None,
) -> Passed:
    """Back-propagates the weighted mean loss of the step's tokens, and that of its demonstrations.

    Tokens weigh as `horizon` says, the stage's at its start unless given. Of the first `traced`
    rollouts both models' top tokens are taken on the way. Alignment is measured on the top `k`, the
    stage's own unless another is given.
    """
    cut_up = work.batches(rows, rollouts, tokens=stage.micro_batch_tokens)
    batches = [batch for _, batch in cut_up]
    for panel, batch in cut_up:
        panel.refuse_unkept(batch, scoring_of(stage, work))
    masked = _masked_ids(stage, work.student)
    weights = [_weights(batch, masked, horizon or Horizon(stage)) for batch in batches]
    pairs = list(zip(batches, weights, strict=True))
    weight = sum(float(len(b.sampled_ids) if w is None else w.sum()) for b, w in pairs)
    scale = 1 / weight if weight else 0.0
    passes = [
        _Pass(stage, panel.numbers, batch, weighed, traced, scale, k or stage.k)
        for (panel, batch), weighed in zip(cut_up, weights, strict=True)
    ]
    done = work.processes.divide(
        work, _score, passes, sizes=[batch.size for batch in batches], trains=True
    )
    scored, taken = [one for one, _ in done], [top for _, top in done if top is not None]
    positions = sum(one.positions for one in scored)
    loss = sum(one.loss_sum for one in scored) * scale
    gold = _demonstrated(stage, work, rows) if stage.gold_sft_weight else None
    return Passed(
        loss=loss + stage.gold_sft_weight * (gold or 0.0),
        losses=torch.cat([one.losses for one in scored]),
        parts={
            "initial_kl": _mean([one.initial_kl_sum for one in scored], positions),
            "gold_nll": gold,
            "trained_share": sum(one.trained for one in scored) / positions,
        },
        alignment=alignments.concatenate([one.alignment for one in scored]),
        batches=batches,
        traced=traced,
        top=concatenate(taken) if traced else None,
    )


def _collector(batch: Batch, traced: int, device: torch.device) -> TopCollector | None:
    """Collects at the positions of the batch's traced rollouts; None where it has none."""
    kept = torch.tensor([rollout < traced for rollout in batch.rollouts])
    if not kept.any():
        return None
    return TopCollector(kept.repeat_interleave(torch.tensor(batch.lengths)).to(device))


@dataclass(frozen=True)
class _Pass:
    """One micro-batch's pass: whose teachers score it, how much its tokens weigh, what is taken of it."""

    stage: DistillStage
    panel: tuple[int, ...]
    batch: Batch
    weights: Tensor | None
    traced: int
    scale: float
    k: int


def _score(work: Workspace, asked: _Pass) -> tuple[Scored, TopTokens | None]:
    """One micro-batch: what it measures is of all its tokens, what it trains of the others alone."""
    stage, batch, weights = asked.stage, asked.batch, asked.weights
    student, device, precision = work.trained, work.student.device, stage.precision
    collector = _collector(batch, asked.traced, device)
    student_hidden = response_hidden(
        student, batch, side=0, precision=precision, recompute=stage.recomputes(batch.longest)
    )
    with torch.no_grad():
        own = Side(student_hidden, student.project)
        panel = work.teachers.panel(asked.panel)
        teacher = panel.side(batch, scoring_of(stage, work), student=own)
        initial = None
        if work.initial is not None and stage.needs_initial:
            hidden = response_hidden(work.initial, batch, side=0, precision=precision)
            initial = Side(hidden, work.initial.project)
    scored = score(
        own,
        teacher,
        batch.sampled_ids.to(device),
        objective=objective_of(stage),
        k=asked.k,
        vocabulary=work.vocabulary,
        temperature=stage.temperature,
        loss_scale=asked.scale,
        initial=initial,
        weights=None if weights is None else weights.to(device),
        collector=collector,
    )
    return scored, None if collector is None else collector.taken()


def _weights(batch: Batch, masked: Tensor, horizon: Horizon) -> Tensor | None:
    """How much each of the batch's tokens weighs in the loss; None where all weigh 1."""
    weights = horizon.weights(batch.positions)
    if not len(masked):
        return weights
    kept = (~torch.isin(batch.sampled_ids, masked)).float()
    return kept if weights is None else kept * weights


def _demonstrated(stage: DistillStage, work: Workspace, rows: Sequence[int]) -> float:
    """Mean negative log-likelihood of the step's demonstrations, by their own tokens."""
    responses = {
        row: work.demonstrations[row][: stage.max_response_tokens] for row in sorted(set(rows))
    }
    return supervision.learn(stage, work, responses, weight=stage.gold_sft_weight)


def _masked_ids(stage: DistillStage, student: LoadedModel) -> Tensor:
    stops, special = set(student.renderer.stop_ids), student.renderer.special_ids
    chosen = {"none": set(), "special": special - stops, "special_and_stop": special | stops}
    return torch.tensor(sorted(chosen[stage.token_mask]), dtype=torch.long)


def _mean(sums: Sequence[float | None], positions: int) -> float | None:
    known = [one for one in sums if one is not None]
    return sum(known) / positions if len(known) == len(sums) else None
