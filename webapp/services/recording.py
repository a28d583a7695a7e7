"""Recording: what a job wrote becomes rows, once, in order, under the fence of its attempt.

One transaction gives each new line its seq, drops lines that are already there, refuses those of a
stale attempt, keeps the run's headline columns, and lets series supersede and compact. It knows
neither the process that wrote the lines nor who reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import orjson
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Coalesce, Greatest

from opdcore.contract import events as contract
from opdcore.contract.errors import StillroomError
from opdcore.contract.events import AnyEvent
from webapp.models import Event, Run
from webapp.services import diagnoses, health, positions, series

_PAYLOAD = b',"payload":'
_HEAD_FIELDS = 6  # attempt, line, stage_index, step, at, kind

# Headline columns of a run by metric key, from training steps and from evaluations.
_HEADLINES = {"loss": "loss", "overlap_ratio": "overlap_ratio", "token_reward": "reward"}
_EVALUATION_HEADLINES = {"accuracy": "accuracy", "gap_recovery": "gap_recovery"}


class StaleAttempt(StillroomError):
    """Somebody else executes the run now, or it has ended; what this attempt says is refused."""


@dataclass(frozen=True)
class Line:
    """An event and the original JSON text of its payload."""

    event: AnyEvent
    payload: str


@dataclass(frozen=True)
class Author:
    """Who writes: one attempt of a run, and what its numbers need to be read."""

    run_id: int
    attempt: int
    steps_by_stage: tuple[int, ...]
    teachers: int = 1


def parse(raw: bytes) -> Line:
    """The event of a raw line; raises pydantic's ValidationError where it is not one."""
    return Line(contract.decode(raw), _payload_text(raw))


def record(author: Author, lines: Sequence[Line]) -> int:
    """Inserts what is new and returns the run's last seq; raises StaleAttempt where fenced off."""
    with transaction.atomic():
        run = _fenced(author)
        for group in _attempt_starts(_unknown(author.run_id, lines)):
            _insert(run, group, author)
        if run.last_seq - run.compacted_seq > series.TAIL_EVENTS:
            series.compact(run.pk, through=run.last_seq)
    return run.last_seq


def keep_disk(run_id: int, attempt: int, size_bytes: int) -> None:
    """The most that the run's folder has held, as the worker of its present attempt saw it."""
    mine = Run.objects.filter(pk=run_id, attempt=attempt, status=Run.Status.RUNNING)
    mine.update(disk_bytes=highest("disk_bytes", size_bytes))


def _payload_text(raw: bytes) -> str:
    """The payload as it was written: all of the line's end, as the contract's encoder orders it."""
    head, _, rest = raw.strip().partition(_PAYLOAD)
    try:
        if len(orjson.loads(head + b"}")) == _HEAD_FIELDS:
            return rest[:-1].decode()
    except orjson.JSONDecodeError:
        pass
    return orjson.dumps(orjson.loads(raw)["payload"]).decode()


def _fenced(author: Author) -> Run:
    columns = ("attempt", "status", "last_seq", "compacted_seq")
    run = Run.objects.select_for_update().only(*columns).get(pk=author.run_id)
    if run.attempt != author.attempt or run.status != Run.Status.RUNNING:
        raise StaleAttempt(
            "run.stale_attempt",
            f"Attempt {author.attempt} may not write: the run is {run.status} in attempt "
            f"{run.attempt}.",
            remedy="Nothing is lost; the present attempt goes on from the last checkpoint.",
        )
    return run


def _unknown(run_id: int, lines: Sequence[Line]) -> list[Line]:
    """Lines that are not recorded yet, each once."""
    new = {(line.event.attempt, line.event.line): line for line in reversed(lines)}
    for attempt in {attempt for attempt, _ in new}:
        numbers = [line for of, line in new if of == attempt]
        rows = Event.objects.filter(
            run_id=run_id, attempt=attempt, line__gte=min(numbers), line__lte=max(numbers)
        )
        for number in rows.order_by().values_list("line", flat=True):
            new.pop((attempt, number), None)
    return list(reversed(new.values()))


def _attempt_starts(lines: Sequence[Line]) -> list[list[Line]]:
    """Groups in which only the first line can be a stage that a later attempt starts anew."""
    groups: list[list[Line]] = []
    for line in lines:
        starts = line.event.kind == "stage_started" and line.event.attempt > 1
        if starts or not groups:
            groups.append([])
        groups[-1].append(line)
    return groups


def _insert(run: Run, lines: Sequence[Line], author: Author) -> None:
    first = lines[0].event
    if first.kind == "stage_started" and first.attempt > 1:
        series.compact(run.pk, through=run.last_seq)
        for kept in (series, positions):
            kept.supersede(
                run.pk,
                stage_index=first.stage_index or 0,
                step=first.payload.resumed_from_step or 0,
            )
        run.compacted_seq = run.last_seq
    Event.objects.bulk_create(
        _row(run.pk, run.last_seq + number, line) for number, line in enumerate(lines, start=1)
    )
    run.last_seq += len(lines)
    _keep(run.pk, [line.event for line in lines])
    columns = _taken_back(run, first) if first.attempt > 1 else {}
    columns |= _headlines(lines, author.steps_by_stage) | _tokens(lines, author.teachers)
    columns |= _peak_memory(lines)
    Run.objects.filter(pk=run.pk).update(last_seq=run.last_seq, **columns)


def _taken_back(run: Run, first: AnyEvent) -> dict[str, Any]:
    """The monitor's verdict as it was at the checkpoint that a later attempt goes on from."""
    watched = Event.objects.filter(run=run, kind="health").exists()
    if first.kind != "stage_started" or not watched:
        return {}
    left = health.of(run)
    return {"health": left.said.verdict.model_dump(mode="json") if left else None}


def _keep(run_id: int, events: Sequence[AnyEvent]) -> None:
    """What is read in another shape than it was said in: by position, and of a pair."""
    by_step = {(event.stage_index or 0, event.step or 0): event.payload
               for event in events if event.kind == "positions"}  # fmt: skip
    if by_step:
        positions.keep(run_id, by_step)
    diagnosed = [event for event in events if event.kind == "diagnosis"]
    if diagnosed:
        diagnoses.keep(run_id, diagnosed[-1].payload, at=diagnosed[-1].at)


def _row(run_id: int, seq: int, line: Line) -> Event:
    event = line.event
    return Event(
        run_id=run_id,
        seq=seq,
        attempt=event.attempt,
        line=event.line,
        stage_index=event.stage_index,
        step=event.step,
        kind=event.kind,
        at=event.at,
        payload=line.payload,
    )


def _headlines(lines: Sequence[Line], steps_by_stage: Sequence[int]) -> dict[str, Any]:
    """The run's columns that these lines change; `step` counts across stages."""
    offsets = [0, *accumulate(steps_by_stage)]
    changed: dict[str, Any] = {}
    for line in lines:
        event = line.event
        if event.stage_index is not None and event.stage_index < len(steps_by_stage):
            changed["stage_index"] = event.stage_index
            if event.step is not None:
                changed["step"] = offsets[event.stage_index] + event.step
        changed |= _of_kind(event)
    return changed


def _of_kind(event: AnyEvent) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    match event.kind:
        case "metrics":
            columns = _defined(event.payload.values, _HEADLINES)
        case "evaluation" if event.payload.role == "student":
            columns = _defined(event.payload.values, _EVALUATION_HEADLINES)
        case "job_started":
            columns = {"steps_total": sum(event.payload.steps_by_stage), "progress": None}
        case "progress":
            columns = {"progress": event.payload.model_dump(mode="json")}
        case "stage_started" | "job_finished":
            columns = {"progress": None}
        case "health" | "diagnosis":
            columns = {"health": event.payload.verdict.model_dump(mode="json")}
    return columns


def _tokens(lines: Sequence[Line], teachers: int) -> dict[str, Any]:
    """Tokens that these lines add to the run's cost: each teacher scores all that are generated.

    Those of a selection are written by either side, and nobody learns from them.
    """
    new = sum(
        int(line.event.payload.values.get("generated_tokens") or 0)
        for line in lines
        if line.event.kind == "metrics"
    )
    selected = [line.event.payload for line in lines if line.event.kind == "selection"]
    student = new + sum(one.student_tokens for one in selected)
    teacher = new * teachers + sum(one.teacher_tokens for one in selected)
    if not student and not teacher:
        return {}
    return {
        "student_tokens": F("student_tokens") + student,
        "teacher_tokens": F("teacher_tokens") + teacher,
    }


def _peak_memory(lines: Sequence[Line]) -> dict[str, Any]:
    """The run's highest memory, over all attempts."""
    told = [
        line.event.payload.values.get("peak_memory_bytes")
        for line in lines
        if line.event.kind == "metrics"
    ]
    found = [int(value) for value in told if value is not None]
    return {"peak_memory_bytes": highest("peak_memory_bytes", max(found))} if found else {}


def highest(column: str, value: int) -> Greatest:
    """The larger of what the column holds, which may be nothing yet, and a value."""
    return Greatest(Coalesce(F(column), 0), value)


def _defined(values: dict[str, float | None], columns: dict[str, str]) -> dict[str, float]:
    """Columns whose metric has a value; an undefined one leaves the last value standing."""
    found = {column: values.get(key) for key, column in columns.items()}
    return {column: value for column, value in found.items() if value is not None}
