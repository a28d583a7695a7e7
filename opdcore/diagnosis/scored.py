"""The scored tier: both models over the student's rollouts, and the student over the teacher's.

One forward and backward pass by the recipe's objective gives alignment, loss and gradient norm; nothing
is updated and the gradients are dropped. It knows no interval and draws no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor, nn

from opdcore import alignment as alignments
from opdcore.alignment import Alignment
from opdcore.batches import Batch, cut, response_hidden
from opdcore.contract.distill import DistillStage
from opdcore.contract.metrics import POSITION_METRICS
from opdcore.contract.positions import Positions
from opdcore.contract.probe import PROBE_METRICS, DiagnoseStage
from opdcore.diagnosis.answers import STUDENT, TEACHER, Answers, PerPrompt
from opdcore.logits_chunks import rows_per_chunk
from opdcore.models import LoadedModel
from opdcore.passes import Passed, back_propagate
from opdcore.rollouts import Rollout
from opdcore.step_report import POSITION_CHUNKS
from opdcore.workspace import Workspace

# The teacher's style is how it begins: the fewest tokens that hold this much of its probability.
STYLE_MASS = 0.95

_TAKEN = tuple(key for key in alignments.COLUMNS if key in PROBE_METRICS)


@dataclass(frozen=True)
class Scores:
    """What the passes found of some prompts, by probe metric and prompt.

    `rewards` are each rollout's mean token reward; `grad_norm` is that of all these rollouts together.
    """

    values: dict[str, PerPrompt]
    rewards: list[float]
    grad_norm: float
    alignment: Alignment
    positions: Tensor  # (N,)


def objective_of(stage: DiagnoseStage, planned: Sequence[DistillStage]) -> DistillStage:
    """The first planned objective, as far as rollouts decide it, at the probe's own temperature.

    Demonstrations are no part of the probe's rollouts.
    """
    objective = planned[0] if planned else DistillStage(k=stage.k)
    return objective.model_copy(update={"temperature": stage.temperature, "gold_sft_weight": 0.0})


def score(
    stage: DiagnoseStage, work: Workspace, objective: DistillStage, answers: Answers
) -> Scores:
    """Student and teacher over the student's rollouts."""
    # Before the first step the student is what it was at the stage's start.
    work = replace(work, initial=work.initial or work.student)
    passed = back_propagate(objective, work, answers.rows, answers.rollouts, k=stage.k)
    norm = _drop_gradients(work.student.model)
    rows = sorted(set(answers.rows))
    owner = _owners(passed.batches, [rows.index(row) for row in answers.rows])
    found = {
        key: dict(zip(rows, map(_finite, column), strict=True))
        for key, column in _columns(passed, owner, prompts=len(rows)).items()
    }
    found["special_reward_share"] = dict(
        zip(rows, _on_special(passed, owner, work.student, prompts=len(rows)), strict=True)
    )
    return Scores(
        values=found,
        rewards=_rewards(passed, len(answers.rollouts)),
        grad_norm=norm,
        alignment=alignments.Alignment(
            **{name: getattr(passed.alignment, name).cpu() for name in alignments.COLUMNS}
        ),
        positions=torch.cat([batch.positions for batch in passed.batches]),
    )


def likelihood(work: Workspace, objective: DistillStage, answers: Answers) -> PerPrompt:
    """The student's mean negative log-likelihood of the teacher's tokens, by prompt.

    A response is read up to the first token that the student does not share.
    """
    read = [_shared(rollout, work.vocabulary) for rollout in answers.rollouts]
    known = [(row, ids) for row, ids in zip(answers.rows, read, strict=True) if ids]
    rollouts = [Rollout(0, ids, (0.0,) * len(ids), stopped=False) for _, ids in known]
    prompts = [[work.prompt_ids[row][STUDENT] for row, _ in known]]
    found: dict[int, list[float]] = {row: [] for row in answers.rows}
    for batch in cut(rollouts, prompts, tokens=objective.micro_batch_tokens):
        negative = (-_logprobs(work, objective, batch)).split(batch.lengths)
        for place, values in zip(batch.rollouts, negative, strict=True):
            found[known[place][0]] += values.tolist()
    return {row: _finite(fmean(values)) if values else None for row, values in found.items()}


@torch.no_grad()
def style_mass(work: Workspace, objective: DistillStage, rows: Sequence[int]) -> PerPrompt:
    """The student's probability of the tokens that the teacher would begin with, by prompt."""
    first = [Rollout(0, (0,), (0.0,), stopped=False) for _ in rows]
    prompts = [[work.prompt_ids[row][side] for row in rows] for side in (STUDENT, TEACHER)]
    found: PerPrompt = {}
    for batch in cut(first, prompts, tokens=objective.micro_batch_tokens):
        student, teacher = (
            response_hidden(model, batch, side=side, precision=objective.precision)
            for side, model in ((STUDENT, work.student), (TEACHER, work.teacher))
        )
        masses = [
            _mass_on_style(work, student[some], teacher[some])
            for some in _slices(len(student), work)
        ]
        chosen = [rows[place] for place in batch.rollouts]
        found |= dict(zip(chosen, torch.cat(masses).tolist(), strict=True))
    return found


def chunks(scores: Sequence[Scores]) -> Positions:
    """Alignment by quarters of the longest rollout."""
    where = torch.cat([one.positions for one in scores])
    longest = int(where.max()) + 1
    edges = (*range(0, longest, math.ceil(longest / POSITION_CHUNKS)), longest)
    whole = alignments.concatenate([one.alignment for one in scores])
    columns = alignments.by_position(whole, where, edges=edges)
    return Positions(
        edges=edges,
        positions=tuple(
            int(((where >= low) & (where < high)).sum()) for low, high in pairwise(edges)
        ),
        values={key: tuple(map(_finite, columns[key])) for key in POSITION_METRICS},
    )


def _columns(passed: Passed, owner: Tensor, *, prompts: int) -> dict[str, list[float | None]]:
    """Means over each prompt's tokens; the loss's are over those that may be trained on."""
    device = passed.alignment.token_reward.device
    means = alignments.by_group(passed.alignment, owner.to(device), groups=prompts)
    kept = ~passed.losses.isnan().cpu()
    sums = torch.zeros(prompts).index_add_(0, owner[kept], passed.losses.float().cpu()[kept])
    counts = torch.bincount(owner[kept], minlength=prompts)
    pairs = zip(sums.tolist(), counts.tolist(), strict=True)
    losses: list[float | None] = [total / n if n else None for total, n in pairs]
    return {key: means[key] for key in _TAKEN} | {"first_loss": losses}


def _on_special(
    passed: Passed, owner: Tensor, student: LoadedModel, *, prompts: int
) -> list[float | None]:
    special = torch.tensor(sorted({*student.renderer.special_ids, *student.renderer.stop_ids}))
    sampled = torch.cat([batch.sampled_ids for batch in passed.batches])
    size = passed.alignment.token_reward.abs().double().cpu()
    totals = torch.zeros(prompts, dtype=torch.float64).index_add_(0, owner, size)
    part = torch.zeros_like(totals).index_add_(
        0, owner, size.masked_fill(~torch.isin(sampled, special), 0.0)
    )
    pairs = zip(part.tolist(), totals.tolist(), strict=True)
    return [_finite(some / total) if total else None for some, total in pairs]


def _rewards(passed: Passed, rollouts: int) -> list[float]:
    """The mean token reward of each rollout, in the rollouts' order."""
    owner = _owners(passed.batches, range(rollouts))
    sums = torch.zeros(rollouts, dtype=torch.float64).index_add_(
        0, owner, passed.alignment.token_reward.double().cpu()
    )
    means: list[float] = (sums / torch.bincount(owner, minlength=rollouts)).tolist()
    return means


def _owners(batches: Sequence[Batch], owners: Sequence[int]) -> Tensor:
    """Whose each position is (N,), where `owners` says whose each rollout is."""
    return torch.cat(
        [
            torch.tensor([owners[place] for place in batch.rollouts]).repeat_interleave(
                torch.tensor(batch.lengths)
            )
            for batch in batches
        ]
    )


def _drop_gradients(model: nn.Module) -> float:
    """The gradient's norm; nothing of it is left for whoever comes next."""
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    for parameter in model.parameters():
        parameter.grad = None
    return torch.stack(norms).norm().item() if norms else 0.0


@torch.no_grad()
def _logprobs(work: Workspace, objective: DistillStage, batch: Batch) -> Tensor:
    """The student's logprobs (N,) of the batch's ids, at temperature 1 over the shared ids."""
    hidden = response_hidden(work.student, batch, side=STUDENT, precision=objective.precision)
    ids = batch.sampled_ids.to(hidden.device)[:, None]
    parts = [
        _distribution(work, work.student, hidden[rows]).gather(1, ids[rows])
        for rows in _slices(len(hidden), work)
    ]
    return torch.cat(parts).squeeze(1).cpu()


def _mass_on_style(work: Workspace, student: Tensor, teacher: Tensor) -> Tensor:
    """Student's probability (N,) of the fewest tokens that hold the teacher's style."""
    ordered, ids = _distribution(work, work.teacher, teacher).exp().sort(-1, descending=True)
    begins = ordered.cumsum(-1) - ordered < STYLE_MASS
    ours = _distribution(work, work.student, student).exp().gather(1, ids)
    return ours.masked_fill(~begins, 0.0).sum(-1)


def _distribution(work: Workspace, model: LoadedModel, hidden: Tensor) -> Tensor:
    """Logprobs (N, V) over the ids that the pair shares."""
    return model.project(hidden)[:, : work.vocabulary].float().log_softmax(-1)


def _slices(rows: int, work: Workspace) -> list[slice]:
    step = rows_per_chunk(work.vocabulary, work.student.device.type)
    return [slice(start, start + step) for start in range(0, rows, step)]


def _shared(rollout: Rollout, vocabulary: int) -> tuple[int, ...]:
    beyond = (place for place, one in enumerate(rollout.ids) if one >= vocabulary)
    return rollout.ids[: next(beyond, len(rollout.ids))]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
