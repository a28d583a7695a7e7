"""Models of the hub that queued runs need, fetched to this host while they hold no device.

One at a time, in a child process that gets the project's hub token and nothing else; it says in a file how
far it is. A run that is fetched for here is claimed here. A download that was broken off goes on from what
has come, here or elsewhere. It claims nothing and knows no lease.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from django.db.models import Q, QuerySet
from django.utils import timezone

from webapp.models import Run, Worker
from webapp.services import allocation, project_secrets, resources
from webapp.services.allocation import Request, Unit
from webapp.services.machines import FRESH_SECONDS
from workers import job_folder
from workers.bell import BELL

HUB_VARIABLES = ("HF_", "HUGGING_FACE_")
MOST_LOOKED_AT = 50
FAULT = {
    "code": "model.unreachable",
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

    def __init__(self, host: str) -> None:
        self.host = host
        self.current: Download | None = None

    def begin(self) -> None:
        """Forgets what an earlier worker of this host left behind."""
        Run.objects.filter(downloading_to=self.host).update(downloading_to="")

    def look(self) -> None:
        """Goes on with the download under way, or begins the oldest run's."""
        if self.current is None:
            worker = Worker.objects.get(host=self.host)
            run = next(iter(self._waiting(worker)), None)
            if run is not None and self._take(run):
                self.current = self._begin(run)
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
        oldest = _unfetched().order_by("queued_at", "id")[:MOST_LOOKED_AT]
        return [run for run in oldest if _fits(run, units)]

    def _take(self, run: Run) -> bool:
        """The compare-and-swap: true for the one host that fetches it."""
        return _unfetched().filter(pk=run.pk).update(downloading_to=self.host) > 0

    def _begin(self, run: Run) -> Download:
        home = job_folder.folder(run)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = home / "download.json"
        status.unlink(missing_ok=True)
        argv = [
            sys.executable,
            "-m",
            "opdcore",
            "download",
            "--status",
            str(status),
            *models_of(run),
        ]
        with (home / "download.log").open("ab") as output:
            process = subprocess.Popen(
                argv, env=_environment(run), cwd=settings.BASE_DIR, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        log.info("download began", run=run.public_id, models=models_of(run))
        return Download(run, process, status)

    def _end(self, download: Download) -> None:
        told, mine = download.told, _mine(download.run, self.host)
        if download.process.returncode == 0 and "commits" in told:
            snapshot = _pinned(download.run.snapshot, told["commits"])
            mine.update(
                downloaded_to=self.host, downloading_to="", progress=None, snapshot=snapshot
            )
        else:
            mine.update(
                status=Run.Status.FAILED, finished_at=timezone.now(), progress=None,
                downloading_to="", error=told.get("error", FAULT),
            )  # fmt: skip
        log.info("download ended", run=download.run.public_id, code=download.process.returncode)
        BELL.ring(download.run.bell)
        self.current = None

    def _drop(self) -> None:
        assert self.current is not None
        self.current.process.kill()
        self.current.process.wait()
        _mine(self.current.run, self.host).update(downloading_to="", progress=None)
        self.current = None


def models_of(run: Run) -> list[str]:
    """The hub's models that the run names, each once, as `repo@revision`."""
    sides = [run.snapshot["student"], *run.snapshot["teachers"], run.snapshot.get("writer")]
    sources = [side["participant"]["model"] for side in sides if side]
    hub = [f"{one['repo']}@{one['revision']}" for one in sources if one["kind"] == "hub"]
    return list(dict.fromkeys(hub))


def _unfetched() -> QuerySet[Run]:
    """Queued runs whose models are on no host that lives, and that no such host is fetching."""
    fresh = timezone.now() - timedelta(seconds=FRESH_SECONDS)
    alive = Worker.objects.filter(heartbeat_at__gt=fresh).values("host")
    queued = Run.objects.filter(status=Run.Status.QUEUED, downloads=True)
    return queued.exclude(Q(downloaded_to__in=alive) | Q(downloading_to__in=alive))


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


def _pinned(snapshot: dict[str, Any], commits: dict[str, str]) -> dict[str, Any]:
    """The snapshot with every branch and tag as the commit that was fetched."""
    sides = [snapshot["student"], *snapshot["teachers"], snapshot.get("writer")]
    for side in filter(None, sides):
        model = side["participant"]["model"]
        if model["kind"] == "hub":
            model["revision"] = commits[f"{model['repo']}@{model['revision']}"]
    return snapshot


def _environment(run: Run) -> dict[str, str]:
    """The job's, without devices, with the project's own words to the hub."""
    secrets = project_secrets.environment(run.project_id)
    hub = {name: value for name, value in secrets.items() if name.startswith(HUB_VARIABLES)}
    return job_folder.environment((), inherited=os.environ) | hub
