"""What a run's page tells beside its charts: stages, evaluations, log lines, positions.

All of it is read from the run's row and its recorded events, so a reload shows what was shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal

import orjson

from opdcore.contract.metrics import METRICS
from webapp.models import Event, Run
from webapp.services import series

LOG_LINES = 400
STRIP_STEPS = 60
LEVELS = 8
# Shares are coloured on [0, 1]; everything else on the range that is shown.
POSITION_KEYS = (
    "overlap_ratio",
    "token_reward",
    "reverse_kl",
    "top1_agreement",
    "student_entropy",
    "teacher_entropy",
)
_LOG_KINDS = (
    "log", "job_started", "stage_started", "stage_finished", "job_finished", "evaluation", "health",
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


@dataclass(frozen=True, slots=True)
class Cell:
    """A value of one position chunk; `level` in 0..8 is its shade, None where it is undefined."""

    value: float | None
    level: int | None
    x: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Strip:
    """One metric by position: rows of cells over steps, and the latest step's values."""

    metric: str
    edges: tuple[int, ...]
    rows: list[tuple[str, list[Cell]]]
    steps: list[int]
    low: float
    high: float

    @property
    def width(self) -> int:
        """In the units of a cell's x."""
        return 10 * len(self.steps)


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


def strip(run: Run, metric: str) -> Strip | None:
    """The latest stage's values of one metric by position over steps; None before the first."""
    grids = series.positions(run, [metric], rows=STRIP_STEPS)
    if not grids or not grids[-1].x:
        return None
    grid = grids[-1]
    table = grid.values[metric]
    low, high = _range(table, metric)
    rows = []
    for chunk in range(len(grid.edges) - 1):
        values = [row[chunk] if chunk < len(row) else None for row in table]
        cells = [
            Cell(value, _level(value, low, high), x=10 * column, step=step)
            for column, (value, step) in enumerate(zip(values, grid.x, strict=True))
        ]
        rows.append((f"{grid.edges[chunk]}\u2013{grid.edges[chunk + 1] - 1}", cells))
    return Strip(metric, grid.edges, rows, grid.x, low, high)


def latest_positions(run: Run) -> dict[str, Any] | None:
    """The newest step by position: its chunks, and a row of values for each metric."""
    event = Event.objects.filter(run=run, kind="positions").order_by("-seq").first()
    if event is None:
        return None
    said = orjson.loads(event.payload)
    edges = said["edges"]
    return {
        "step": event.step,
        "chunks": [f"{low}\u2013{high - 1}" for low, high in pairwise(edges)],
        "positions": said["positions"],
        "rows": [(METRICS[key], said["values"].get(key, []), key) for key in POSITION_KEYS],
    }


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
        return "held-out prompts"
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
    level = "warning" if kind == "health" else "info"
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


# What other events say for people, by kind.
_TOLD: dict[str, Callable[[dict[str, Any]], str]] = {
    "job_started": lambda said: f"The job started on {said['device']}.",
    "stage_started": _started,
    "stage_finished": lambda said: f"The stage is done after {said['seconds']:.1f} s.",
    "evaluation": _evaluated,
    "health": lambda said: f"verdict {said['verdict']['code']}.",
}


def _range(table: list[list[float | None]], metric: str) -> tuple[float, float]:
    if METRICS[metric].unit is None:
        return 0.0, 1.0
    values = list(_defined(table))
    return (min(values), max(values)) if values else (0.0, 1.0)


def _defined(table: list[list[float | None]]) -> Iterator[float]:
    return (value for row in table for value in row if value is not None)


def _level(value: float | None, low: float, high: float) -> int | None:
    if value is None:
        return None
    return round(LEVELS * (value - low) / (high - low)) if high > low else LEVELS
