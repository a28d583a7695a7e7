"""Leases: which run may use which devices here, until when; claimed whole or not at all.

A claim is one transaction: it moves the run's row from queued to running in its next attempt, which
only one worker can do, and takes a lease row on each device, of which there can be one. The oldest
run comes first, and devices that it waits for are kept for it. It starts no process.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Coalesce
from django.utils import timezone

from webapp.models import Device, Lease, Run, Worker
from webapp.services.machines import candidates, need

LEASE_SECONDS = 60
RENEW_SECONDS = 10
# A host that was silent for so long may be gone for good: its runs may go on elsewhere.
HOST_LOST_SECONDS = 600
# A claim looks at so many runs until no device is free; it reads them in pieces.
MOST_QUEUED = 5000
QUEUE_CHUNK = 100


@dataclass(frozen=True)
class Claim:
    """A run that is this worker's to execute, and the devices it holds."""

    run: Run
    devices: tuple[Device, ...]

    @property
    def attempt(self) -> int:
        return self.run.attempt


def claim(worker: Worker) -> Claim | None:
    """The oldest run that this worker can start now, with its leases; None if there is none."""
    if not Run.objects.filter(status=Run.Status.QUEUED).exists():
        return None
    with transaction.atomic():
        devices = list(Device.objects.select_for_update().filter(worker=worker))
        leased = set(Lease.objects.filter(device__in=devices).values_list("device_id", flat=True))
        free = [device for device in devices if device.pk not in leased]
        for run in _queue(worker).iterator(chunk_size=QUEUE_CHUNK):
            if not free:
                break
            wanted = candidates(need(run), devices)
            granted = [device for device in wanted if device in free][: need(run).count]
            if len(wanted) < need(run).count:
                continue  # another host's run
            if len(granted) < need(run).count:
                # What the older run waits for is kept for it.
                free = [device for device in free if device not in wanted]
            elif _take(run, worker):
                taken = Run.objects.get(pk=run.pk)
                return Claim(taken, _lease(taken, granted))
    return None


def renew(claimed: Claim) -> bool:
    """Extends the leases; false where they are gone, because somebody else took the run over."""
    leases = Lease.objects.filter(run=claimed.run, attempt=claimed.attempt)
    return leases.update(expires_at=_expiry()) > 0


def release(claimed: Claim) -> None:
    """Gives the devices back."""
    Lease.objects.filter(run=claimed.run, attempt=claimed.attempt).delete()


def _queue(worker: Worker) -> QuerySet[Run]:
    """Queued runs by age that may run here: new ones, and those whose run folder is here or lost."""
    runs = Run.objects.filter(status=Run.Status.QUEUED).order_by("queued_at", "id")
    if not settings.WORKER_SHARED_STATE:
        silent = timezone.now() - timedelta(seconds=HOST_LOST_SECONDS)
        alive = Worker.objects.filter(heartbeat_at__gt=silent).exclude(pk=worker.pk)
        runs = runs.exclude(host__in=alive.values("host"))
    return runs.defer("snapshot", "notes")[:MOST_QUEUED]


def _take(run: Run, worker: Worker) -> bool:
    """The compare-and-swap: true for the one that moves this row from queued to running."""
    now = timezone.now()
    taken = Run.objects.filter(pk=run.pk, status=Run.Status.QUEUED, attempt=run.attempt).update(
        status=Run.Status.RUNNING,
        attempt=F("attempt") + 1,
        host=worker.host,
        started_at=Coalesce("started_at", now),
        finished_at=None,
        error=None,
    )
    return taken > 0


def _lease(run: Run, devices: list[Device]) -> tuple[Device, ...]:
    expiry = _expiry()
    Lease.objects.bulk_create(
        Lease(run=run, device=device, attempt=run.attempt, expires_at=expiry) for device in devices
    )
    return tuple(devices)


def _expiry() -> datetime:
    return timezone.now() + timedelta(seconds=LEASE_SECONDS)
