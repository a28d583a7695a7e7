"""What a run tells of its teachers' records: what is full or damaged on the way, and what they hold at its end.

The file at the end names each teacher's record, so that another run can be replayed from it. It knows no
stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from opdcore.contract.events import ArtifactWritten, Logged, Payload
from opdcore.contract.scores import KeptRecord, KeptScores
from opdcore.files import write_bytes
from opdcore.teachers.recorded import RecordedModel
from opdcore.workspace import Workspace

FILE = "scores.json"
MEGABYTE = 1e6


def notices(work: Workspace) -> Iterator[Logged]:
    """What is to be said of the records now."""
    for _, model in work.teachers.recorded:
        for text in model.record.notices():
            yield Logged(level="warning", message=text)


def told(work: Workspace) -> Iterator[Payload]:
    """What the records hold, and the file that names them where they were kept."""
    recorded = work.teachers.recorded
    for index, model in recorded:
        yield Logged(level="info", message=_words(index, model))
    keeping = [(index, model) for index, model in recorded if model.teacher is not None]
    if keeping:
        yield _write(work.run_dir, KeptScores(records=tuple(_record(*one) for one in keeping)))


def _words(index: int, model: RecordedModel) -> str:
    counts, record = model.record.counts, model.record
    return (
        f"Teacher {index + 1}: {counts.asked:,} tokens were scored by it and {counts.found:,} by its record, "
        f"which holds {record.positions:,} ({record.size_bytes / MEGABYTE:.1f} MB) in {record.folder}."
    )


def _record(index: int, model: RecordedModel) -> KeptRecord:
    return KeptRecord(
        teacher=index,
        record=model.record.folder.name,
        tokens=model.record.positions,
        size_bytes=model.record.size_bytes,
        asked_tokens=model.record.counts.asked,
        found_tokens=model.record.counts.found,
        is_whole=model.record.is_whole,
    )


def _write(run_dir: Path, kept: KeptScores) -> ArtifactWritten:
    aside = run_dir / f"{FILE}.part"
    written = write_bytes(aside, json.dumps(kept.model_dump(mode="json"), indent=1).encode())
    aside.rename(run_dir / FILE)
    return ArtifactWritten(
        artifact_kind="scores", key=FILE, sha256=written.sha256, size_bytes=written.size_bytes
    )
