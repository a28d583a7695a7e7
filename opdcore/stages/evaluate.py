"""The evaluate stage: the student as it stands, and the teacher if it was not asked yet."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from opdcore.workspace import Line, Workspace


def evaluate(work: Workspace, *, stage_index: int) -> Iterator[Line]:
    """Grades both sides on the held-out prompts; without a verifier there is nothing to do."""
    if work.evaluator is None:
        return
    teacher = work.evaluator.teacher(work.teachers)
    student = work.evaluator.student(work.student, stage_index=stage_index, step=0)
    for payload in work.heeding_stop(chain(teacher, student)):
        yield Line(payload, 0)
