"""Which prompt sets a recipe asks for beside the train set, and what is wrong with those given.

The job and the page of a launch refuse by it in the same words. It knows no file.
"""

from __future__ import annotations

from collections.abc import Collection

from opdcore.contract.errors import ErrorInfo
from opdcore.contract.recipe import Recipe
from opdcore.contract.select_prompts import SelectPromptsStage

TEACHER_CONTENT, OUTSIDE = "teacher_content", "outside"
ROLES = (TEACHER_CONTENT, OUTSIDE)


def used(recipe: Recipe) -> tuple[str, ...]:
    """The roles that some stage reads; the set `outside` may still be left out."""
    stages = [one for one in recipe.stages if isinstance(one, SelectPromptsStage)]
    return ROLES if any(stage.reads_own_sets for stage in stages) else ()


def faults(recipe: Recipe, given: Collection[str]) -> list[ErrorInfo]:
    """What is missing among the roles given, and what no stage would read; fields are the roles."""
    wanted = used(recipe)
    found = [
        ErrorInfo(
            code="job.unheeded",
            message="No stage of the recipe uses it.",
            remedy="Leave it out, or choose a recipe that selects prompts by teacher_content.",
            field=role,
        )
        for role in ROLES
        if role in given and role not in wanted
    ]
    if wanted and TEACHER_CONTENT not in given:
        missing = ErrorInfo(
            code="recipe.no_teacher_content",
            message="The recipe selects prompts by teacher_content, and no prompt set has that role.",
            remedy="Choose prompts of the teacher's own post-training, or a recipe with another strategy.",
            field=TEACHER_CONTENT,
        )
        found.append(missing)
    return found
