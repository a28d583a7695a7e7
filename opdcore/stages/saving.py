"""A training stage's checkpoints on their way: written, told, and older ones dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opdcore import checkpoints
from opdcore.contract.events import ArtifactDropped, ArtifactWritten
from opdcore.tuning import Tuning
from opdcore.workspace import Line, Workspace


def checkpoint(
    work: Workspace,
    tuning: Tuning,
    stage_index: int,
    step: int,
    monitor: Mapping[str, Any] | None = None,
) -> Iterator[Line]:
    """The checkpoint after a step; `monitor` is what a stage that is watched goes on from."""
    root = work.run_dir / checkpoints.FOLDER
    saved, written = checkpoints.save(
        root,
        work.student.model,
        tuning.optimizer,
        stage_index=stage_index,
        step=step,
        recipe_sha256=checkpoints.recipe_sha256(work.job.recipe),
        monitor=monitor,
    )
    told = ArtifactWritten(
        artifact_kind="checkpoint",
        key=f"{checkpoints.FOLDER}/{saved.folder.name}",
        sha256=written.sha256,
        size_bytes=written.size_bytes,
    )
    yield Line(told, step)
    for removed in checkpoints.prune(root, keep=tuning.stage.keep_checkpoints):
        yield Line(ArtifactDropped(key=f"{checkpoints.FOLDER}/{removed.name}"), step)
