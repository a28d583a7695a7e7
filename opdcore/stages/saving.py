"""A training stage's checkpoints on their way: written, told, and older ones dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opdcore import checkpoints
from opdcore.contract.events import ArtifactDropped, ArtifactWritten
from opdcore.stages import training
from opdcore.teachers.following import averages
from opdcore.tuning import Tuning
from opdcore.workspace import Line, Workspace


def checkpoint(
    work: Workspace,
    tuning: Tuning,
    stage_index: int,
    step: int,
    followed: Mapping[str, Any] | None = None,
    *,
    sound_until: int | None = None,
) -> Iterator[Line]:
    """The checkpoint after a step; `followed` is what a stage follows step by step.

    Teachers that are averages of the student lie beside it.

    The newest one that is no later than `sound_until` is kept whatever its age, to roll back to.
    """
    root = work.run_dir / checkpoints.FOLDER
    saved, written = checkpoints.save(
        root,
        work.student.model,
        training.state(work),
        stage_index=stage_index,
        step=step,
        recipe_sha256=checkpoints.recipe_sha256(work.job.recipe),
        followed=followed,
        beside=averages(work.teachers),
    )
    told = ArtifactWritten(
        artifact_kind="checkpoint",
        key=f"{checkpoints.FOLDER}/{saved.folder.name}",
        sha256=written.sha256,
        size_bytes=written.size_bytes,
    )
    yield Line(told, step)
    spare = None
    if sound_until is not None:
        spare = checkpoints.newest_until(root, stage_index=stage_index, step=sound_until)
    for removed in checkpoints.prune(root, keep=tuning.stage.keep_checkpoints, spare=spare):
        yield Line(ArtifactDropped(key=f"{checkpoints.FOLDER}/{removed.name}"), step)
