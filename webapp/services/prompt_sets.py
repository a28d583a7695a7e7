"""Prompt sets: uploaded, checked row by row, stored whole or not at all, and never changed.

Small files are imported while the browser waits, larger ones in a thread of this process, whose
progress stands in the row. What is stored is canonical: one `Prompt` a line as compact JSON, named
by its SHA-256.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.core.files import File
from django.core.files.storage import storages
from django.core.files.uploadedfile import UploadedFile
from django.db import connection, transaction
from django.db.models import Max, Q
from django.utils import timezone

from opdcore.contract.errors import BadInput
from opdcore.contract.prompt import Prompt
from webapp.models import Project, PromptSet, Run, User
from webapp.permissions import require
from webapp.services import audit
from webapp.services.prompt_rows import Columns, RowError, format_of, prompt_of, read

SHOWN_ERRORS = 50
AT_ONCE_BYTES = 1 << 20
PROGRESS_SECONDS = 0.5
PIECE_BYTES = 256 << 10
SILENT = timedelta(seconds=90)
# Widths of the length histogram double: prompts of 40 and of 40,000 characters share one picture.
FIRST_BUCKET_CHARACTERS = 32


@dataclass
class _Tally:
    """What is counted while rows pass by."""

    rows: int = 0
    answers: int = 0
    chats: int = 0
    duplicates: int = 0
    errors: list[RowError] = field(default_factory=list)
    error_count: int = 0
    characters: int = 0
    longest: int = 0
    buckets: Counter[int] = field(default_factory=Counter)
    tags: Counter[str] = field(default_factory=Counter)
    columns: Columns = field(default_factory=Columns)
    seen: set[bytes] = field(default_factory=set)


def upload(
    file: UploadedFile[bytes],
    *,
    name: str,
    project: Project,
    actor: User,
    in_thread: bool | None = None,
) -> PromptSet:
    """Takes an upload in and imports it: at once where it is small, else in a thread.

    Raises BadInput, with nothing saved, for a file that is empty, too large or of another format.
    A file with bad rows gives a set whose state is failed and whose `errors` say where.
    """
    require(actor, "edit", project)
    row = PromptSet(
        project=project,
        created_by=actor,
        name=(name.strip() or Path(file.name or "prompts").stem)[:120],
        state=PromptSet.State.IMPORTING,
        format=_sound(file),
        source_name=(file.name or "")[:255],
        source_bytes=file.size or 0,
    )
    _keep(file, _upload_path(row))
    with transaction.atomic():
        row.version = _next_version(project, row.name)
        row.save(force_insert=True)
    if in_thread if in_thread is not None else (file.size or 0) > AT_ONCE_BYTES:
        transaction.on_commit(lambda: _start_thread(row.pk))
        return row
    return import_rows(row)


def add_file(path: Path, *, name: str, project: Project, actor: User) -> PromptSet:
    """Imports a file of this machine at once; the demo's way in."""
    with path.open("rb") as file:
        incoming = UploadedFile(file, path.name, size=path.stat().st_size)
        return upload(incoming, name=name, project=project, actor=actor, in_thread=False)


def import_rows(row: PromptSet) -> PromptSet:
    """Reads the kept upload to its end; leaves the set ready, or failed with its errors."""
    source = _upload_path(row)
    canonical = source.with_suffix(".canonical")
    try:
        tally, sha256 = _canonicalised(row, source, canonical)
        _finish(row, tally, sha256, canonical)
    finally:
        source.unlink(missing_ok=True)
        canonical.unlink(missing_ok=True)
        _fail_if_unfinished(row)
    return row


def give_up_if_silent(row: PromptSet) -> PromptSet:
    """Ends an import whose process has gone: it reported nothing for too long."""
    if row.state == PromptSet.State.IMPORTING and timezone.now() - row.done_at > SILENT:
        _fail(row, "The server stopped during the import.", "Upload the file again.")
    return row


def _used_by(row: PromptSet) -> Q:
    """Runs in which the set has any role."""
    roles = ("train_set", "held_out_set", "teacher_content_set", "outside_set")
    return Q(*((role, row) for role in roles), _connector=Q.OR)


@transaction.atomic
def delete(row: PromptSet, *, actor: User) -> None:
    """Hides a set that no run uses; `restore` brings it back."""
    require(actor, "edit", row.project)
    runs = Run.objects.filter(_used_by(row)).count()
    if runs:
        raise BadInput(
            "prompt_set.in_use",
            f"{row} is used by {runs} run{'s' if runs > 1 else ''}.",
            remedy="It stays, so that they can be read and repeated.",
            field="prompt_set",
        )
    row.deleted_at = timezone.now()
    row.save(update_fields=["deleted_at"])
    audit.record(actor, "delete", project=row.project, about=row, detail={"name": str(row)})


@transaction.atomic
def restore(row: PromptSet, *, actor: User) -> None:
    """Undoes a deletion."""
    require(actor, "edit", row.project)
    row.deleted_at = None
    row.save(update_fields=["deleted_at"])
    audit.record(actor, "restore", project=row.project, about=row, detail={"name": str(row)})


def open_stored(row: PromptSet) -> IO[bytes]:
    """The canonical JSON lines, as bytes."""
    return storages["prompts"].open(row.storage_key, "rb")


def pieces(row: PromptSet) -> Iterator[bytes]:
    """The canonical file in pieces, for a download that holds none of it whole."""
    with open_stored(row) as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def page_of(row: PromptSet, *, start: int, count: int) -> list[Prompt]:
    """Prompts from the given row on, counted from 0."""
    with open_stored(row) as file:
        return [Prompt.model_validate_json(line) for line in _slice(file, start, count)]


def first_prompt(row: PromptSet) -> Prompt | None:
    """The first prompt, for previews."""
    return next(iter(page_of(row, start=0, count=1)), None)


def _slice(file: IO[bytes], start: int, count: int) -> Iterator[bytes]:
    return itertools.islice(file, start, start + count)


def _sound(file: UploadedFile[bytes]) -> str:
    """The upload's format; BadInput where it cannot be taken in."""
    size = file.size or 0
    file_format = format_of(file.name or "")
    if file_format is None:
        raise BadInput(
            "prompt_set.format",
            f"{file.name!r} is neither JSON lines, CSV nor Parquet.",
            remedy="Upload a file that ends in .jsonl, .csv or .parquet.",
            field="file",
        )
    if size == 0:
        raise BadInput(
            "prompt_set.empty", f"{file.name} is empty.", remedy="Upload a file with rows.",
            field="file",
        )  # fmt: skip
    if size > settings.PROMPT_SET_MAX_BYTES:
        raise BadInput(
            "prompt_set.too_large",
            f"{file.name} has {size / 1e9:.1f} GB and at most "
            f"{settings.PROMPT_SET_MAX_BYTES / 1e9:.1f} GB are taken.",
            remedy="Split it, or leave out columns that no run reads.",
            field="file",
        )
    return file_format


def _next_version(project: Project, name: str) -> int:
    rows = PromptSet.objects.filter(project=project, name=name)
    return (rows.aggregate(newest=Max("version"))["newest"] or 0) + 1


def _upload_path(row: PromptSet) -> Path:
    return Path(settings.STATE_DIR) / "uploads" / row.public_id


def _keep(file: UploadedFile[bytes], path: Path) -> None:
    """Copies the upload aside; BadInput, with nothing left behind, where the disk does not take it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with path.open("wb") as kept:
            for chunk in file.chunks():
                kept.write(chunk)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise BadInput(
            "prompt_set.not_kept",
            f"{file.name} could not be written to the server's disk: {error.strerror}.",
            remedy="Free space in Stillroom's state folder, then upload it again.",
            field="file",
        ) from error


def _start_thread(pk: int) -> None:
    threading.Thread(target=_in_thread, args=(pk,), daemon=True).start()


def _in_thread(pk: int) -> None:
    try:
        import_rows(PromptSet.objects.get(pk=pk))
    finally:
        connection.close()


def _canonicalised(row: PromptSet, source: Path, canonical: Path) -> tuple[_Tally, str]:
    """Writes the canonical file and counts; errors are counted to the end of the source."""
    tally, digest = _Tally(), hashlib.sha256()
    told = time.monotonic()
    with canonical.open("wb") as out:
        for one in read(source, row.format):
            found = prompt_of(one, tally.columns)
            if isinstance(found, Prompt):
                line = found.model_dump_json(exclude_defaults=True).encode() + b"\n"
                _count(tally, found, line)
                digest.update(line)
                out.write(line)
            else:
                _count_errors(tally, found)
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                _tell(row, one.done_bytes, tally.rows)
    return tally, digest.hexdigest()


def _count(tally: _Tally, prompt: Prompt, line: bytes) -> None:
    text = prompt.prompt or "\n".join(message.content for message in prompt.messages or ())
    tally.rows += 1
    tally.answers += prompt.answer is not None
    tally.chats += prompt.messages is not None
    tally.characters += len(text)
    tally.longest = max(tally.longest, len(text))
    tally.buckets[_bucket(len(text))] += 1
    tally.tags.update(prompt.tags)
    fingerprint = hashlib.blake2b(line, digest_size=8).digest()
    tally.duplicates += fingerprint in tally.seen
    tally.seen.add(fingerprint)


def _bucket(characters: int) -> int:
    """0 up to the first width, then one more for each doubling."""
    return max(0, math.ceil(math.log2(max(characters, 1) / FIRST_BUCKET_CHARACTERS)))


def _count_errors(tally: _Tally, errors: list[RowError]) -> None:
    tally.error_count += len(errors)
    tally.errors.extend(errors[: SHOWN_ERRORS - len(tally.errors)])


def _tell(row: PromptSet, done_bytes: int, rows: int) -> None:
    row.done_bytes, row.rows = done_bytes, rows
    row.save(update_fields=["done_bytes", "rows", "done_at"])


def _finish(row: PromptSet, tally: _Tally, sha256: str, canonical: Path) -> None:
    if tally.error_count:
        _fail_with_errors(row, tally)
        return
    if tally.rows == 0:
        _fail(row, "The file has no rows.", "Upload a file with at least one prompt.")
        return
    same = _same(row, sha256)
    if same is not None:
        _fail(row, f"The content equals {same}, byte for byte.", f"Use {same}.")
        return
    row.storage_key = _store(row, sha256, canonical)
    row.sha256, row.size_bytes, row.rows = sha256, canonical.stat().st_size, tally.rows
    row.done_bytes, row.stats = row.source_bytes, _stats(tally)
    row.state = PromptSet.State.READY
    with transaction.atomic():
        row.save()
        detail = {"name": str(row), "rows": row.rows, "sha256": sha256[:12]}
        audit.record(row.created_by, "create", project=row.project, about=row, detail=detail)


def _same(row: PromptSet, sha256: str) -> PromptSet | None:
    twins = PromptSet.objects.ready().filter(project=row.project, name=row.name, sha256=sha256)
    return twins.exclude(pk=row.pk).first()


def _store(row: PromptSet, sha256: str, canonical: Path) -> str:
    """Puts the file under its hash; equal content of one project is stored once."""
    key = f"{row.project.public_id}/{sha256}.jsonl"
    storage = storages["prompts"]
    if storage.exists(key):
        return key
    with canonical.open("rb") as file:
        return storage.save(key, File(file))


def _stats(tally: _Tally) -> dict[str, Any]:
    return {
        "answers": tally.answers,
        "chats": tally.chats,
        "duplicates": tally.duplicates,
        "characters_mean": tally.characters / tally.rows,
        "characters_max": tally.longest,
        "histogram": _histogram(tally.buckets),
        "tags": dict(tally.tags.most_common(20)),
        "columns": tally.columns.used,
        "left_out": sorted(tally.columns.left_out),
    }


def _histogram(buckets: Counter[int]) -> list[dict[str, int]]:
    """Counts by length: each bar covers lengths above the one before, up to `to` characters."""
    return [
        {"to": FIRST_BUCKET_CHARACTERS << bucket, "count": buckets[bucket]}
        for bucket in range(max(buckets) + 1)
    ]


def _fail_with_errors(row: PromptSet, tally: _Tally) -> None:
    row.state, row.rows = PromptSet.State.FAILED, 0
    row.errors = [json.loads(json.dumps(asdict(error))) for error in tally.errors]
    row.error_count = tally.error_count
    row.save()


def _fail(row: PromptSet, message: str, remedy: str) -> None:
    row.state, row.rows, row.error_count = PromptSet.State.FAILED, 0, 1
    row.errors = [asdict(RowError(0, None, None, message, remedy))]
    row.save()


def _fail_if_unfinished(row: PromptSet) -> None:
    """Whatever ended the import, the row does not stay in it."""
    if row.state == PromptSet.State.IMPORTING:
        _fail(row, "The import broke off inside Stillroom; its log says why.", "Report it.")
