"""Events: the lines that a job writes. An event is shaped once here and encoded once in the job.

A line carries (attempt, line, stage_index, step, kind, at, payload). The recorder adds the run and
its seq. Missing is null; a non-finite scalar is null plus its name in `nonfinite`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, TypeAdapter, model_serializer

from opdcore.contract.document import Document
from opdcore.contract.errors import ErrorInfo
from opdcore.contract.outcome import Outcome
from opdcore.contract.positions import Positions
from opdcore.contract.probe import Diagnosis
from opdcore.contract.select_prompts import Strategy
from opdcore.contract.selection import Reason
from opdcore.contract.verdicts import Verdict

Nonfinite = Literal["nan", "inf", "-inf"]
StageKind = Literal["distill", "cold_start", "reinforce", "evaluate", "diagnose", "select_prompts"]
ModelRole = Literal["student", "teacher"]
FinalStatus = Literal["succeeded", "failed", "cancelled", "paused"]
ArtifactKind = Literal["checkpoint", "output", "trace", "evaluation", "selection", "scores", "log"]


class Grown(Document):
    """A payload that gained fields: what they leave empty is not written, as in older lines."""

    gained: ClassVar[frozenset[str]]

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        return {key: value for key, value in content.items() if key not in self.gained or value}


class JobStarted(Document):
    """The process is up and has a device; models and prompts are yet to be read."""

    device: str = Field(description="Its name, such as cpu or NVIDIA H100 80GB HBM3.")
    versions: dict[str, str] = Field(description="Software that decides the numbers.")
    steps_by_stage: tuple[int, ...] = Field(description="Optimizer steps of each stage.")
    lab_version: str | None = Field(default=None, description="Set for the laboratory's pairs.")


class StageStarted(Document):
    """A stage begins, or goes on after a checkpoint."""

    stage_kind: StageKind = Field(description="Its kind.")
    steps: int = Field(ge=0, description="Optimizer steps in all.")
    resumed_from_step: int | None = Field(
        default=None, description="Last step of the checkpoint it goes on from."
    )


class Progress(Document):
    """How far a long piece of work is."""

    what: str = Field(description="Such as `loading the teacher`.")
    done: int = Field(ge=0, description="Units done.")
    total: int | None = Field(ge=0, description="Units in all; null where unknown.")
    unit: str = Field(description="What is counted.")


class Metrics(Document):
    """Named scalars of one step; keys are those of the metric table."""

    values: dict[str, float | None] = Field(description="Null where undefined or non-finite.")
    nonfinite: dict[str, Nonfinite] = Field(default_factory=dict, description="What null hides.")


class Evaluated(Grown):
    """One side's answers to the held-out prompts were graded."""

    gained = frozenset({"abstentions"})

    role: ModelRole = Field(description="Whose answers.")
    prompts: int = Field(ge=0, description="Held-out prompts answered.")
    samples_per_prompt: int = Field(ge=1, description="n of avg@n.")
    verifier: str = Field(description="What graded them.")
    abstentions: dict[str, int] = Field(
        default_factory=dict, description="Responses that it could not grade, by the reason."
    )
    values: dict[str, float | None] = Field(description="Keys of the metric table.")


class TraceWritten(Grown):
    """Rollouts of this step were written with all their token values."""

    gained = frozenset({"prompts"})

    key: str = Field(description="File in the run's folder (Parquet).")
    rollouts: int = Field(ge=1, description="Rows in it.")
    prompts: tuple[int, ...] = Field((), description="Prompt index of each row; empty: not told.")


class ArtifactWritten(Document):
    """A file or folder of the run is complete."""

    artifact_kind: ArtifactKind = Field(description="What it is.")
    key: str = Field(description="Path within the run's folder.")
    sha256: str = Field(description="Hash of its content; of the manifest for a folder.")
    size_bytes: int = Field(ge=0, description="Its size.")


class ArtifactDropped(Document):
    """A file or folder was removed by the policy of what is kept."""

    key: str = Field(description="Path within the run's folder.")


class Health(Document):
    """The monitor's verdict changed."""

    verdict: Verdict = Field(description="The latest verdict.")


class Selected(Document):
    """The prompts were chosen that distillation draws from, at its stage or anew during training."""

    key: str = Field(description="File in the run's folder, a `Selection` as JSON.")
    strategy: Strategy = Field(description="How was chosen.")
    steps: int = Field(ge=0, description="Distillation steps done since the stage.")
    counts: dict[Reason, int] = Field(description="Candidates kept, and dropped by the reason.")
    student_tokens: int = Field(
        ge=0,
        description="Tokens that the student wrote for it just now; 0 where it was read again.",
    )
    teacher_tokens: int = Field(ge=0, description="Tokens that the teacher wrote for it just now.")


class Logged(Document):
    """A line for people."""

    level: Literal["info", "warning", "error"] = Field(description="How much it matters.")
    message: str = Field(description="The line.")


class StageFinished(Document):
    """A stage is done."""

    seconds: float = Field(ge=0, description="Wall time of this attempt in the stage.")


class JobFinished(Document):
    """The last line of a job that could still speak."""

    status: FinalStatus = Field(description="How it ended.")
    error: ErrorInfo | None = Field(default=None, description="Why it failed or was cancelled.")
    outcome: Outcome | None = Field(default=None, description="Judged where it succeeded.")


class Event(Document):
    """What every line has. `line` counts from 1 within an attempt."""

    attempt: int = Field(ge=1, description="Which execution of the run.")
    line: int = Field(ge=1, description="Number of the line in that attempt.")
    stage_index: int | None = Field(default=None, ge=0, description="Stage; null outside.")
    step: int | None = Field(default=None, ge=0, description="Optimizer step; null outside.")
    at: datetime = Field(description="When it was shaped, UTC.")


class JobStartedEvent(Event):
    kind: Literal["job_started"] = "job_started"
    payload: JobStarted


class StageStartedEvent(Event):
    kind: Literal["stage_started"] = "stage_started"
    payload: StageStarted


class ProgressEvent(Event):
    kind: Literal["progress"] = "progress"
    payload: Progress


class MetricsEvent(Event):
    kind: Literal["metrics"] = "metrics"
    payload: Metrics


class PositionsEvent(Event):
    kind: Literal["positions"] = "positions"
    payload: Positions


class EvaluationEvent(Event):
    kind: Literal["evaluation"] = "evaluation"
    payload: Evaluated


class TraceEvent(Event):
    kind: Literal["trace"] = "trace"
    payload: TraceWritten


class ArtifactEvent(Event):
    kind: Literal["artifact"] = "artifact"
    payload: ArtifactWritten


class ArtifactDroppedEvent(Event):
    kind: Literal["artifact_dropped"] = "artifact_dropped"
    payload: ArtifactDropped


class DiagnosisEvent(Event):
    kind: Literal["diagnosis"] = "diagnosis"
    payload: Diagnosis


class HealthEvent(Event):
    kind: Literal["health"] = "health"
    payload: Health


class SelectionEvent(Event):
    kind: Literal["selection"] = "selection"
    payload: Selected


class LogEvent(Event):
    kind: Literal["log"] = "log"
    payload: Logged


class StageFinishedEvent(Event):
    kind: Literal["stage_finished"] = "stage_finished"
    payload: StageFinished


class JobFinishedEvent(Event):
    kind: Literal["job_finished"] = "job_finished"
    payload: JobFinished


AnyEvent = Annotated[
    JobStartedEvent
    | StageStartedEvent
    | ProgressEvent
    | MetricsEvent
    | PositionsEvent
    | EvaluationEvent
    | TraceEvent
    | ArtifactEvent
    | ArtifactDroppedEvent
    | HealthEvent
    | DiagnosisEvent
    | SelectionEvent
    | LogEvent
    | StageFinishedEvent
    | JobFinishedEvent,
    Field(discriminator="kind"),
]
EVENT = TypeAdapter[AnyEvent](AnyEvent)

Payload = (
    JobStarted
    | StageStarted
    | Progress
    | Metrics
    | Positions
    | Evaluated
    | TraceWritten
    | ArtifactWritten
    | ArtifactDropped
    | Health
    | Diagnosis
    | Selected
    | Logged
    | StageFinished
    | JobFinished
)
_EVENT_BY_PAYLOAD: dict[type, type[Event]] = {
    JobStarted: JobStartedEvent,
    StageStarted: StageStartedEvent,
    Progress: ProgressEvent,
    Metrics: MetricsEvent,
    Positions: PositionsEvent,
    Evaluated: EvaluationEvent,
    TraceWritten: TraceEvent,
    ArtifactWritten: ArtifactEvent,
    ArtifactDropped: ArtifactDroppedEvent,
    Health: HealthEvent,
    Diagnosis: DiagnosisEvent,
    Selected: SelectionEvent,
    Logged: LogEvent,
    StageFinished: StageFinishedEvent,
    JobFinished: JobFinishedEvent,
}


def shape(
    payload: Payload,
    *,
    attempt: int,
    line: int,
    stage_index: int | None = None,
    step: int | None = None,
) -> AnyEvent:
    """Wraps a payload into the event of its kind, stamped with the time."""
    event: AnyEvent = _EVENT_BY_PAYLOAD[type(payload)](  # type: ignore[assignment, call-arg]
        attempt=attempt,
        line=line,
        stage_index=stage_index,
        step=step,
        at=datetime.now(UTC),
        payload=payload,
    )
    return event


def metrics(values: Mapping[str, float | None]) -> Metrics:
    """Splits scalars into finite values and the names of those that are not finite."""
    finite = {k: v if v is None or math.isfinite(v) else None for k, v in values.items()}
    odd = {k: _name(v) for k, v in values.items() if v is not None and not math.isfinite(v)}
    return Metrics(values=finite, nonfinite=odd)


def _name(value: float) -> Nonfinite:
    if math.isnan(value):
        return "nan"
    return "inf" if value > 0 else "-inf"


def encode(event: AnyEvent) -> bytes:
    """One JSON line without its newline; the bytes that are stored and relayed as they are."""
    return EVENT.dump_json(event)


def decode(line: bytes | str) -> AnyEvent:
    """The event of a line; raises pydantic's ValidationError where it is not one."""
    return EVENT.validate_json(line)
