"""Celery's tasks: one line each. A message is a wake-up; what there is to do, the rows say.

Each may be lost, and each may come twice.
"""

from __future__ import annotations

from celery.signals import worker_ready, worker_shutting_down

from webapp.celery import app
from webapp.services.machines import WARM_TASK
from webapp.services.runs import WAKE_TASK
from workers import inventory, leases
from workers.execute import STOPPING, execute
from workers.host import Host

_HOST = Host()


@app.task(name=WAKE_TASK)  # type: ignore[untyped-decorator]
def wake() -> None:
    """Executes queued runs, oldest first, while this worker has devices for them."""
    while not STOPPING.is_set() and (claimed := leases.claim(inventory.this_worker())):
        execute(claimed)


@app.task(name=WARM_TASK)  # type: ignore[untyped-decorator]
def warm() -> None:
    """Has a job process ready before the launch that somebody seems to prepare."""
    _HOST.warm()


@worker_ready.connect  # type: ignore[untyped-decorator]
def _begin(**_: object) -> None:
    _HOST.start()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop(**_: object) -> None:
    _HOST.stop()
