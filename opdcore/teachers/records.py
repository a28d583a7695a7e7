"""The records of teachers in a folder: which one is whose, opened to keep or to replay, told, and freed.

A record's folder holds the scores, the responses, and of the teacher its card and the files that render
prompts, so that nothing of it is needed when it is replayed. It knows no run.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from opdcore.contract.errors import BadInput
from opdcore.contract.job import Job
from opdcore.contract.scores import Scores
from opdcore.contract.teacher import Teacher
from opdcore.files import hash_file, whole_folder, write_bytes
from opdcore.inspection import CONFIG, ModelCard
from opdcore.models import LoadedModel
from opdcore.rendering import Renderer
from opdcore.response_cache import ResponseCache
from opdcore.score_record import ScoreRecord
from opdcore.serving.model import ServedModel
from opdcore.teachers.recorded import VERSION, RecordedModel

TEACHER = "teacher.json"
# The teacher's files that are no weights.
MODEL = "model"
RESPONSES = "responses"
_RENDERING_FILES = ("*.json", "*.jinja", "*.txt")
DAY_SECONDS = 86_400
# Left free for checkpoints and everything else.
SPARE_DISK_BYTES = 1 << 30


@dataclass(frozen=True)
class Record:
    """A record as it lies there."""

    folder: Path
    teacher: dict[str, Any]
    size_bytes: int
    unused_seconds: float

    @property
    def name(self) -> str:
        return self.folder.name

    def told(self) -> str:
        """A line for people."""
        source = self.teacher["source"]
        whose = source.get("path") or f"{source['repo']} at {source['revision']}"
        days = self.unused_seconds / DAY_SECONDS
        return f"{self.name}  {self.size_bytes / 1e6:.1f} MB  unused for {days:.1f} days  {whose}"

    @property
    def card(self) -> ModelCard:
        return ModelCard.model_validate(self.teacher["card"])


def keep(
    model: LoadedModel | ServedModel,
    said: Teacher,
    scores: Scores,
    *,
    job: Job,
    device: torch.device,
) -> RecordedModel:
    """The teacher, with the record of what it says."""
    told = _told(model, said)
    folder = Path(scores.folder) / _name(told)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not (folder / TEACHER).exists():
            _write(folder, model, told)
    (folder / TEACHER).touch()
    return RecordedModel(
        teacher=model,
        record=ScoreRecord(folder, room=_room(scores), run=job.run_id),
        responses=_responses(folder, scores),
        renderer=model.renderer,
        card=model.card,
        folder=model.folder,
        device=device,
        is_served=isinstance(model, ServedModel),
    )


def replay(said: Teacher, scores: Scores, *, device: torch.device, field: str) -> RecordedModel:
    """The record alone, in the teacher's place; BadInput where there is none, or more than one."""
    record = _chosen(said, scores, field)
    (record.folder / TEACHER).touch()
    return RecordedModel(
        teacher=None,
        record=ScoreRecord(record.folder),
        responses=_responses(record.folder, scores),
        renderer=Renderer.from_folder(record.folder / MODEL, said.rendering),
        card=record.card,
        folder=record.folder / MODEL,
        device=device,
        is_served=record.teacher["kind"] != "loaded",
    )


def every(folder: Path) -> Iterator[Record]:
    """The records of a folder, by name."""
    for file in sorted(folder.glob(f"*/{TEACHER}")):
        files = [one for one in file.parent.rglob("*") if one.is_file()]
        yield Record(
            folder=file.parent,
            teacher=json.loads(file.read_bytes()),
            size_bytes=sum(one.stat().st_size for one in files),
            unused_seconds=max(0.0, time.time() - file.stat().st_mtime),
        )


def free(folder: Path, *, unused_days: float) -> list[Record]:
    """Removes the records that no run has opened for so many days; returns them."""
    old = [one for one in every(folder) if one.unused_seconds >= unused_days * DAY_SECONDS]
    for record in old:
        # Without it the record is found by nobody, whatever happens then.
        (record.folder / TEACHER).unlink()
        shutil.rmtree(record.folder)
    return old


def _room(scores: Scores) -> int:
    """Bytes that may still be added: of the folder's bound, and of a disk that the run itself needs too."""
    folder = Path(scores.folder)
    left = scores.most_bytes - sum(one.size_bytes for one in every(folder))
    return max(0, min(left, shutil.disk_usage(folder).free - SPARE_DISK_BYTES))


def _told(model: LoadedModel | ServedModel, said: Teacher) -> dict[str, Any]:
    """Who it is: what decides its scores, and how it is named in a job."""
    kind = "loaded" if isinstance(model, LoadedModel) else "served"
    endpoint = said.served.endpoint if said.served else None
    return {
        "kind": kind,
        "version": VERSION,
        "endpoint": [endpoint.base_url, endpoint.model] if endpoint else None,
        "config_sha256": hash_file(model.folder / CONFIG).sha256,
        "card": model.card.model_dump(mode="json"),
        "source": said.model.model_dump(mode="json"),
    }


def _name(told: dict[str, Any]) -> str:
    decides = [told[one] for one in ("kind", "version", "endpoint", "config_sha256")]
    decides.append(told["card"]["weights_fingerprint"])
    return sha256(json.dumps(decides).encode()).hexdigest()[:32]


def _write(folder: Path, model: LoadedModel | ServedModel, told: dict[str, Any]) -> None:
    """The teacher's card and files; the former last, since it says that all is there."""
    with whole_folder(folder / MODEL) as aside:
        for pattern in _RENDERING_FILES:
            for file in model.folder.glob(pattern):
                shutil.copyfile(file, aside / file.name)
    aside_file = folder / f"{TEACHER}.part"
    write_bytes(aside_file, json.dumps(told, indent=1).encode())
    aside_file.rename(folder / TEACHER)


def _responses(folder: Path, scores: Scores) -> ResponseCache:
    return ResponseCache(folder / RESPONSES, [folder.name], most_bytes=scores.most_bytes)


def _chosen(said: Teacher, scores: Scores, field: str) -> Record:
    source = said.model.model_dump(mode="json")
    found = [
        one
        for one in every(Path(scores.folder))
        if (one.name == scores.record if scores.record else one.teacher["source"] == source)
    ]
    if len(found) == 1:
        return found[0]
    whose = scores.record or getattr(said.model, "path", None) or source["repo"]
    if found:
        raise BadInput(
            "scores.several_records",
            f"{scores.folder} has {len(found)} records of {whose}: "
            f"{', '.join(one.name for one in found)}.",
            remedy="Name one of them.",
            field=f"{field}.scores.record",
        )
    raise BadInput(
        "scores.no_record",
        f"{scores.folder} has no record of {whose}.",
        remedy="Replay on the machine where a run has kept the teacher's scores, or launch with the teacher.",
        field=f"{field}.scores.folder",
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
