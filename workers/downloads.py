"""Models of the hub that queued runs need, fetched to this host while they hold no device.

One at a time, in a child process that gets the project's hub token and nothing else, ends with its worker
and says in a file how far it is. A run that is fetched for here is claimed here. A hub out of reach is tried
again after a while, and other runs' models meanwhile. It claims nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from django.db.models import Q, QuerySet
from django.utils import timezone

from opdcore import hub
from opdcore.contract.errors import StillroomError
from webapp.models import Run, Worker
from webapp.services import allocation, project_secrets, resources
from webapp.services.allocation import Request, Unit
from webapp.services.machines import FRESH_SECONDS
from webapp.services.run_documents import hub_models, pinned
from workers import job_folder, leases
from workers.bell import BELL

HUB_VARIABLES = ("HF_", "HUGGING_FACE_")
MOST_LOOKED_AT = 50
# Between one try and the next, in seconds; a run whose last try fails has failed.
PAUSES = (15.0, 60.0, 240.0)
FAULT = {
    "code": hub.UNREACHABLE,
    "message": "The download of its models ended without a word.",
    "remedy": "See the worker's log, then launch the run again.",
    "field": "model",
}

log = structlog.get_logger(__name__)


@dataclass
class Download:
    """One run's, under way."""

    run: Run
    process: subprocess.Popen[bytes]
    status: Path

    @property
    def told(self) -> dict[str, Any]:
        """What it last said; empty before the first word."""
        try:
            found: dict[str, Any] = json.loads(self.status.read_bytes())
        except (OSError, ValueError):
            return {}
        return found


class Downloads:
    """What this host fetches; `look` is called again and again and never waits."""

    def __init__(self, host: str, *, pauses: Sequence[float] = PAUSES) -> None:
        self.host = host
        self.pauses = pauses
        self.current: Download | None = None
        # Of the runs that are to be tried again: how often they were, and from when on (monotonic).
        self._again: dict[int, tuple[int, float]] = {}

    def begin(self) -> None:
        """Forgets what an earlier worker of this host left behind."""
        Run.objects.filter(downloading_to=self.host).update(downloading_to="")

    def look(self) -> None:
        """Goes on with the download under way, or begins the oldest run's."""
        if self.current is None:
            worker = Worker.objects.get(host=self.host)
            run = next(iter(self._waiting(worker)), None)
            if run is not None and self._take(run):
                self._try(run)
            return
        if not _wanted(self.current.run):
            self._drop()
        elif self.current.process.poll() is None:
            _say(self.current.run, self.current.told)
        else:
            self._end(self.current)

    def stop(self) -> None:
        """Gives up what is under way; what has come is kept."""
        if self.current is not None:
            self._drop()

    def _waiting(self, worker: Worker) -> list[Run]:
        """Queued runs, oldest first, whose models are on no living host and that would fit here."""
        units = [Unit(one.pk, one.kind, one.memory_bytes, True) for one in worker.devices.all()]
        now = time.monotonic()
        later = [key for key, (_, begins) in self._again.items() if begins > now]
        oldest = _unfetched(self.host).exclude(pk__in=later).order_by("queued_at", "id")
        return [run for run in oldest[:MOST_LOOKED_AT] if _fits(run, units)]

    def _take(self, run: Run) -> bool:
        """The compare-and-swap: true for the one host that fetches it."""
        taken = _unfetched(self.host).filter(pk=run.pk)
        return taken.update(downloading_to=self.host, downloaded_to="", progress=None) > 0

    def _try(self, run: Run) -> None:
        """Begins; a run that was taken is never left behind as one that is being fetched."""
        try:
            self.current = self._begin(run)
        except StillroomError as error:
            self._refuse(run, error.info.model_dump(mode="json"))
        except OSError as error:
            message = f"The download of its models could not begin: {error.strerror}."
            self._refuse(run, FAULT | {"message": message})

    def _begin(self, run: Run) -> Download:
        home = job_folder.folder(run)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = home / "download.json"
        status.unlink(missing_ok=True)
        # Tied to this worker: where it is killed, the next one does not fetch beside it.
        leash = [sys.executable, "-m", "opdcore.leash", str(os.getpid()), str(settings.BASE_DIR)]
        models = hub_models(run.snapshot)
        argv = [*leash, "opdcore", "download", "--status", str(status), *models]
        with (home / "download.log").open("ab") as output:
            process = subprocess.Popen(
                argv, env=_environment(run), stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        log.info("download began", run=run.public_id, models=models)
        return Download(run, process, status)

    def _end(self, download: Download) -> None:
        run, told = download.run, download.told
        if download.process.returncode == 0 and "commits" in told:
            snapshot = pinned(run.snapshot, told["commits"])
            _mine(run, self.host).update(
                downloaded_to=self.host, downloading_to="", progress=None, snapshot=snapshot
            )
            self._again.pop(run.pk, None)
        else:
            self._refuse(run, told.get("error", FAULT))
        log.info("download ended", run=run.public_id, code=download.process.returncode)
        BELL.ring(run.bell)
        self.current = None

    def _refuse(self, run: Run, error: dict[str, Any]) -> None:
        """Tries again after a pause what may pass; what will not, or has not, ends the run."""
        tries = self._again.pop(run.pk, (0, 0.0))[0]
        changed: dict[str, Any] = {"downloading_to": "", "progress": None}
        if error["code"] == hub.UNREACHABLE and tries < len(self.pauses):
            self._again[run.pk] = (tries + 1, time.monotonic() + self.pauses[tries])
            total = len(self.pauses) + 1
            changed["progress"] = {
                "what": error["message"], "unit": "tries", "done": tries + 1, "total": total
            }  # fmt: skip
        else:
            changed |= {
                "status": Run.Status.FAILED, "finished_at": timezone.now(), "error": error
            }  # fmt: skip
        _mine(run, self.host).update(**changed)

    def _drop(self) -> None:
        assert self.current is not None
        self.current.process.kill()
        self.current.process.wait()
        _mine(self.current.run, self.host).update(downloading_to="", progress=None)
        self.current = None


def _unfetched(host: str) -> QuerySet[Run]:
    """Queued runs of this host or any, whose models are on no living host that may run them.

    No such host is fetching them either.
    """
    fresh = timezone.now() - timedelta(seconds=FRESH_SECONDS)
    alive = Worker.objects.filter(heartbeat_at__gt=fresh).values("host")
    queued = Run.objects.filter(status=Run.Status.QUEUED, downloads=True)
    fetched = Q(downloaded_to__in=alive)
    if not settings.WORKER_SHARED_STATE:
        # A run whose folder is here runs here alone: that another host has its models is no use.
        fetched = Q(downloaded_to=host) | fetched & ~Q(host=host)
    return leases.of_host(queued, host).exclude(fetched | Q(downloading_to__in=alive))


def _fits(run: Run, units: list[Unit]) -> bool:
    asked = resources.needs(run.resources, teacher_server=run.teacher_server)
    return next(allocation.decisions([Request(run.pk, asked)], units)).fits


def _mine(run: Run, host: str) -> QuerySet[Run]:
    return Run.objects.filter(pk=run.pk, status=Run.Status.QUEUED, downloading_to=host)


def _wanted(run: Run) -> bool:
    return Run.objects.filter(pk=run.pk, status=Run.Status.QUEUED).exists()


def _say(run: Run, told: dict[str, Any]) -> None:
    """How far it is, on the run's row and its page."""
    if "total" not in told:
        return
    progress = {"what": f"downloading {told['what']}", "unit": "bytes"}
    progress |= {key: told[key] for key in ("done", "total")}
    if progress != run.progress:
        run.progress = progress
        Run.objects.filter(pk=run.pk, status=Run.Status.QUEUED).update(progress=progress)
        BELL.ring(run.bell)


def _environment(run: Run) -> dict[str, str]:
    """The job's, without devices, with the project's own words to the hub."""
    secrets = project_secrets.environment(run.project_id)
    hub = {name: value for name, value in secrets.items() if name.startswith(HUB_VARIABLES)}
    return job_folder.environment((), inherited=os.environ) | hub
