"""Where a run's student starts: its own weights, or a checkpoint that another run kept.

A checkpoint that a run starts from becomes its own file in STORAGES["artifacts"], so that what the
other run drops later takes nothing away. It knows no plan and no recipe.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from django.core.files.storage import FileSystemStorage, Storage, storages

from opdcore.contract.errors import BadInput
from opdcore.contract.rescue import Spot
from webapp.models import Artifact, Run
from webapp.models.ownership import new_public_id

WEIGHTS = re.compile(r"checkpoints/stage-(\d+)-step-(\d+)/model\.safetensors")


def kept(run: Run) -> dict[Spot, Artifact]:
    """The weights of each checkpoint that can still be started from, oldest first."""
    files = Artifact.objects.kept().filter(run=run, kind="checkpoint").exclude(storage_key="")
    found = {
        Spot(stage_index=int(match[1]), step=int(match[2])): file
        for file in files
        if (match := WEIGHTS.fullmatch(file.key))
    }
    return dict(sorted(found.items(), key=lambda one: (one[0].stage_index, one[0].step)))


@contextmanager
def taken(run: Run, spot: Spot | None) -> Iterator[dict[str, Any] | None]:
    """What a child's snapshot says of its start; the file is taken back where the launch fails.

    Without a spot, the child starts where the run itself did. Raises BadInput where the checkpoint
    is no longer kept.
    """
    if spot is None:
        yield run.snapshot.get("start")
        return
    storage, file = storages["artifacts"], _file(run, spot)
    key = _copied(storage, file.storage_key, f"{run.project.public_id}/starts/{new_public_id()}")
    try:
        yield {
            "run": run.public_id,
            **spot.model_dump(),
            "sha256": file.sha256,
            "size_bytes": file.size_bytes,
            "storage_key": key,
        }
    except BaseException:
        with suppress(FileNotFoundError):
            storage.delete(key)
        raise


def _file(run: Run, spot: Spot) -> Artifact:
    file = kept(run).get(spot)
    if file is None:
        raise BadInput(
            "rescue.checkpoint_gone",
            f"The checkpoint of step {spot.step} of {run.name} is no longer kept.",
            remedy="Open the plan again: it is made from what is there now.",
            field="start",
        )
    return file


def _copied(storage: Storage, source: str, folder: str) -> str:
    """A second name for the same file where the storage is a disk, else a copy."""
    key = f"{folder}/model.safetensors"
    if isinstance(storage, FileSystemStorage):
        target = Path(storage.path(key))
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # a disk that knows no links
            os.link(storage.path(source), target)
            return key
    with storage.open(source) as content:
        return storage.save(key, content)
