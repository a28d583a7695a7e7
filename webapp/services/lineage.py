"""Where a model comes from, as far as runs tell: whose student it was, and what that was trained by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from opdcore.contract.probe import Relation
from opdcore.contract.recipe import TrainingStage
from webapp.models import Pair, RegisteredModel


@dataclass(frozen=True, slots=True)
class Descent:
    """The student that a run made a model from, and the kinds of stages that trained it."""

    student: RegisteredModel
    kinds: tuple[str, ...]

    @property
    def told(self) -> str:
        """The kinds for people, such as `cold start and reinforce`; empty where nothing was trained."""
        return " and ".join(kind.replace("_", " ") for kind in self.kinds)


def descent(model: RegisteredModel) -> Descent | None:
    """What a run's output descends from; None for a model that no run made."""
    if model.run is None:
        return None
    stages = model.run.recipe.contract.stages
    kinds = [stage.kind for stage in stages if isinstance(stage, TrainingStage)]
    return Descent(model.run.pair.student, tuple(dict.fromkeys(kinds)))


def relation(pair: Pair) -> Relation:
    """What a pair's teacher is to its student; unknown where runs tell nothing of it."""
    teacher = pair.teachers.select_related("model__run__pair__student").first()
    if teacher is None:
        return "unknown"
    if pair.student in _ancestors(teacher.model):
        return "descendant"
    return "ancestor" if teacher.model in _ancestors(pair.student) else "unknown"


def _ancestors(model: RegisteredModel) -> Iterator[RegisteredModel]:
    """Students, from the one that the model was trained from back to one that no run made.

    A run's student is there before its output, so that the way back ends.
    """
    while model.run is not None:
        model = model.run.pair.student
        yield model
