"""Workers, their devices and the queue: what a run needs, where that is, and what it waits for.

Workers are the installation's and not a project's, so a run of a project that the reader is not in
shows only as somebody's. It claims nothing: workers do, and a message to them may be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.core.cache import cache
from django.utils import timezone
from kombu.exceptions import OperationalError

from webapp.celery import app
from webapp.models import Device, Run, User, Worker

log = structlog.get_logger(__name__)

WARM_TASK = "workers.warm"
# Whoever fills in a form asks again and again; between two messages the host stays warm anyway.
WARM_PAUSE_SECONDS = 30
# A worker says that it lives every ten seconds.
FRESH_SECONDS = 45
SHOWN_QUEUE = 100
KINDS = {"cpu": "processor", "cuda": "GPU"}


@dataclass(frozen=True)
class Need:
    """What a run asks for; no kind means the best that the host has."""

    count: int
    kind: str | None

    @property
    def words(self) -> str:
        """As a person says it, such as `2 GPUs`."""
        name = KINDS.get(self.kind, self.kind) if self.kind else "device"
        return f"a {name}" if self.count == 1 else f"{self.count} {name}s"


@dataclass(frozen=True, slots=True)
class Place:
    """A device and who holds it; `run` is None where it is free or its run is not yours to see."""

    device: Device
    run: Run | None
    lease_until: datetime | None

    @property
    def is_free(self) -> bool:
        return self.lease_until is None

    @property
    def lease_left(self) -> timedelta | None:
        """Time until the lease ends; negative once it has."""
        return self.lease_until - timezone.now() if self.lease_until else None

    @property
    def has_expired(self) -> bool:
        return self.lease_left is not None and self.lease_left < timedelta(0)


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


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued run, or None where it is not yours to see, with its place and what it waits for."""

    place: int
    run: Run | None
    since: datetime
    need: Need
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


def need(run: Run) -> Need:
    """Devices named in the run's resources, counted over its roles; one where none is named."""
    names = {name for role in run.resources.values() for name in role.get("devices", ())}
    kinds = {name.partition(":")[0] for name in names}
    return Need(max(1, len(names)), kinds.pop() if len(kinds) == 1 else None)


def candidates(wanted: Need, devices: Sequence[Device]) -> list[Device]:
    """Devices of the kind that is wanted, or of the best kind where any will do."""
    kind = wanted.kind or ("cuda" if any(device.kind == "cuda" for device in devices) else "cpu")
    return [device for device in devices if device.kind == kind]


def state(user: User) -> State:
    """Workers, devices and queue as the user may see them."""
    mine = set(Run.objects.visible_to(user).active().values_list("pk", flat=True))
    hosts = _hosts(mine)
    queued = Run.objects.filter(status=Run.Status.QUEUED)
    rows = queued.select_related("project", "pair", "created_by").order_by("queued_at", "id")
    rows = rows.defer("snapshot", "notes", "pair__token_map_report")[:SHOWN_QUEUE]
    queue = tuple(
        Waiting(place, run if run.pk in mine else None, run.queued_at, need(run), reason)
        for place, (run, reason) in enumerate(_reasons(list(rows), hosts), start=1)
    )
    return State(hosts, queue, queued.count())


def _hosts(mine: set[int]) -> tuple[Host, ...]:
    workers = Worker.objects.prefetch_related("devices__lease__run")
    return tuple(
        Host(worker, tuple(_place(device, mine) for device in worker.devices.all()))
        for worker in workers
    )


def _place(device: Device, mine: set[int]) -> Place:
    # A reverse one-to-one that is absent raises; `hasattr` is how Django asks.
    if not hasattr(device, "lease"):
        return Place(device, None, None)
    lease = device.lease
    return Place(device, lease.run if lease.run_id in mine else None, lease.expires_at)


def _reasons(runs: Sequence[Run], hosts: Sequence[Host]) -> list[tuple[Run, str]]:
    """Why each run is not running yet. What an older run waits for is kept for it."""
    free = {place.device.pk for host in hosts for place in host.places if place.is_free}
    told = []
    for run in runs:
        reason, kept = _reason(run, hosts, free)
        free -= kept
        told.append((run, reason))
    return told


def _reason(run: Run, hosts: Sequence[Host], free: set[int]) -> tuple[str, set[int]]:
    """The reason, and the devices that are kept for this run from here on."""
    wanted = need(run)
    there = [host for host in hosts if host.is_fresh]
    if not there:
        return "No worker is running.", set()
    if run.host and not settings.WORKER_SHARED_STATE:
        own = [host for host in there if host.worker.host == run.host]
        if not own:
            return f"Its run folder is on {run.host}, whose worker is silent.", set()
        there = own
    suited = [candidates(wanted, [place.device for place in host.places]) for host in there]
    suited = [devices for devices in suited if len(devices) >= wanted.count]
    if not suited:
        return f"No running worker has {wanted.words}.", set()
    for devices in suited:
        granted = [device.pk for device in devices if device.pk in free][: wanted.count]
        if len(granted) == wanted.count:
            return "It starts in a moment.", set(granted)
    kept = {device.pk for devices in suited for device in devices}
    busy = f"{wanted.words} must become free."
    return busy[:1].upper() + busy[1:], kept
