"""What a verdict says, ready for a page: its title, its evidence with labels and units, what to do.

The monitor's verdicts are read from a run's events, a diagnosis' from its own. It knows no chart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import orjson

from opdcore.contract.metrics import METRICS
from opdcore.contract.probe import PROBE_METRICS
from opdcore.contract.verdicts import VERDICTS, Evidence, Verdict
from webapp.models import Event, Run
from webapp.services import cuts, remedies, series
from webapp.services.remedies import Remedy

# The oldest changes of a long, restless run are left out of its timeline.
MOST_TURNS = 40


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """One row of evidence; `x` is the step in question on the run's axis, None without one."""

    key: str
    label: str
    unit: str
    help: str
    value: float | None
    low: float | None
    high: float | None
    reference: float | None
    x: int | None
    has_series: bool


@dataclass(frozen=True, slots=True)
class Said:
    """A verdict in words and rows."""

    verdict: Verdict
    title: str
    remedy: Remedy
    rows: tuple[EvidenceRow, ...]
    at: datetime | None = None
    x: int | None = None

    @property
    def has_intervals(self) -> bool:
        return any(row.low is not None for row in self.rows)

    @property
    def has_references(self) -> bool:
        return any(row.reference is not None for row in self.rows)


@dataclass(frozen=True, slots=True)
class Turn:
    """A change of the verdict: what it became, and at which step of the run's axis."""

    code: str
    go: str
    confidence: str
    title: str
    at: datetime
    x: int | None


@dataclass(frozen=True, slots=True)
class Health:
    """A run's latest verdict, and how it came to it, oldest first."""

    said: Said
    turns: tuple[Turn, ...]
    left_out: int


def of(run: Run) -> Health | None:
    """The monitor's verdicts, without those that a later attempt made stale; None before the first."""
    offsets = {span.index: span.offset for span in series.stages(run)}
    stale = cuts.of(run.pk)
    events = Event.objects.filter(run=run, kind="health").order_by("seq")
    told = [
        (offsets.get(stage or 0, 0), step, at, payload)
        for seq, stage, step, at, payload in events.values_list(
            "seq", "stage_index", "step", "at", "payload"
        )
        if not stale.drop(seq, stage, step)
    ]
    if not told:
        return None
    turns = tuple(_turn(_verdict(payload), offset, step, at) for offset, step, at, payload in told)
    offset, step, at, payload = told[-1]
    latest = said(
        _verdict(payload), at=at, offset=offset, x=None if step is None else offset + step
    )
    return Health(latest, turns[-MOST_TURNS:], max(0, len(turns) - MOST_TURNS))


def said(
    verdict: Verdict, *, at: datetime | None = None, offset: int = 0, x: int | None = None
) -> Said:
    """The verdict with everything that a page shows beside it; `offset` is its stage's."""
    title, remedy = title_of(verdict.code), remedies.of(verdict.code)
    return Said(verdict, title, remedy, rows(verdict.evidence, offset=offset), at, x)


def rows(evidence: Iterable[Evidence], *, offset: int = 0) -> tuple[EvidenceRow, ...]:
    """Evidence with labels and units; `offset` is its stage's on the run's axis."""
    return tuple(_row(one, offset) for one in evidence)


def title_of(code: str) -> str:
    """What a code means, as a title without its full stop."""
    return VERDICTS[code].meaning.rstrip(".")


def _verdict(payload: str) -> Verdict:
    return Verdict.model_validate(orjson.loads(payload)["verdict"])


def _turn(verdict: Verdict, offset: int, step: int | None, at: datetime) -> Turn:
    title = title_of(verdict.code)
    x = None if step is None else offset + step
    return Turn(verdict.code, verdict.go, verdict.confidence, title, at, x)


def _row(evidence: Evidence, offset: int) -> EvidenceRow:
    known = METRICS.get(evidence.metric) or PROBE_METRICS.get(evidence.metric)
    return EvidenceRow(
        key=evidence.metric,
        label=known.label if known else evidence.metric.replace("_", " ").capitalize(),
        unit=(known.unit or "") if known else "",
        help=known.help if known else "",
        value=evidence.value,
        low=evidence.low,
        high=evidence.high,
        reference=evidence.reference,
        x=None if evidence.step is None else offset + evidence.step,
        has_series=evidence.metric in METRICS,
    )
