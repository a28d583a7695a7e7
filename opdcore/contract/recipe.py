"""The recipe: what a run does, as an immutable list of stages. Each stage declares its knobs, once.

Forms, YAML, the command line, the API and the losses read names, defaults, bounds, units and help from
the stages, and from `evaluation` what a run is judged by. It knows no model, prompt or device.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.distill import DistillStage
from opdcore.contract.document import Document
from opdcore.contract.evaluation import Evaluation, Goal
from opdcore.contract.probe import DiagnoseStage
from opdcore.contract.reinforce import ReinforceStage
from opdcore.contract.select_prompts import SelectPromptsStage


class EvaluateStage(Document):
    """Answers and grades the held-out prompts with the student as it stands."""

    kind: Literal["evaluate"] = "evaluate"


# Those that change the student's weights, step by step.
TrainingStage = DistillStage | ColdStartStage | ReinforceStage
Stage = Annotated[
    TrainingStage | EvaluateStage | DiagnoseStage | SelectPromptsStage, Field(discriminator="kind")
]


class Recipe(Document):
    """An ordered list of stages with a goal: all that decides what is learned, but the models and prompts."""

    version: Literal[1] = Field(default=1, description="Version of this format.")
    name: str = Field(min_length=1, max_length=120, description="What people call it.")
    description: str = Field(default="", max_length=2000, description="What it is for.")
    goal: Goal = Field(default_factory=Goal, description="What the run is for.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="How it is graded.")
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=32, description="What is done.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of everything random.")

    @property
    def steps_by_stage(self) -> tuple[int, ...]:
        """Optimizer steps of each stage; 0 where a stage trains nothing."""
        return tuple(s.steps if isinstance(s, TrainingStage) else 0 for s in self.stages)

    def selection_of(self, index: int) -> int | None:
        """The stage that selects the prompts of the distillation at `index`; None: it draws from all."""
        before = [i for i in range(index) if isinstance(self.stages[i], SelectPromptsStage)]
        return before[-1] if before and isinstance(self.stages[index], DistillStage) else None

    @model_validator(mode="after")
    def _selections_matter(self) -> Self:
        used = {self.selection_of(index) for index in range(len(self.stages))}
        for index, stage in enumerate(self.stages):
            if not isinstance(stage, SelectPromptsStage):
                continue
            if index not in used:
                raise ValueError(
                    f"stages: no distillation draws from what stage {index + 1} selects; move "
                    "select_prompts before a distill stage, and have one for each"
                )
            if stage.strategy == "gap" and self.evaluation.verifier == "none":
                raise ValueError(
                    f"stages: the strategy gap of stage {index + 1} compares graded answers, and the "
                    "verifier is none; choose a verifier or another strategy"
                )
        return self
