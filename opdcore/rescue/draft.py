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

Value = str | float | bool | None


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
    knobs: dict[str, Value] = field(default_factory=dict)
    _before: list[Stage] = field(init=False)
    _after: list[Stage] = field(init=False)
    _inserted: list[tuple[Stage, Reason]] = field(default_factory=list)
    _set: list[tuple[str, Value, Value, Reason]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._before = list(self.recipe.stages[: self.stage_index])
        self._after = list(self.recipe.stages[self.stage_index + 1 :])

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
            self.knobs[name] = value
            self._set.append((name, before, value, reason))

    def start_from(self, spot: Spot, reason: Reason) -> None:
        """Goes on from a checkpoint: what was done before it is not done again."""
        self.start = spot
        self._before = []
        left = max(1, self.stage.steps - spot.step)
        self.set("steps", left, reason)
        self.set("warmup_steps", min(self.stage.warmup_steps, left), reason)

    def finished(self) -> tuple[Recipe, tuple[Change, ...]]:
        """The new recipe, checked like any other, and what it does otherwise."""
        stages = [*self._before, *(stage for stage, _ in self._inserted)]
        place = len(stages)
        changes = [
            Change(path=f"stages.{len(self._before) + index}", before=None, after=stage.kind,
                   **_why(reason))
            for index, (stage, reason) in enumerate(self._inserted)
        ]  # fmt: skip
        changes += [
            Change(path=f"stages.{place}.{name}", before=before, after=after, **_why(reason))
            for name, before, after, reason in self._set
        ]
        distill = DistillStage.model_validate(self.stage.model_dump() | self.knobs)
        told = self.recipe.model_dump() | {
            "name": f"{self.recipe.name[:110]}, rescued",
            "stages": [one.model_dump() for one in (*stages, distill, *self._after)],
        }
        return Recipe.model_validate(told), tuple(changes)


def _why(reason: Reason) -> dict[str, Any]:
    return {"reason": reason.text, "evidence": reason.evidence, "source": reason.source}
