"""A diagnosis as a run's page shows it: its verdict, measures in groups, hand-off by depth, findings.

Lengths are shares of a track, so that a template draws them without arithmetic. It knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import orjson

from opdcore.contract.positions import Positions
from opdcore.contract.probe import (
    PROBE_METRICS,
    Depth,
    Diagnosis,
    Finding,
    Measure,
    Probe,
)
from webapp.models import Event, Family, Run
from webapp.services import health
from webapp.services.health import Said

# Groups of measures with what each of them tells; a measure of no group stands in the last one.
GROUPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Alignment",
        "How far the two agree on the student's own words.",
        (
            "overlap_ratio", "effective_overlap", "overlap_at_uncertain", "top1_agreement",
            "overlap_mass_student", "overlap_mass_teacher", "overlap_kl",
            "overlap_token_advantage", "empty_overlap_share", "reverse_kl", "forward_kl",
            "token_reward", "student_entropy", "teacher_entropy", "entropy_gap",
            "student_nll_on_teacher", "style_mass",
        ),
    ),
    (
        "Knowledge",
        "Whether the teacher can do what the student cannot, and does so from the student's words.",
        (
            "student_accuracy", "teacher_accuracy", "accuracy_gap", "student_pass_at_n",
            "teacher_pass_at_n", "teacher_on_failed", "hand_off_25", "hand_off_50",
            "hand_off_75", "hand_off_min", "reward_auroc", "first_loss", "grad_norm",
        ),
    ),
    (
        "Format",
        "Whether the student's responses are whole, and what the reward falls on.",
        ("truncation_rate", "repetition_rate", "response_tokens_mean", "special_reward_share"),
    ),
)  # fmt: skip
# Measures that lie between -1 and 1, unlike the shares between 0 and 1.
_DIFFERENCES = ("accuracy_gap", "hand_off_25", "hand_off_50", "hand_off_75", "hand_off_min")
_NO_SHARES = (*_DIFFERENCES, "grad_norm")
RELATIONS = {
    "unknown": "not known",
    "descendant": "a descendant of the student, trained further",
    "same_pipeline": "from the same pipeline as the student",
    "ancestor": "an ancestor of the student",
    "identical": "identical with the student",
    "unrelated": "unrelated to the student",
}
WIDTH, HEIGHT = 560, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 14, 34


@dataclass(frozen=True, slots=True)
class Track:
    """A value and its interval on a track from 0 to 100; `zero` is where the value 0 lies."""

    at: float
    low: float | None
    high: float | None
    zero: float


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """One measure; no track where it is neither a share nor a difference of shares."""

    key: str
    label: str
    unit: str
    help: str
    measure: Measure
    track: Track | None


@dataclass(frozen=True, slots=True)
class Group:
    """Measures that answer one question."""

    title: str
    asks: str
    rows: list[MeasureRow]


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of the hand-off chart with its interval, in the picture's units."""

    x: float
    y: float
    low_y: float | None
    high_y: float | None


@dataclass(frozen=True, slots=True)
class DepthRow:
    """One depth in words and as marks."""

    label: str
    x: float
    depth: Depth
    student: Mark | None
    teacher: Mark | None


@dataclass(frozen=True, slots=True)
class HandOff:
    """The chart of who goes on better from which depth."""

    rows: list[DepthRow]
    student_line: str
    teacher_line: str
    levels: list[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """Metrics by position: a header a chunk, a row a metric."""

    heads: list[str]
    positions: tuple[int, ...]
    rows: list[tuple[str, str, str, tuple[float | None, ...]]]


@dataclass(frozen=True, slots=True)
class Report:
    """A diagnosis, whole."""

    said: Said
    probe: Probe
    calibration: str
    family: Family | None
    groups: list[Group]
    hand_off: HandOff | None
    chunks: ChunkTable | None
    findings: list[Finding]
    relation: str
    at: datetime


def of(run: Run) -> Report | None:
    """The run's newest diagnosis; None where it has none yet."""
    event = Event.objects.filter(run=run, kind="diagnosis").order_by("-seq").first()
    if event is None:
        return None
    diagnosis = Diagnosis.model_validate(orjson.loads(event.payload))
    probe = diagnosis.probe
    return Report(
        said=health.said(diagnosis.verdict, at=event.at),
        probe=probe,
        calibration=diagnosis.calibration,
        family=_family(run),
        groups=_groups(probe),
        hand_off=_hand_off(probe.hand_off) if probe.hand_off else None,
        chunks=_chunk_table(probe.chunks) if probe.chunks else None,
        findings=sorted(probe.findings, key=lambda one: _SEVERITIES.index(one.severity)),
        relation=RELATIONS[probe.provenance.relation],
        at=event.at,
    )


def _family(run: Run) -> Family | None:
    """Whose calibration the run was launched with; None: the laboratory's, or it was deleted."""
    frozen = run.snapshot.get("family") or {}
    if not frozen.get("calibration"):
        return None
    return Family.objects.filter(project=run.project_id, public_id=frozen["public_id"]).first()


_SEVERITIES = ("refusal", "warning", "note")


def _groups(probe: Probe) -> list[Group]:
    placed = {key for _, _, keys in GROUPS for key in keys}
    others = tuple(key for key in probe.measures if key not in placed)
    groups = [*GROUPS, ("Other", "Measures of no group.", others)]
    found = [
        Group(
            title, asks, [_row(key, probe.measures[key]) for key in keys if key in probe.measures]
        )
        for title, asks, keys in groups
    ]
    return [group for group in found if group.rows]


def _row(key: str, measure: Measure) -> MeasureRow:
    known = PROBE_METRICS.get(key)
    label = known.label if known else key.replace("_", " ").capitalize()
    unit, told = (known.unit or "", known.help) if known else ("", "")
    return MeasureRow(key, label, unit, told, measure, _track(key, measure, unit))


def _track(key: str, measure: Measure, unit: str) -> Track | None:
    """Where the value lies between 0 and 1, or between -1 and 1 for a difference."""
    if measure.value is None or unit or (key in _NO_SHARES and key not in _DIFFERENCES):
        return None
    least = -1.0 if key in _DIFFERENCES else 0.0

    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * _between(value, least) / (1 - least), 2)

    at = place(measure.value)
    zero = place(0.0)
    return Track(at or 0.0, place(measure.low), place(measure.high), zero or 0.0)


def _between(value: float, least: float) -> float:
    return min(1.0, max(least, value)) - least


def _hand_off(depths: tuple[Depth, ...]) -> HandOff:
    inner = WIDTH - LEFT - RIGHT
    rows = []
    for index, depth in enumerate(depths):
        x = round(LEFT + inner * (index + 0.5) / len(depths), 1)
        # Side by side, so that intervals do not hide one another.
        student, teacher = _mark(depth.student, x - 5), _mark(depth.teacher, x + 5)
        rows.append(DepthRow(_depth_label(depth), x, depth, student, teacher))
    return HandOff(
        rows,
        _line([row.student for row in rows]),
        _line([row.teacher for row in rows]),
        [(_y(level / 4), f"{25 * level} %") for level in range(5)],
    )


def _depth_label(depth: Depth) -> str:
    if depth.share is not None:
        return f"{100 * depth.share:.0f} %"
    return f"{depth.tokens} tokens"


def _mark(measure: Measure, x: float) -> Mark | None:
    if measure.value is None:
        return None
    low = None if measure.low is None else _y(measure.low)
    high = None if measure.high is None else _y(measure.high)
    return Mark(x, _y(measure.value), low, high)


def _y(accuracy: float) -> float:
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(1.0, max(0.0, accuracy))), 1)


def _line(marks: list[Mark | None]) -> str:
    return " ".join(f"{mark.x},{mark.y}" for mark in marks if mark is not None)


def _chunk_table(chunks: Positions) -> ChunkTable:
    heads = [f"{low:,}\u2013{high - 1:,}" for low, high in pairwise(chunks.edges)]
    rows = []
    for key, values in chunks.values.items():
        known = PROBE_METRICS.get(key)
        label = known.label if known else key.replace("_", " ").capitalize()
        rows.append(
            (label, (known.unit or "") if known else "", known.help if known else "", values)
        )
    return ChunkTable(heads, chunks.positions, rows)
