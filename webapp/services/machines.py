"""Workers, their devices and the queue: who holds what, and what waits for what.

Workers are the installation's and not a project's, so a run of a project that the reader is not in
shows only as somebody's. It claims nothing: workers do, and a message to them may be lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.core.cache import cache
from django.db.models import QuerySet
from django.utils import timezone
from kombu.exceptions import OperationalError

from opdcore.contract.errors import ErrorInfo
from webapp.celery import app
from webapp.models import Device, Run, User, Worker
from webapp.services import waiting_reasons
from webapp.services.allocation import Request, Unit, decisions
from webapp.services.resources import needs, words
from webapp.services.waiting_reasons import There

log = structlog.get_logger(__name__)

WARM_TASK = "workers.warm"
# Whoever fills in a form asks again and again; between two messages the host stays warm anyway.
WARM_PAUSE_SECONDS = 30
# A worker says that it lives every ten seconds.
FRESH_SECONDS = 45
SHOWN_QUEUE = 100


@dataclass(frozen=True, slots=True)
class Holder:
    """A run that holds a device, None where it is not yours to see, in what role, and until when."""

    run: Run | None
    role: str
    until: datetime

    @property
    def left(self) -> timedelta:
        """Time until the lease ends; negative once it has."""
        return self.until - timezone.now()

    @property
    def has_expired(self) -> bool:
        return self.left < timedelta(0)


@dataclass(frozen=True, slots=True)
class Place:
    """A device and who holds it: nobody, one run, or several that share what it is `shared` for."""

    device: Device
    holders: tuple[Holder, ...]
    shared: str

    @property
    def is_free(self) -> bool:
        return not self.holders

    @property
    def unit(self) -> Unit:
        """The device as the allocator sees it."""
        one = self.device
        return Unit(one.pk, one.kind, one.memory_bytes, self.is_free, self.shared)


@dataclass(frozen=True, slots=True)
class Host:
    """A worker with its devices."""

    worker: Worker
    places: tuple[Place, ...]

    @property
    def silent_seconds(self) -> int:
        """Since its last heartbeat."""
        return max(0, int((timezone.now() - self.worker.heartbeat_at).total_seconds()))

    @property
    def is_fresh(self) -> bool:
        return self.silent_seconds <= FRESH_SECONDS

    @property
    def there(self) -> There:
        """The host as the allocator sees it."""
        return There(self.worker.host, tuple(place.unit for place in self.places))


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued run, or None where it is not yours to see, with its place and what it waits for."""

    place: int
    run: Run | None
    since: datetime
    asked: str
    reason: str

    @property
    def waited(self) -> timedelta:
        return timezone.now() - self.since


@dataclass(frozen=True, slots=True)
class State:
    """All of it at one moment."""

    hosts: tuple[Host, ...]
    queue: tuple[Waiting, ...]
    queued: int

    @property
    def fresh(self) -> int:
        return sum(host.is_fresh for host in self.hosts)

    @property
    def places(self) -> list[Place]:
        """Devices of workers that are there."""
        return [place for host in self.hosts if host.is_fresh for place in host.places]

    @property
    def free(self) -> int:
        return sum(place.is_free for place in self.places)

    @property
    def longest_wait(self) -> timedelta | None:
        """Of the oldest run in the queue; None where nothing waits."""
        return self.queue[0].waited if self.queue else None


def queue_name(host: str) -> str:
    """The queue that only this host's worker reads."""
    return f"host.{host}"


def warm() -> None:
    """Asks every worker that is there to have a job process ready, since somebody may launch soon."""
    if not cache.add("workers-asked-to-warm", True, WARM_PAUSE_SECONDS):
        return
    since = timezone.now() - timedelta(seconds=FRESH_SECONDS)
    hosts = Worker.objects.filter(heartbeat_at__gt=since).values_list("host", flat=True)
    try:
        for host in hosts:
            app.send_task(
                WARM_TASK,
                queue=queue_name(host),
                expires=WARM_PAUSE_SECONDS,
                ignore_result=True,
                retry=False,
            )
    except OperationalError as error:
        log.info("broker away: the next launch may start cold", error=str(error))


def state(user: User) -> State:
    """Workers, devices and queue as the user may see them."""
    mine = set(Run.objects.visible_to(user).active().values_list("pk", flat=True))
    hosts = _hosts(mine)
    rows = _queued().select_related("project", "pair", "created_by")
    rows = rows.defer("snapshot", "notes", "pair__token_map_report")[:SHOWN_QUEUE]
    reasons = waiting_reasons.of(list(rows), [host.there for host in hosts if host.is_fresh])
    queue = tuple(
        Waiting(
            place,
            run if run.pk in mine else None,
            run.queued_at,
            words(needs(run.resources)),
            reasons[run.pk],
        )
        for place, run in enumerate(rows, start=1)
    )
    return State(hosts, queue, _queued().count())


def reason(run: Run) -> str | None:
    """What a queued run waits for; None where it does not wait, or far behind in the queue."""
    if run.status != Run.Status.QUEUED:
        return None
    hosts = [host.there for host in _hosts(set()) if host.is_fresh]
    rows = _queued().only(
        "pk", "host", "resources", "teacher_server", "progress", "downloads", "downloaded_to"
    )[:SHOWN_QUEUE]
    return waiting_reasons.of(list(rows), hosts).get(run.pk)


def misfits(asked: Mapping[str, Any]) -> list[ErrorInfo]:
    """Says so where no worker that is running has what a run asks for, so that it would wait."""
    hosts = [host.there for host in _hosts(set()) if host.is_fresh]
    request = Request(0, needs(asked))
    if not hosts or any(next(decisions([request], host.units)).fits for host in hosts):
        return []
    return [
        ErrorInfo(
            code="launch.no_such_device",
            message=f"No running worker has {words(request.needs)}.",
            remedy="The run waits until one does: start a worker there, or ask for less.",
            field="resources",
        )
    ]


def _queued() -> QuerySet[Run]:
    """Waiting runs as they come to be claimed."""
    return Run.objects.filter(status=Run.Status.QUEUED).order_by("queued_at", "id")


def _hosts(mine: set[int]) -> tuple[Host, ...]:
    workers = Worker.objects.prefetch_related("devices__leases__run")
    return tuple(
        Host(worker, tuple(_place(device, mine) for device in worker.devices.all()))
        for worker in workers
    )


def _place(device: Device, mine: set[int]) -> Place:
    leases = list(device.leases.all())
    holders = tuple(
        Holder(one.run if one.run_id in mine else None, one.get_role_display(), one.expires_at)
        for one in leases
    )
    return Place(device, holders, leases[0].shared if leases else "")
