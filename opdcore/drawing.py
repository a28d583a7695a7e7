"""Which rows a distillation step draws: of the train set, or of what a stage before it has selected.

A selection that is to be refreshed is chosen anew between two steps, with the student as it is. The
draw stays a function of seed, stage and step, so a run that goes on needs the files alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from opdcore.choosing import choose, read
from opdcore.contract.distill import DistillStage
from opdcore.contract.errors import EngineFailure
from opdcore.contract.events import Progress
from opdcore.contract.select_prompts import SelectPromptsStage
from opdcore.contract.selection import Selection
from opdcore.order import draw
from opdcore.prompt_ids import in_teachers_rendering
from opdcore.workspace import Line, Workspace


class Drawing:
    """The rows of one distill stage; `work` is the workspace as that stage sees it."""

    def __init__(self, stage: DistillStage, work: Workspace, *, stage_index: int) -> None:
        recipe = work.job.recipe
        self._stage, self._stage_index = stage, stage_index
        self._index = recipe.selection_of(stage_index)
        selecting = None if self._index is None else recipe.stages[self._index]
        self._selecting = selecting if isinstance(selecting, SelectPromptsStage) else None
        since = stage_index if self._index is None else self._index
        # A cold start in between draws no prompt from the selection, so it does not age.
        earlier = recipe.stages[since:stage_index]
        self._steps_before = sum(one.steps for one in earlier if isinstance(one, DistillStage))
        self._chosen: Selection | None = None
        self.work = work
        if in_teachers_rendering(recipe, stage_index):
            self.work = _in_teachers_rendering(work)

    def refresh(self, step: int) -> Iterator[Line]:
        """Chooses anew where that is due before the step; ends early where a stop is wished for."""
        done = self._steps_before + step - 1
        if self._selecting is None or self._index is None or not done or done != self._at(step):
            return
        for item in choose(self._selecting, self.work, stage_index=self._index, steps=done):
            if isinstance(item, Selection):
                self._chosen = item
                continue
            if isinstance(item, Progress) and self.work.stop():
                return
            yield Line(item, step - 1)

    def rows(self, step: int) -> list[int]:
        """The rows of a step counted from 1, each as often as it is answered."""
        kept = self._kept(step)
        seed = self.work.job.recipe.seed
        places = draw(len(kept), self._stage, seed=seed, stage_index=self._stage_index, step=step)
        return [kept[place] for place in places]

    def _kept(self, step: int) -> Sequence[int]:
        if self._index is None:
            return range(len(self.work.train))
        at = self._at(step)
        if self._chosen is None or self._chosen.steps != at:
            self._chosen = read(self.work, self._index, at)
        if self._chosen is None:
            raise EngineFailure(
                "select_prompts.lost",
                f"The selection that step {step} draws from is no longer in {self.work.run_dir}.",
                remedy="Launch the run anew: the student has changed since it was made.",
            )
        return self._chosen.kept

    def _at(self, step: int) -> int:
        """Steps since the selecting stage after which the step's selection was chosen."""
        if self._selecting is None or not self._selecting.changes:
            return 0
        done = self._steps_before + step - 1
        return done - done % self._selecting.refresh_steps


def _in_teachers_rendering(work: Workspace) -> Workspace:
    """The workspace where the student too reads every prompt as the teacher does."""
    lead = {row: 1 + work.teachers.lead(work.pool[row]) for row in work.prompt_ids}
    ids = {row: (sides[lead[row]], *sides[1:]) for row, sides in work.prompt_ids.items()}
    return replace(work, prompt_ids=ids, prompt_text=work.teachers.text)
