"""This host's worker row and its devices: what can be leased here.

The devices come from the settings (`STILLROOM_DEVICES`), else from `nvidia-smi`, and a slot of the
CPU always. It asks no driver library, so no CUDA context is ever made in the worker.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import psutil
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from webapp.models import Device, Worker

SOFTWARE = ("celery", "Django")


@dataclass(frozen=True)
class Found:
    """A device of this host; `name` is the kind and a number."""

    name: str
    memory_bytes: int | None = None

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]


def host() -> str:
    """What this worker is called: its host, unless the settings name it."""
    return settings.WORKER_NAME or socket.gethostname()


def devices() -> list[Found]:
    """The devices of this host."""
    if settings.WORKER_DEVICES:
        return [Found(name) for name in settings.WORKER_DEVICES]
    return [*_cuda_devices(), Found("cpu:0", psutil.virtual_memory().total)]


@transaction.atomic
def register(found: Sequence[Found]) -> Worker:
    """Writes this worker and exactly these devices; a leased one that is gone loses its lease."""
    now = timezone.now()
    versions = {name: version(name) for name in SOFTWARE} | {"python": platform.python_version()}
    worker, _ = Worker.objects.update_or_create(
        host=host(), defaults={"pid": os.getpid(), "heartbeat_at": now, "versions": versions}
    )
    Device.objects.filter(worker=worker).exclude(name__in=[one.name for one in found]).delete()
    for one in found:
        Device.objects.update_or_create(
            worker=worker,
            name=one.name,
            defaults={"kind": one.kind, "memory_bytes": one.memory_bytes},
        )
    return worker


def predecessor_is_gone() -> bool:
    """Whether this host's worker row is of a process that has ended."""
    worker = Worker.objects.filter(host=host()).first()
    if worker is None:
        return False
    return worker.pid == os.getpid() or not psutil.pid_exists(worker.pid)


def this_worker() -> Worker:
    """This worker's row; registered where it is not yet known."""
    worker = Worker.objects.filter(host=host()).first()
    return worker or register(devices())


def _cuda_devices() -> list[Found]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-gpu=index,memory.total", "--format=csv,noheader,nounits"]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    if told.returncode != 0:
        return []
    rows = [line.split(",") for line in told.stdout.splitlines() if line.strip()]
    return [Found(f"cuda:{index.strip()}", _bytes(mebibytes)) for index, mebibytes in rows]


def _bytes(mebibytes: str) -> int | None:
    """Some devices share the host's memory and answer `[N/A]`."""
    text = mebibytes.strip()
    return int(text) << 20 if text.isdigit() else None
