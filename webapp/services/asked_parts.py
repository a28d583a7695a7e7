"""What only some recipes ask for beside a pair and prompts, by its role in the job.

It knows no form and no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from opdcore.contract import needs
from opdcore.contract.recipe import Recipe as RecipeDocument
from webapp.models import ModelEndpoint, PromptSet, RegisteredModel, Run

Part = PromptSet | RegisteredModel | ModelEndpoint


@dataclass(frozen=True, slots=True)
class AskedParts:
    """Prompt sets that a stage selects from, the model that writes a cold start's responses, the judge."""

    teacher_content: PromptSet | None = None
    outside: PromptSet | None = None
    writer: RegisteredModel | None = None
    judge: ModelEndpoint | None = None

    @classmethod
    def of_run(cls, run: Run) -> AskedParts:
        """Those that a run was launched with."""
        return cls(run.teacher_content_set, run.outside_set, run.writer, run.judge)

    def for_recipe(self, recipe: RecipeDocument) -> AskedParts:
        """Those of them that another recipe asks for too."""
        unread = set(needs.ROLES) - set(needs.used(recipe))
        return replace(self, **dict.fromkeys(unread))

    def by_role(self) -> dict[str, Part | None]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def given(self) -> Iterator[tuple[str, Part]]:
        """Roles with what has them."""
        return ((role, one) for role, one in self.by_role().items() if one is not None)

    def sets(self) -> Iterator[tuple[str, PromptSet]]:
        """Roles with the prompt sets that have them."""
        return ((role, one) for role, one in self.given() if isinstance(one, PromptSet))


NOTHING_ASKED = AskedParts()
