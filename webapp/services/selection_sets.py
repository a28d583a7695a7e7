"""The prompt sets that only a stage select_prompts reads, by their roles in the job.

It knows no form and no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from webapp.models import PromptSet, Run


@dataclass(frozen=True, slots=True)
class SelectionSets:
    """Each role's prompt set; None where none has it."""

    teacher_content: PromptSet | None = None
    outside: PromptSet | None = None

    @classmethod
    def of_run(cls, run: Run) -> SelectionSets:
        """Those that a run was launched with."""
        return cls(run.teacher_content_set, run.outside_set)

    def by_role(self) -> dict[str, PromptSet | None]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def given(self) -> Iterator[tuple[str, PromptSet]]:
        """Roles with the sets that have them."""
        return ((role, one) for role, one in self.by_role().items() if one is not None)


NO_SETS = SelectionSets()
