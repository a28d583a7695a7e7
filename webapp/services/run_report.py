"""What a run's page tells beside its charts: stages, evaluations, log lines.

All of it is read from the run's row and its recorded events, so a reload shows what was shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import orjson

from webapp.models import Event, Run
from webapp.services import series

LOG_LINES = 400
_LOG_KINDS = (
    "log", "job_started", "stage_started", "stage_finished", "job_finished", "evaluation", "health",
    "diagnosis",
    "selection",
)  # fmt: skip
StageState = Literal["done", "current", "failed", "waiting"]


@dataclass(frozen=True, slots=True)
class StageMark:
    """A stage as the stepper shows it."""

    number: int
    name: str
    state: StageState
    note: str


@dataclass(frozen=True, slots=True)
class Measured:
    """One side's accuracy on the held-out prompts with its 95 % bounds, at a step."""

    value: float
    low: float | None
    high: float | None
    step: int | None


@dataclass(frozen=True, slots=True)
class Evaluations:
    """What was measured before the run, last, and of the teacher; each None until it was."""

    before: Measured | None
    last: Measured | None
    teacher: Measured | None


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line for people."""

    at: datetime
    level: str
    text: str


def stages(run: Run) -> list[StageMark]:
    """The run's stages with how far each one is."""
    return [
        StageMark(
            number=span.index + 1,
            name=span.kind.replace("_", " ").capitalize(),
            state=_state(run, span.index),
            note=_note(run, span),
        )
        for span in series.stages(run)
    ]


def evaluations(run: Run) -> Evaluations:
    """The first and the last evaluation of the student, and the teacher's."""
    students: list[Measured] = []
    teacher = None
    found = Event.objects.filter(run=run, kind="evaluation").order_by("seq")
    for step, payload in found.values_list("step", "payload"):
        said = orjson.loads(payload)
        measured = _measured(said, step)
        if said["role"] == "teacher":
            teacher = measured
        elif measured is not None:
            students.append(measured)
    first = students[0] if students else None
    return Evaluations(first, students[-1] if len(students) > 1 else None, teacher)


def log(run: Run) -> list[LogLine]:
    """The newest lines of the run's log, oldest of them first."""
    events = Event.objects.filter(run=run, kind__in=_LOG_KINDS).order_by("-seq")[:LOG_LINES]
    rows = list(events.values_list("kind", "step", "at", "payload"))
    return [_line(kind, step, at, orjson.loads(payload)) for kind, step, at, payload in rows[::-1]]


def versions(run: Run) -> dict[str, str]:
    """Device and software of the latest attempt; empty before it."""
    event = Event.objects.filter(run=run, kind="job_started").order_by("-seq").first()
    if event is None:
        return {}
    said = orjson.loads(event.payload)
    found: dict[str, str] = {"device": said["device"]} | said["versions"]
    return found


def _state(run: Run, index: int) -> StageState:
    if run.status == Run.Status.SUCCEEDED:
        return "done"
    if run.stage_index is None or index > run.stage_index:
        return "waiting"
    if index < run.stage_index:
        return "done"
    if run.has_ended:
        return "failed" if run.status == Run.Status.FAILED else "waiting"
    return "current"


def _note(run: Run, span: series.StageSpan) -> str:
    if not span.steps:
        return _NOTES.get(span.kind, "held-out prompts")
    done = min(max(run.step - span.offset, 0), span.steps)
    if run.has_ended and 0 < done < span.steps:
        return f"stopped at step {done:,} of {span.steps:,}"
    return f"{span.steps:,} steps"


def _measured(said: dict[str, Any], step: int | None) -> Measured | None:
    values = said["values"]
    key = "teacher_accuracy" if said["role"] == "teacher" else "accuracy"
    value = values.get(key)
    if value is None:
        return None
    return Measured(value, values.get("accuracy_low"), values.get("accuracy_high"), step)


def _line(kind: str, step: int | None, at: datetime, said: dict[str, Any]) -> LogLine:
    where = f"step {step}: " if step else ""
    if kind == "log":
        return LogLine(at, said["level"], where + said["message"])
    if kind == "job_finished":
        return LogLine(at, *_finished(said))
    level = "info"
    if kind in ("health", "diagnosis") and said["verdict"]["go"] != "go":
        level = "warning"
    return LogLine(at, level, where + _TOLD[kind](said))


def _started(said: dict[str, Any]) -> str:
    resumed = said["resumed_from_step"]
    name = said["stage_kind"].replace("_", " ").capitalize()
    return f"{name} goes on after step {resumed}." if resumed is not None else f"{name} begins."


def _evaluated(said: dict[str, Any]) -> str:
    measured = _measured(said, None)
    graded = "not graded" if measured is None else f"accuracy {measured.value:.1%}"
    return f"The {said['role']} answered {said['prompts']} held-out prompts: {graded}."


def _finished(said: dict[str, Any]) -> tuple[str, str]:
    error = said["error"]
    if error is not None:
        return "error", f"{said['status'].capitalize()}: {error['message']} [{error['code']}]"
    return "info", f"The job {said['status']}."


# What a stage without steps is about.
_NOTES = {"diagnose": "before training", "select_prompts": "what is distilled on"}
# What other events say for people, by kind.
_TOLD: dict[str, Callable[[dict[str, Any]], str]] = {
    "job_started": lambda said: f"The job started on {said['device']}.",
    "stage_started": _started,
    "stage_finished": lambda said: f"The stage is done after {said['seconds']:.1f} s.",
    "evaluation": _evaluated,
    "health": lambda said: f"verdict {said['verdict']['code']}.",
    "diagnosis": lambda said: f"Diagnosis: {said['verdict']['code']}.",
    "selection": lambda said: (
        f"{said['counts'].get('kept', 0):,} of {sum(said['counts'].values()):,} prompts are kept."
    ),
}
