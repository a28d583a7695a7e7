"""Publishes what a run wrote into STORAGES["artifacts"], so that no page reads a worker's path.

A folder becomes one artifact per file. On a local storage of the same disk a file is linked, not
copied: what a job has declared complete never changes. It works beside the run, in its own thread.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import structlog
from django.core.files import File
from django.core.files.storage import FileSystemStorage, storages
from django.db import connections
from django.db.models import QuerySet

from opdcore.contract.events import AnyEvent, Logged
from webapp.models import Artifact, Run
from workers.bell import BELL

log = structlog.get_logger(__name__)

_CHUNK = 1 << 20


class Publisher:
    """One run's artifacts. `say` records what could not be published."""

    def __init__(self, run: Run, *, folder: Path) -> None:
        self.run = run
        self.problems: queue.SimpleQueue[Logged] = queue.SimpleQueue()
        self._folder = folder.resolve()
        self._storage = storages["artifacts"]
        self._work: queue.SimpleQueue[AnyEvent | tuple[str, str] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._publish_all, name=f"publisher-{run.pk}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def take(self, events: Sequence[AnyEvent]) -> None:
        """Publishes what these events declare; returns at once."""
        for event in events:
            if event.kind in ("artifact", "trace", "artifact_dropped"):
                self._work.put(event)

    def add(self, key: str, kind: str) -> None:
        """Publishes a file of the run's folder that no event declares, such as its log."""
        self._work.put((key, kind))

    def close(self, *, patience_seconds: float) -> bool:
        """Waits until all is published; false where that takes too long."""
        self._work.put(None)
        self._thread.join(timeout=patience_seconds)
        return not self._thread.is_alive()

    def _publish_all(self) -> None:
        try:
            while (work := self._work.get()) is not None:
                self._attempt(work)
                BELL.ring(self.run.bell)
        finally:
            connections.close_all()

    def _attempt(self, work: AnyEvent | tuple[str, str]) -> None:
        try:
            self._do(work)
        except Exception as error:  # a full disk, a lost bucket: the run itself goes on
            log.exception("not published", run=self.run.public_id)
            what = work[0] if isinstance(work, tuple) else work.payload.key  # type: ignore[union-attr]
            message = f"[artifact.unpublished] {what} stays on the worker only: {error}"
            self.problems.put(Logged(level="warning", message=message[:2000]))

    def _do(self, work: AnyEvent | tuple[str, str]) -> None:
        if isinstance(work, tuple):
            self._publish(*work)
        elif work.kind == "artifact":
            self._publish(work.payload.key, work.payload.artifact_kind)
        elif work.kind == "trace":
            self._publish(work.payload.key, "trace")
        elif work.kind == "artifact_dropped":
            self._drop(work.payload.key)

    def _publish(self, key: str, kind: str) -> None:
        path = self._confined(key)
        # Dropped by the job before its turn came: there is nothing to publish.
        if not path.exists():
            return
        for file in _files(path):
            self._publish_file(file, kind)

    def _publish_file(self, file: Path, kind: str) -> None:
        key = file.relative_to(self._folder).as_posix()
        place = f"{self.run.project.public_id}/{self.run.public_id}/{self.run.attempt}/{key}"
        with suppress(FileNotFoundError):
            self._storage.delete(place)
        stored = self._link(file, place) or self._copy(file, place)
        Artifact.objects.update_or_create(
            run=self.run,
            attempt=self.run.attempt,
            key=key,
            defaults={
                "kind": kind,
                "storage_key": stored,
                "sha256": _sha256(file),
                "size_bytes": file.stat().st_size,
                "dropped": False,
            },
        )
        self._forget(
            Artifact.objects.filter(run=self.run, key=key).exclude(attempt=self.run.attempt)
        )

    def _link(self, file: Path, place: str) -> str | None:
        if not isinstance(self._storage, FileSystemStorage):
            return None
        target = Path(self._storage.path(place))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target)
        except OSError:  # another disk, or one that knows no links
            return None
        return place

    def _copy(self, file: Path, place: str) -> str:
        with file.open("rb") as content:
            return self._storage.save(place, File(content))

    def _drop(self, key: str) -> None:
        """Removes an artifact, or all those of a folder, of any attempt."""
        under = Artifact.objects.filter(run=self.run, key__startswith=f"{key}/")
        self._forget(under | Artifact.objects.filter(run=self.run, key=key))

    def _forget(self, artifacts: QuerySet[Artifact]) -> None:
        for artifact in artifacts.filter(dropped=False):
            self._storage.delete(artifact.storage_key)
            artifact.dropped, artifact.storage_key = True, ""
            artifact.save(update_fields=["dropped", "storage_key"])

    def _confined(self, key: str) -> Path:
        path = (self._folder / key).resolve()
        if not path.is_relative_to(self._folder):
            raise ValueError(f"{key!r} leads out of the run's folder")
        return path


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and not file.is_symlink():
            yield file


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()
