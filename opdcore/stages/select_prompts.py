"""The stage select_prompts: candidates are measured and chosen among, for the distillation after it.

It changes no weight. What it chose lies in the run's folder, from where `drawing` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator

from opdcore.choosing import choose
from opdcore.contract.events import Progress
from opdcore.contract.select_prompts import SelectPromptsStage
from opdcore.contract.selection import Selection
from opdcore.workspace import Line, Workspace


def select_prompts(
    stage: SelectPromptsStage, work: Workspace, *, stage_index: int
) -> Iterator[Line]:
    """Yields progress and what was chosen; a wish to stop is heeded in between."""
    for item in choose(stage, work, stage_index=stage_index):
        if isinstance(item, Progress) and work.stop():
            raise work.cancelled()
        if not isinstance(item, Selection):
            yield Line(item)
