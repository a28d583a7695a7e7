"""What the models do with candidates, so that prompts can be chosen by it: both sides' accuracy, or the KL.

It samples, grades and compares through the engine, tells how far it is, and chooses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch

from opdcore import alignment as alignments
from opdcore.batches import response_hidden
from opdcore.contract.events import Progress
from opdcore.contract.select_prompts import SelectPromptsStage
from opdcore.evaluation import grade
from opdcore.observation import observe
from opdcore.order import seed_of
from opdcore.rollouts import Rollout, Sampling
from opdcore.selection import Measured
from opdcore.sides import Side
from opdcore.teachers import Scoring
from opdcore.workspace import Workspace

STUDENT, TEACHER = 0, 1
# Candidates asked between two words about how far it is.
ASKED_AT_ONCE = 256


@dataclass
class _Found:
    """What is known so far, by row."""

    accuracy: tuple[dict[int, float | None], dict[int, float | None]] = field(
        default_factory=lambda: ({}, {})
    )
    reverse_kl: dict[int, float | None] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=lambda: [0, 0])

    def measured(self) -> Measured:
        return Measured(*self.accuracy, self.reverse_kl, *self.tokens)


def measure(
    stage: SelectPromptsStage,
    work: Workspace,
    rows: Sequence[int],
    *,
    seed: int,
    teacher_accuracy: Mapping[int, float | None] | None = None,
) -> Iterator[Progress | Measured]:
    """Yields progress and last what the strategy ranks the rows by; nothing to measure is over at once.

    `teacher_accuracy` is the teacher's from before, which is not asked again: it does not change.
    """
    found = _Found()
    for start in range(0, len(rows) if stage.measures else 0, ASKED_AT_ONCE):
        yield Progress(what="measuring candidates", done=start, total=len(rows), unit="prompts")
        some = rows[start : start + ASKED_AT_ONCE]
        # Both sides draw alike, which narrows their difference.
        drawn = seed_of(seed, start)
        if stage.strategy == "low_kl":
            _compare(stage, work, some, found, seed=drawn)
            continue
        _ask(stage, work, some, found, side=STUDENT, seed=drawn)
        if teacher_accuracy is None:
            for number, rows_of_it in work.teachers.by_lead(work.pool, some).items():
                _ask(stage, work, rows_of_it, found, side=1 + number, seed=drawn)
        else:
            found.accuracy[TEACHER].update({row: teacher_accuracy[row] for row in some})
    yield found.measured()


def _ask(
    stage: SelectPromptsStage,
    work: Workspace,
    rows: Sequence[int],
    found: _Found,
    *,
    side: int,
    seed: int,
) -> None:
    """One side's avg@n; sides from 1 on are the teachers'."""
    asked, rollouts = _write(stage, work, rows, side=side, seed=seed)
    whose = min(side, TEACHER)
    found.tokens[whose] += sum(len(rollout.ids) for rollout in rollouts)
    grades = grade(
        work.verifier, work.side(side).renderer, rollouts, [work.pool[row] for row in asked]
    )
    correct: dict[int, list[bool]] = {row: [] for row in rows}
    for row, one in zip(asked, grades, strict=True):
        if one.correct is not None:
            correct[row].append(one.correct)
    found.accuracy[whose].update(
        {row: fmean(all_) if all_ else None for row, all_ in correct.items()}
    )


def _write(
    stage: SelectPromptsStage, work: Workspace, rows: Sequence[int], *, side: int, seed: int
) -> tuple[list[int], list[Rollout]]:
    """One side's rollouts, with the row that each answers."""
    model = work.side(side)
    asked = [row for row in rows for _ in range(stage.samples_per_prompt)]
    sampling = Sampling(
        max_tokens=stage.max_response_tokens,
        temperature=stage.temperature,
        top_p=1.0,
        # The teacher may end by a token that the pair does not share.
        vocabulary=work.vocabulary if side == STUDENT else model.card.vocabulary,
        stop_ids=frozenset(model.renderer.stop_ids),
    )
    prompts = [work.prompt_ids[row][side] for row in asked]
    generator = torch.Generator().manual_seed(seed)
    return asked, work.processes.sample(model, prompts, sampling=sampling, generator=generator)


@torch.no_grad()
def _compare(
    stage: SelectPromptsStage, work: Workspace, rows: Sequence[int], found: _Found, *, seed: int
) -> None:
    """KL(student || teacher), mean over the tokens of the student's rollouts of each row."""
    asked, rollouts = _write(stage, work, rows, side=STUDENT, seed=seed)
    found.tokens[STUDENT] += sum(len(rollout.ids) for rollout in rollouts)
    place = {row: index for index, row in enumerate(rows)}
    parts, owners = [], []
    scoring = Scoring(work.vocabulary, stage.temperature)
    for panel, batch in work.batches(asked, rollouts, tokens=stage.micro_batch_tokens):
        student = Side(response_hidden(work.student, batch, side=0), work.student.project)
        teacher = panel.side(batch, scoring, student=student)
        ids = batch.sampled_ids.to(work.student.device)
        parts.append(
            observe(
                student, teacher, ids, k=1, vocabulary=work.vocabulary,
                temperature=stage.temperature,
            )
        )  # fmt: skip
        whose = torch.tensor([place[asked[one]] for one in batch.rollouts])
        owners.append(whose.repeat_interleave(torch.tensor(batch.lengths)))
    owner = torch.cat(owners).to(work.student.device)
    means = alignments.by_group(alignments.concatenate(parts), owner, groups=len(rows))
    values = zip(rows, means["reverse_kl"], strict=True)
    found.reverse_kl.update({row: _finite(value) for row, value in values})


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
