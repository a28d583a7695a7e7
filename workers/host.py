"""This host's housekeeping while its worker runs: heartbeat, sweep, downloads, dispatch, a warm fork-server.

One thread, started when Celery's worker is ready. It does what no message can be trusted to do.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import structlog
from django.conf import settings
from django.db import close_old_connections, connections
from django.utils import timezone

from opdcore.forkserver_client import ensure, retire
from webapp.celery import app
from webapp.models import Lease, Run, Worker
from webapp.services.machines import queue_name
from webapp.services.runs import WAKE_TASK
from workers import execute, inventory, job_folder
from workers.broker import socket_path
from workers.downloads import Downloads
from workers.sweep import Sweep, recover

TICK_SECONDS = 3.0
HEARTBEAT_SECONDS = 10.0

log = structlog.get_logger(__name__)


class Host:
    """The housekeeping of one worker process."""

    def __init__(self) -> None:
        self._sweep = Sweep()
        self._downloads = Downloads(inventory.host())
        self._stopped = threading.Event()
        self._beat_at = 0.0
        self._thread = threading.Thread(target=self._keep_house, name="host", daemon=True)

    def start(self) -> None:
        """Makes this worker and its devices known, warms the fork-server, and begins."""
        if inventory.predecessor_is_gone():
            recover(inventory.host())
        inventory.register(inventory.devices())
        self._downloads.begin()
        self.warm()
        self._thread.start()

    def warm(self) -> None:
        """Has a fork-server ready, or on its way; it retires when nothing was launched for a while."""
        if settings.WORKER_WARM and not self._stopped.is_set():
            ensure(_forkserver(), env=job_folder.environment(()))

    def stop(self) -> None:
        """Has jobs end at their next step; the fork-server goes after the last of them."""
        execute.STOPPING.set()
        self._stopped.set()
        if settings.WORKER_WARM:
            retire(_forkserver())

    def _keep_house(self) -> None:
        try:
            while not self._stopped.wait(TICK_SECONDS):
                self._tick()
        finally:
            self._downloads.stop()
            connections.close_all()

    def _tick(self) -> None:
        try:
            close_old_connections()
            self._beat()
            self._sweep.look(supervised=execute.supervised())
            self._downloads.look()
            dispatch()
        except Exception as error:  # the database or the broker is away: the next tick tries again
            log.warning("housekeeping failed", error=repr(error))

    def _beat(self) -> None:
        if time.monotonic() - self._beat_at > HEARTBEAT_SECONDS:
            Worker.objects.filter(host=inventory.host()).update(heartbeat_at=timezone.now())
            self._beat_at = time.monotonic()


def dispatch() -> int:
    """Wakes this worker once for each queued run that a free device of it may take."""
    waiting = Run.objects.filter(status=Run.Status.QUEUED).count()
    if not waiting:
        return 0
    worker = Worker.objects.get(host=inventory.host())
    free = worker.devices.count() - Lease.objects.filter(device__worker=worker).count()
    wakes = min(waiting, free)
    for _ in range(wakes):
        app.send_task(
            WAKE_TASK, queue=queue_name(worker.host), expires=2 * TICK_SECONDS, retry=False
        )
    return wakes


def _forkserver() -> Path:
    return socket_path(Path(settings.STATE_DIR), "forkserver")
