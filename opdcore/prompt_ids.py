"""The prompts' token ids as each side reads them: every row that some step may draw.

Rendered once, before anything is sampled, so that a prompt that cannot be used is known then. It
knows no model's weights and no step of training.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.distill import DistillStage
from opdcore.contract.errors import BadInput
from opdcore.contract.events import Progress
from opdcore.contract.probe import DiagnoseStage
from opdcore.contract.prompt import Prompt
from opdcore.contract.recipe import Recipe
from opdcore.contract.reinforce import ReinforceStage
from opdcore.contract.select_prompts import SelectPromptsStage
from opdcore.order import draw, probed
from opdcore.pool import Pool
from opdcore.rendering import Renderer
from opdcore.selection import candidates

RENDERED_AT_ONCE = 10_000

# A prompt's ids by row of the pool: as the student reads it, then as each teacher does that scores it,
# and nothing for one that does not.
PromptIds = dict[int, tuple[tuple[int, ...], ...]]


class Side(Protocol):
    """Whoever reads prompts: the student, or one of its teachers."""

    def scores(self, prompt: Prompt) -> bool:
        """Whether it has anything to do with the prompt."""
        ...

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """Token ids of prompts as it reads them."""
        ...


def drawn(pool: Pool, recipe: Recipe, stage_index: int) -> set[int]:
    """Rows that the steps of a stage, its probe or its choice may draw; none where it draws nothing."""
    stage, seed, prompts = recipe.stages[stage_index], recipe.seed, len(pool.train)
    selected = recipe.selection_of(stage_index)
    if selected is not None:
        return drawn(pool, recipe, selected)
    if isinstance(stage, SelectPromptsStage):
        return set(candidates(pool, stage, seed=seed, stage_index=stage_index))
    if isinstance(stage, DiagnoseStage):
        return set(probed(prompts, at_most=stage.prompts, seed=seed, stage_index=stage_index))
    if isinstance(stage, ColdStartStage):
        most = stage.prompts + stage.held_out_prompts
        return set(probed(prompts, at_most=most, seed=seed, stage_index=stage_index))
    if not isinstance(stage, DistillStage | ReinforceStage):
        return set()
    return _of_steps(stage, prompts, seed=seed, stage_index=stage_index)


def in_teachers_rendering(recipe: Recipe, stage_index: int) -> bool:
    """Whether the student too reads the stage's prompts as the teacher does."""
    selected = recipe.selection_of(stage_index)
    stage = recipe.stages[stage_index if selected is None else selected]
    return isinstance(stage, SelectPromptsStage) and stage.strategy == "teacher_template"


def _of_steps(
    stage: DistillStage | ReinforceStage, prompts: int, *, seed: int, stage_index: int
) -> set[int]:
    if stage.steps * stage.prompts_per_step >= prompts:
        return set(range(prompts))
    steps = range(1, stage.steps + 1)
    return {
        row
        for step in steps
        for row in draw(prompts, stage, seed=seed, stage_index=stage_index, step=step)
    }


def render(
    rows: Sequence[int], pool: Pool, *, student: Renderer, teachers: Sequence[Side]
) -> Generator[Progress, None, PromptIds]:
    """Renders the rows as each side reads them, telling how far it is; returns their ids."""
    ids: PromptIds = {}
    for start in range(0, len(rows), RENDERED_AT_ONCE):
        if start:
            yield Progress(what="rendering prompts", done=start, total=len(rows), unit="prompts")
        some = rows[start : start + RENDERED_AT_ONCE]
        sides = [[one.ids for one in student.render_many([pool[row] for row in some])]]
        sides += [_of_teacher(teacher, some, pool) for teacher in teachers]
        ids |= dict(zip(some, zip(*sides, strict=True), strict=True))
    return ids


def _of_teacher(teacher: Side, rows: Sequence[int], pool: Pool) -> list[tuple[int, ...]]:
    scored = [row for row in rows if teacher.scores(pool[row])]
    found = dict(zip(scored, teacher.prompt_ids([pool[row] for row in scored]), strict=True))
    return [found.get(row, ()) for row in rows]


def refuse_useless_template(
    ids: PromptIds, rows: Iterable[int], *, vocabulary: int, field: str
) -> None:
    """Raises BadInput where the student cannot read the teacher's rendering, or reads it already."""
    sides = [ids[row] for row in rows]
    if all(one in ((), ours) for ours, *teachers in sides for one in teachers):
        raise BadInput(
            "recipe.same_rendering",
            "Both sides' renderings give the same tokens for every candidate, so the strategy "
            "teacher_template changes nothing.",
            remedy="Choose another strategy, or give the pair's teacher its own rendering.",
            field=field,
        )
    read = (theirs for _, *teachers in sides for theirs in teachers)
    foreign = {one for theirs in read for one in theirs if one >= vocabulary}
    if foreign:
        raise BadInput(
            "recipe.foreign_rendering",
            f"The teacher's rendering uses token {min(foreign)}, and the student shares only the "
            f"first {vocabulary}.",
            remedy="Choose another strategy.",
            field=field,
        )
