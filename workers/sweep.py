"""The sweep: runs whose worker was lost go back into the queue; runs that wait are dispatched.

It trusts rows only. A run counts as lost when its lease had expired at two looks in a row, so that a
worker which was merely cut off from the database has had the time to renew it.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field

import structlog
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from opdcore.contract.errors import ErrorInfo
from opdcore.contract.events import Logged, encode, shape
from webapp.models import Lease, Run
from webapp.services import recording
from workers.bell import BELL
from workers.recorder import WORKER_LINES

SECOND_LOOK_SECONDS = 15.0
MOST_LOSSES = 3
# Beyond the lines that the recorder of the same attempt may have said.
_LOSS_LINE = WORKER_LINES + 1_000_000

log = structlog.get_logger(__name__)


@dataclass
class Sweep:
    """What one worker has seen expired, and since when (monotonic seconds)."""

    expired_at: dict[tuple[int, int], float] = field(default_factory=dict)

    def look(self, *, supervised: Collection[int]) -> list[Run]:
        """Takes lost runs from their dead workers; returns those. `supervised` are this worker's."""
        now = time.monotonic()
        expired = {(run.pk, run.attempt): run for run in _expired() if run.pk not in supervised}
        self.expired_at = {key: self.expired_at.get(key, now) for key in expired}
        ripe = [key for key, since in self.expired_at.items() if now - since >= SECOND_LOOK_SECONDS]
        return [expired[key] for key in ripe if take_back(expired[key])]


def recover(host: str) -> list[Run]:
    """Takes back what an earlier worker process of this host left behind; none of it runs now."""
    left = Run.objects.filter(status=Run.Status.RUNNING, host=host)
    found = list(left.only("public_id", "attempt", "host", "name"))
    Lease.objects.filter(run__in=found).update(expires_at=timezone.now())
    return [run for run in found if take_back(run)]


def take_back(run: Run) -> bool:
    """Queues a lost run for its next attempt, or ends it; true for the one worker that did it."""
    with transaction.atomic():
        row = Run.objects.select_for_update().get(pk=run.pk)
        still = row.attempt == run.attempt and row.status == Run.Status.RUNNING
        if not still or _leases(row).filter(expires_at__gt=timezone.now()).exists():
            return False
        _tell(row)
        _leases(row).delete()
        Run.objects.filter(pk=row.pk).update(losses=row.losses + 1, **_next(row))
    log.warning("lost run", run=run.public_id, attempt=run.attempt, host=run.host)
    BELL.ring(run.bell)
    return True


def _expired() -> list[Run]:
    alive = Lease.objects.filter(expires_at__gt=timezone.now()).values("run_id")
    running = Run.objects.filter(status=Run.Status.RUNNING).exclude(pk__in=alive)
    return list(running.only("public_id", "attempt", "host", "name"))


def _leases(run: Run) -> QuerySet[Lease]:
    return Lease.objects.filter(run=run, attempt=run.attempt)


def _next(run: Run) -> dict[str, object]:
    if run.cancel_requested_at is not None:
        return {"status": Run.Status.CANCELLED, "finished_at": timezone.now()}
    if run.losses + 1 < MOST_LOSSES:
        return {"status": Run.Status.QUEUED}
    error = ErrorInfo(
        code="worker.lost",
        message=f"The worker on {run.host} was lost {MOST_LOSSES} times while it executed this run.",
        remedy="See that worker's log and its host's memory, then resume from the last checkpoint.",
    )
    return {
        "status": Run.Status.FAILED,
        "finished_at": timezone.now(),
        "error": error.model_dump(mode="json"),
    }


def _tell(run: Run) -> None:
    message = f"[worker.lost] The worker on {run.host} fell silent in attempt {run.attempt}."
    event = shape(Logged(level="warning", message=message), attempt=run.attempt, line=_LOSS_LINE)
    author = recording.Author(run.pk, run.attempt, ())
    recording.record(author, [recording.parse(encode(event))])
