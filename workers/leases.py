"""Leases: which run may use which devices here, until when; claimed whole or not at all.

A claim is one transaction: it moves the run's row from queued to running in its next attempt, which
only one worker can do, and takes a lease row on each device, of which there can be one, or one for each
of the runs that share what it is held for. Who gets what is decided elsewhere, over plain values. It
starts no process.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Coalesce
from django.utils import timezone

from opdcore.contract.job import ResourceRole
from webapp.models import Device, Lease, Run, Worker
from webapp.services import allocation, resources
from webapp.services.allocation import Decision, Request, Unit

LEASE_SECONDS = 60
RENEW_SECONDS = 10
# A host that was silent for so long may be gone for good: its runs may go on elsewhere.
HOST_LOST_SECONDS = 600
# A claim looks at so many runs until no device is free; it reads them in pieces.
MOST_QUEUED = 5000
QUEUE_CHUNK = 100


@dataclass(frozen=True)
class Claim:
    """A run that is this worker's to execute, and the devices it holds, by role."""

    run: Run
    held: Mapping[ResourceRole, tuple[Device, ...]]

    @property
    def devices(self) -> tuple[Device, ...]:
        """All of them; its process sees them in this order."""
        return tuple(device for of_role in self.held.values() for device in of_role)

    @property
    def attempt(self) -> int:
        return self.run.attempt


def claim(worker: Worker) -> Claim | None:
    """The oldest run that this worker can start now, with its leases; None if there is none."""
    if not Run.objects.filter(status=Run.Status.QUEUED).exists():
        return None
    with transaction.atomic():
        devices = list(Device.objects.select_for_update().filter(worker=worker))
        gone: set[int] = set()
        while (decision := _decide(worker, devices, gone)) is not None:
            if _take(decision.request.key, worker):
                return _lease(Run.objects.get(pk=decision.request.key), decision, devices)
            gone.add(decision.request.key)
    return None


def _decide(worker: Worker, devices: Sequence[Device], gone: Collection[int]) -> Decision | None:
    """The run that may start, with free devices; `gone` are those that another host was given."""
    leases = Lease.objects.filter(device__in=devices).values_list("device_id", "shared")
    held_for = dict(leases)
    units = [
        Unit(one.pk, one.kind, one.memory_bytes, one.pk not in held_for, held_for.get(one.pk, ""))
        for one in devices
    ]
    if not any(unit.is_free for unit in units):
        return None
    columns = ("pk", "resources", "teacher_server")
    queued = _queue(worker).order_by("queued_at", "id").values_list(*columns)
    oldest = queued[:MOST_QUEUED].iterator(chunk_size=QUEUE_CHUNK)
    requests = (
        Request(pk, resources.needs(asked, teacher_server=server))
        for pk, asked, server in oldest
        if pk not in gone
    )
    return allocation.first_to_start(requests, units)


def renew(claimed: Claim) -> bool:
    """Extends the leases; false where they are gone, because somebody else took the run over."""
    leases = Lease.objects.filter(run=claimed.run, attempt=claimed.attempt)
    return leases.update(expires_at=_expiry()) > 0


def release(claimed: Claim) -> None:
    """Gives the devices back."""
    Lease.objects.filter(run=claimed.run, attempt=claimed.attempt).delete()


def of_host(runs: QuerySet[Run], host: str) -> QuerySet[Run]:
    """Those whose run folder is on that host, or nowhere yet, or everywhere, or lost with its host."""
    if settings.WORKER_SHARED_STATE:
        return runs
    silent = timezone.now() - timedelta(seconds=HOST_LOST_SECONDS)
    alive = Worker.objects.filter(heartbeat_at__gt=silent).exclude(host=host)
    return runs.exclude(host__in=alive.values("host"))


def _queue(worker: Worker) -> QuerySet[Run]:
    """Queued runs that may run here; what they need of the hub was fetched to here."""
    here = Q(downloads=False) | Q(downloaded_to=worker.host)
    return of_host(Run.objects.filter(here, status=Run.Status.QUEUED), worker.host)


def _take(run_id: int, worker: Worker) -> bool:
    """The compare-and-swap: true for the one that moves this row from queued to running."""
    now = timezone.now()
    taken = (
        _queue(worker)
        .filter(pk=run_id)
        .update(
            status=Run.Status.RUNNING,
            attempt=F("attempt") + 1,
            host=worker.host,
            started_at=Coalesce("started_at", now),
            finished_at=None,
            error=None,
        )
    )
    return taken > 0


def _lease(run: Run, decision: Decision, devices: Sequence[Device]) -> Claim:
    """Writes a lease row for each device that was granted."""
    by_key = {device.pk: device for device in devices}
    granted = decision.granted or {}
    held = {role: tuple(by_key[key] for key in keys) for role, keys in granted.items()}
    expiry = _expiry()
    shared = {need.role: need.share for need in decision.request.needs}
    Lease.objects.bulk_create(
        Lease(
            run=run,
            device=device,
            attempt=run.attempt,
            role=role,
            shared=shared[role],
            expires_at=expiry,
        )
        for role, of_role in held.items()
        for device in of_role
    )
    return Claim(run, held)


def _expiry() -> datetime:
    return timezone.now() + timedelta(seconds=LEASE_SECONDS)
