"""One side's graded rollouts of some prompts, and what they say of each prompt.

It samples and grades through the engine; it compares no two sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from opdcore.contract.probe import DiagnoseStage
from opdcore.evaluation import grade
from opdcore.models import LoadedModel
from opdcore.rollouts import Rollout, Sampling
from opdcore.rollouts.rollout import repeats
from opdcore.verifiers.grading import Grade
from opdcore.workspace import Workspace

STUDENT, TEACHER = 0, 1
# A value for each row of the train set; None where nothing defines it.
PerPrompt = dict[int, float | None]


@dataclass(frozen=True)
class Answers:
    """Rollouts with the prompts' rows that they answer, siblings beside one another."""

    rows: Sequence[int]
    rollouts: Sequence[Rollout]
    grades: Sequence[Grade]

    @property
    def tokens(self) -> int:
        return sum(len(rollout.ids) for rollout in self.rollouts)

    def some(self, places: Sequence[int]) -> Answers:
        """Those at some places of the lists."""
        return Answers(
            [self.rows[place] for place in places],
            [self.rollouts[place] for place in places],
            [self.grades[place] for place in places],
        )

    def accuracy(self) -> PerPrompt:
        """avg@n of each prompt."""
        return {row: _mean(found) for row, found in self._graded().items()}

    def solved_once(self) -> PerPrompt:
        """Whether one of n was right."""
        return {row: float(any(found)) if found else None for row, found in self._graded().items()}

    def failed(self) -> set[int]:
        """Prompts that were answered wrong every time."""
        return {row for row, found in self._graded().items() if found and not any(found)}

    def truncated(self) -> PerPrompt:
        return self.by_prompt([float(not rollout.stopped) for rollout in self.rollouts])

    def lengths(self) -> PerPrompt:
        return self.by_prompt([float(len(rollout.ids)) for rollout in self.rollouts])

    def repeating(self, model: LoadedModel) -> PerPrompt:
        """Share of responses that repeat themselves until they end."""
        decode = model.renderer.decode
        return self.by_prompt([float(repeats(decode(one.text_ids))) for one in self.rollouts])

    def by_prompt(self, values: Sequence[float]) -> PerPrompt:
        """Means of one value a rollout."""
        found: dict[int, list[float]] = {row: [] for row in self.rows}
        for row, value in zip(self.rows, values, strict=True):
            found[row].append(value)
        return {row: _mean(each) for row, each in found.items()}

    def _graded(self) -> dict[int, list[bool]]:
        found: dict[int, list[bool]] = {row: [] for row in self.rows}
        for row, one in zip(self.rows, self.grades, strict=True):
            if one.correct is not None:
                found[row].append(one.correct)
        return found


def answer(
    stage: DiagnoseStage, work: Workspace, rows: Sequence[int], *, side: int, seed: int
) -> Answers:
    """The side's rollouts of the rows; both sides draw alike, which narrows their differences."""
    repeated = [row for row in rows for _ in range(stage.rollouts_per_prompt)]
    prompts = [work.prompt_ids[row][side] for row in repeated]
    rollouts = draw(stage, work, prompts, side=side, seed=seed, tokens=stage.max_response_tokens)
    return graded(work, repeated, rollouts, side=side)


def draw(
    stage: DiagnoseStage,
    work: Workspace,
    prompts: Sequence[Sequence[int]],
    *,
    side: int,
    seed: int,
    tokens: int,
) -> list[Rollout]:
    """One continuation of each prompt's ids, of at most so many tokens."""
    model = (work.student, work.teacher)[side]
    sampling = Sampling(
        max_tokens=tokens,
        temperature=stage.temperature,
        top_p=1.0,
        # The student never learns to write what the pair does not share; the teacher may end by it.
        vocabulary=work.vocabulary if side == STUDENT else model.card.vocabulary,
        stop_ids=frozenset(model.renderer.stop_ids),
    )
    generator = torch.Generator().manual_seed(seed)
    return work.processes.sample(model, prompts, sampling=sampling, generator=generator)


def graded(
    work: Workspace, rows: Sequence[int], rollouts: Sequence[Rollout], *, side: int
) -> Answers:
    """The rollouts as answers to the rows' prompts."""
    model = (work.student, work.teacher)[side]
    grades = grade(work.verifier, model.renderer, rollouts, [work.train[row] for row in rows])
    return Answers(rows, rollouts, grades)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
