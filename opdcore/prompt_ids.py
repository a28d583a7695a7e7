"""The train prompts' token ids as each side reads them: every row that some step will draw.

Rendered once, before anything is sampled, so that a prompt that cannot be used is known then. It
knows no model's weights and no step of training.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.events import Progress
from opdcore.contract.probe import DiagnoseStage
from opdcore.contract.prompt import Prompt
from opdcore.contract.recipe import TrainingStage
from opdcore.order import draw, probed
from opdcore.rendering import Renderer

RENDERED_AT_ONCE = 10_000

# A prompt's ids as the student and as the teacher read them, by row of the train set.
PromptIds = dict[int, tuple[tuple[int, ...], tuple[int, ...]]]


def drawn(
    prompts: int,
    stage: TrainingStage | DiagnoseStage,
    *,
    seed: int,
    stage_index: int,
) -> set[int]:
    """Rows that the steps of a stage, or its probe, draw from so many prompts."""
    if isinstance(stage, DiagnoseStage):
        return set(probed(prompts, at_most=stage.prompts, seed=seed, stage_index=stage_index))
    if isinstance(stage, ColdStartStage):
        most = stage.prompts + stage.held_out_prompts
        return set(probed(prompts, at_most=most, seed=seed, stage_index=stage_index))
    if stage.steps * stage.prompts_per_step >= prompts:
        return set(range(prompts))
    steps = range(1, stage.steps + 1)
    return {
        row
        for step in steps
        for row in draw(prompts, stage, seed=seed, stage_index=stage_index, step=step)
    }


def render(
    rows: Sequence[int], prompts: Sequence[Prompt], *, student: Renderer, teacher: Renderer
) -> Generator[Progress, None, PromptIds]:
    """Renders the rows by each side's template, telling how far it is; returns their ids."""
    ids: PromptIds = {}
    for start in range(0, len(rows), RENDERED_AT_ONCE):
        if start:
            yield Progress(what="rendering prompts", done=start, total=len(rows), unit="prompts")
        some = rows[start : start + RENDERED_AT_ONCE]
        sides = [
            [rendered.ids for rendered in renderer.render_many([prompts[row] for row in some])]
            for renderer in (student, teacher)
        ]
        ids |= dict(zip(some, zip(*sides, strict=True), strict=True))
    return ids
