"""A recipe under change: every step away from the old one is made here, with its reason.

It knows recipes and changes, and no verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from opdcore.contract.distill import DistillStage
from opdcore.contract.recipe import Recipe, Stage
from opdcore.contract.rescue import Change, Spot
from opdcore.contract.verdicts import Evidence

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Reason:
    """Why something is changed: a sentence, what it rests on, and where it was shown."""

    text: str
    evidence: tuple[Evidence, ...] = ()
    source: str = ""


@dataclass
class Draft:
    """The distill stage in question, what comes before and after it, and what was changed so far."""

    recipe: Recipe
    stage_index: int
    start: Spot | None = None
    _inserted: list[tuple[Stage, Reason]] = field(default_factory=list)
    _set: list[tuple[str, Value, Value, Reason]] = field(default_factory=list)

    @property
    def stage(self) -> DistillStage:
        """The distill stage as it was."""
        stage = self.recipe.stages[self.stage_index]
        assert isinstance(stage, DistillStage)
        return stage

    def insert(self, stage: Stage, reason: Reason) -> None:
        """Puts a stage right before the distill stage."""
        self._inserted.append((stage, reason))

    def set(self, name: str, value: Value, reason: Reason) -> None:
        """Turns a knob of the distill stage; nothing is told where it stands there already."""
        before = getattr(self.stage, name)
        if before != value:
            self._set.append((name, before, value, reason))

    def start_from(self, spot: Spot, reason: Reason) -> None:
        """Goes on from a checkpoint of the distill stage."""
        self.start = spot
        left = max(1, self.stage.steps - spot.step)
        self.set("steps", left, reason)
        self.set("warmup_steps", min(self.stage.warmup_steps, left), reason)

    def finished(self) -> tuple[Recipe, tuple[Change, ...]]:
        """The new recipe, checked like any other, and what it does otherwise."""
        before = self._before()
        stages = [*before, *(stage for stage, _ in self._inserted)]
        place = len(stages)
        changes = [
            Change(path=f"stages.{index}", before=None, after=stage.kind, **_why(reason))
            for index, (stage, reason) in enumerate(self._inserted, start=len(before))
        ]
        changes += [
            Change(path=f"stages.{place}.{name}", before=was, after=becomes, **_why(reason))
            for name, was, becomes, reason in self._set
        ]
        knobs = {name: becomes for name, _, becomes, _ in self._set}
        distill = DistillStage.model_validate(self.stage.model_dump() | knobs)
        after = self.recipe.stages[self.stage_index + 1 :]
        told = self.recipe.model_dump() | {
            "name": f"{self.recipe.name[:110]}, rescued",
            "stages": [one.model_dump() for one in (*stages, distill, *after)],
        }
        return Recipe.model_validate(told), tuple(changes)

    def _before(self) -> list[Stage]:
        """What is done before: all of it again, or after a checkpoint the choice of prompts alone."""
        stages = self.recipe.stages[: self.stage_index]
        if self.start is None:
            return list(stages)
        selected = self.recipe.selection_of(self.stage_index)
        return [] if selected is None else [stages[selected]]


def _why(reason: Reason) -> dict[str, Any]:
    return {"reason": reason.text, "evidence": reason.evidence, "source": reason.source}
