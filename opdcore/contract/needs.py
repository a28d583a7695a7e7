"""What a recipe asks for beside a pair and train prompts, and what is wrong with what was given.

The job and the page of a launch refuse by it in the same words. It knows no file and no model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.errors import ErrorInfo
from opdcore.contract.recipe import Recipe
from opdcore.contract.select_prompts import SelectPromptsStage

TEACHER_CONTENT, OUTSIDE, WRITER, JUDGE = "teacher_content", "outside", "writer", "judge"
PROMPT_ROLES = (TEACHER_CONTENT, OUTSIDE)
ROLES = (*PROMPT_ROLES, WRITER, JUDGE)


class _Said(NamedTuple):
    """What is said where a role is missing, and where nothing reads what has it."""

    missing: str
    remedy: str
    unread: str


_BY_TEACHER_CONTENT = "Leave it out, or choose a recipe that selects prompts by teacher_content."
_SAID = {
    TEACHER_CONTENT: _Said(
        "The recipe selects prompts by teacher_content, and no prompt set has that role.",
        "Choose prompts of the teacher's own post-training, or a recipe with another strategy.",
        _BY_TEACHER_CONTENT,
    ),
    OUTSIDE: _Said("", "", _BY_TEACHER_CONTENT),
    WRITER: _Said(
        "The recipe's cold start learns what another model writes, and no model is named for it.",
        "Choose the model that writes, or a recipe whose source is teacher or demonstrations.",
        "Leave it out, or choose a recipe with a cold start whose source is writer.",
    ),
    JUDGE: _Said(
        "The recipe's verifier is judge, and no endpoint is named that it asks.",
        "Choose one that an admin registered, or a recipe with another verifier.",
        "Leave it out, or choose a recipe whose verifier is judge.",
    ),
}


def used(recipe: Recipe) -> tuple[str, ...]:
    """The roles that some stage reads; `outside` may still be left out."""
    selects = any(
        isinstance(one, SelectPromptsStage) and one.reads_own_sets for one in recipe.stages
    )
    judged = recipe.evaluation.verifier == "judge"
    return (
        *(PROMPT_ROLES if selects else ()),
        *((WRITER,) if writing(recipe) else ()),
        *((JUDGE,) if judged else ()),
    )


def writing(recipe: Recipe) -> list[int]:
    """Indices of the stages that learn what the writer writes."""
    return [
        index
        for index, stage in enumerate(recipe.stages)
        if isinstance(stage, ColdStartStage) and stage.source == "writer"
    ]


def faults(recipe: Recipe, given: Collection[str]) -> Iterator[ErrorInfo]:
    """What is missing among the roles given, and what no stage would read; fields are the roles."""
    wanted = used(recipe)
    for role in ROLES:
        said = _SAID[role]
        if role in given and role not in wanted:
            message = "No stage of the recipe uses it."
            yield ErrorInfo(code="job.unheeded", message=message, remedy=said.unread, field=role)
        elif said.missing and role in wanted and role not in given:
            yield ErrorInfo(
                code=f"recipe.no_{role}", message=said.missing, remedy=said.remedy, field=role
            )
