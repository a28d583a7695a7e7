"""What a run left behind, as people fetch it: one artifact, its output as one archive, its log's end.

Everything is read from STORAGES["artifacts"] in pieces, so that a large file takes no memory.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from django.core.files.storage import FileSystemStorage, storages

from opdcore.contract.errors import BadInput
from webapp.models import Artifact, Run

PIECE_BYTES = 1 << 20
LOG_TAIL_BYTES = 32 << 10
# Every kind of the contract by its heading, in the order of what people look for.
NAMES = {
    "output": "Output",
    "evaluation": "Evaluations",
    "trace": "Traces",
    "selection": "Selected prompts",
    "scores": "Teacher's scores",
    "log": "Logs",
    "checkpoint": "Checkpoints",
}


@dataclass(frozen=True, slots=True)
class Group:
    """The files of one kind."""

    kind: str
    files: list[Artifact]

    @property
    def name(self) -> str:
        return NAMES[self.kind]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class _Pipe:
    """A file that is only written to, and emptied as it fills."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> bytes:
        taken, self._pieces = b"".join(self._pieces), []
        return taken


def kept(run: Run) -> list[Artifact]:
    """Files that can be downloaded: what people look for first comes first."""
    found = Artifact.objects.kept().filter(run=run).exclude(storage_key="")
    return sorted(found, key=lambda file: (list(NAMES).index(file.kind), file.key))


def groups(files: Iterable[Artifact]) -> list[Group]:
    """Files that are already in order, by kind."""
    return [Group(kind, list(of_kind)) for kind, of_kind in groupby(files, attrgetter("kind"))]


def output(run: Run) -> list[Artifact]:
    """Files of the trained student."""
    return [one for one in kept(run) if one.kind == "output"]


def lay_out(run: Run, folder: Path) -> None:
    """Puts the trained student's files into a folder: as links where they lie on the same disk."""
    storage, files = storages["artifacts"], output(run)
    if not files:
        raise BadInput(
            "run.no_output",
            f"{run.name} has no output.",
            remedy="Wait for the run to finish; a run that failed leaves none.",
            field="run",
        )
    if not isinstance(storage, FileSystemStorage):
        raise BadInput(
            "run.output_elsewhere",
            "Outputs are kept in an object store, where no worker can load a model from.",
            remedy="Download the output to a folder of the worker and register that folder.",
            field="run",
        )
    for file in files:
        target = folder / _name_in_output(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(Path(storage.path(file.storage_key)), target)


def _link_or_copy(stored: Path, target: Path) -> None:
    try:
        os.link(stored, target)
    except OSError:  # another disk, or one that knows no links
        shutil.copyfile(stored, target)


def _name_in_output(artifact: Artifact) -> str:
    return artifact.key.partition("/")[2] or artifact.key


def pieces(artifact: Artifact) -> Iterator[bytes]:
    """The file's content."""
    with storages["artifacts"].open(artifact.storage_key) as stored:
        while piece := stored.read(PIECE_BYTES):
            yield piece


def archive(artifacts: Iterable[Artifact], *, folder: str) -> Iterator[bytes]:
    """A ZIP of the files under one folder, uncompressed since weights do not shrink."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as bundle:  # type: ignore[call-overload]
        for artifact in artifacts:
            name = f"{folder}/{_name_in_output(artifact)}"
            with bundle.open(name, "w", force_zip64=True) as entry:
                for piece in pieces(artifact):
                    entry.write(piece)
                    yield pipe.take()
            yield pipe.take()
    yield pipe.take()


def log_tail(run: Run) -> str | None:
    """The end of what the job's process wrote; None where nothing of it is published."""
    logs = Artifact.objects.kept().filter(run=run, kind="log").exclude(storage_key="")
    log = logs.order_by("-attempt", "-pk").first()
    if log is None:
        return None
    with storages["artifacts"].open(log.storage_key) as stored:
        stored.seek(max(0, log.size_bytes - LOG_TAIL_BYTES))
        tail: bytes = stored.read()
    return tail.decode("utf-8", "replace")
