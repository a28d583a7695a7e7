"""Executes a claimed run: starts its job, records what it says, stops it when asked, ends the run.

One thread supervises one job. Whatever goes wrong here ends the run with a coded reason, or leaves
its lease to expire, so that no run stays `running` for ever. It knows nothing of what a job does.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError, close_old_connections, transaction
from django.db.models import F
from django.utils import timezone

from opdcore.contract.errors import ErrorInfo, StillroomError
from opdcore.contract.events import AnyEvent, JobFinished
from opdcore.contract.recipe import Recipe
from opdcore.forkserver_client import Child, Launch, ensure, spawn_cold, start, warming
from webapp.models import Lease, Run
from webapp.services import families, proofs, recording, rescues, series
from workers import ending, job_folder, job_secrets, leases
from workers.bell import BELL
from workers.broker import socket_path, wait_until
from workers.ending import Death, Ending
from workers.footprint import Footprint
from workers.leases import Claim
from workers.publisher import Publisher
from workers.recorder import Recorder
from workers.redaction import Redaction

PROGRAM = "opdcore"
WATCH_SECONDS = 0.25
# A descriptor that is free in the fork-server too, which keeps the low numbers busy.
FIRST_PIPE = 200
RECORD_PATIENCE_SECONDS = 3600.0
PUBLISH_PATIENCE_SECONDS = 3600.0
RETRY_SECONDS = 1.0
# How long a fork-server that was just started may take to answer.
WARMING_SECONDS = 60.0

log = structlog.get_logger(__name__)

# Set when this worker shuts down: its jobs end at their next step and go on elsewhere or later.
STOPPING = threading.Event()
_SUPERVISED: set[int] = set()


def supervised() -> frozenset[int]:
    """Runs that a thread of this process executes now."""
    return frozenset(_SUPERVISED)


def execute(claimed: Claim) -> Ending:
    """Takes a claimed run to its end, or back into the queue where this worker shuts down."""
    _SUPERVISED.add(claimed.run.pk)
    started = time.monotonic()
    try:
        ended = _Execution(claimed).run()
    except StillroomError as error:
        ended = Ending("failed", error=error.info)
    except Exception as error:  # the outermost frame of a run: the row must say what happened
        log.exception("the worker failed", run=claimed.run.public_id, attempt=claimed.attempt)
        ended = Ending("failed", error=_fault(error))
    try:
        _patiently(lambda: _end(claimed, ended, time.monotonic() - started))
    finally:
        _SUPERVISED.discard(claimed.run.pk)
    BELL.ring(claimed.run.bell)
    log.info("run ended", run=claimed.run.public_id, status=ended.status)
    return ended


class _Execution:
    """One attempt of one run: its process, its recorder, its publisher."""

    def __init__(self, claimed: Claim) -> None:
        self.claimed = claimed
        self.folder = job_folder.folder(claimed.run)
        self.log = self.folder / "logs" / f"attempt-{claimed.attempt}.log"
        self.secrets = job_secrets.of(claimed.run)
        self.redaction = Redaction(self.secrets)
        self.cancel_requested = False
        self.interrupted = False
        self._signalled_at: float | None = None
        self._renewed_at = time.monotonic()
        self._memory_kills = ending.memory_kills()
        self._footprint = Footprint(self.folder)

    def run(self) -> Ending:
        job = job_folder.prepare(self.claimed)
        self.log.parent.mkdir(exist_ok=True)
        self.publisher = Publisher(self.claimed.run, folder=self.folder)
        self.publisher.start()
        child = self._start(job)
        try:
            code = self._supervise(child)
        finally:
            child.killpg(signal.SIGKILL)
        return self._conclude(code)

    def _start(self, job: Path) -> Child:
        reading, writing = _pipe()
        author = recording.Author(
            self.claimed.run.pk,
            self.claimed.attempt,
            Recipe.model_validate(self.claimed.run.snapshot["recipe"]["document"]).steps_by_stage,
            teachers=len(self.claimed.run.snapshot["teachers"]),
        )
        self.recorder = Recorder(
            author,
            pipe=reading,
            folder=self.folder,
            recorded=self._recorded,
            redaction=self.redaction,
        )
        self.recorder.start()
        try:
            with self.log.open("ab") as output:
                return _launch(self._launch(job, writing, output.fileno()), set(self.secrets))
        finally:
            os.close(writing)

    def _launch(self, job: Path, events: int, output: int) -> Launch:
        return Launch(
            argv=["run", str(job), "--run-dir", str(self.folder), "--events", str(events)],
            env=job_folder.environment(self.claimed.devices) | self.secrets,
            cwd=self.folder,
            stdout=output,
            stderr=output,
            pass_fds=(events,),
            program=PROGRAM,
        )

    def _recorded(self, events: Sequence[AnyEvent]) -> None:
        BELL.ring(self.claimed.run.bell)
        self.publisher.take(events)

    def _supervise(self, child: Child) -> int:
        """Waits for the job; meanwhile renews the lease and passes on a wish to stop."""
        while (code := child.wait(WATCH_SECONDS)) is None:
            self._say_problems()
            try:
                close_old_connections()
                self._look()
            except (OperationalError, InterfaceError) as error:
                log.warning("database away", run=self.claimed.run.public_id, error=str(error))
            self._stop_if_due(child)
        return code

    def _look(self) -> None:
        """Asks the row what is wanted, and renews the lease in time."""
        row = Run.objects.filter(pk=self.claimed.run.pk).values("attempt", "cancel_requested_at")
        found = row.first()
        if found is None or found["attempt"] != self.claimed.attempt:
            self.recorder.fenced.set()
            return
        self.cancel_requested = found["cancel_requested_at"] is not None
        self._keep_disk()
        if time.monotonic() - self._renewed_at > leases.RENEW_SECONDS:
            if not leases.renew(self.claimed):
                self.recorder.fenced.set()
            self._renewed_at = time.monotonic()

    def _keep_disk(self, *, at_once: bool = False) -> None:
        """Notes the most that the run's folder has held."""
        if (grown := self._footprint.grown(at_once=at_once)) is not None:
            recording.keep_disk(self.claimed.run.pk, self.claimed.attempt, grown)

    def _stop_if_due(self, child: Child) -> None:
        """SIGTERM to the job's group when somebody wants it to stop; SIGKILL after the grace."""
        if self.recorder.fenced.is_set():
            child.killpg(signal.SIGKILL)
            return
        self.interrupted = self.interrupted or (STOPPING.is_set() and not self.cancel_requested)
        if not (self.cancel_requested or self.interrupted):
            return
        if self._signalled_at is None:
            self._signalled_at = time.monotonic()
            # The job alone: its own children end with it, and a verifier must not die before it.
            child.send_signal(signal.SIGTERM)
        elif time.monotonic() - self._signalled_at > settings.WORKER_GRACE_SECONDS:
            child.killpg(signal.SIGKILL)

    def _say_problems(self) -> None:
        while not self.publisher.problems.empty():
            self.recorder.say(self.publisher.problems.get())

    def _conclude(self, code: int) -> Ending:
        # A signal that lies a moment in the past and a wish that came with it belong together.
        with suppress(OperationalError, InterfaceError):
            self._look()
            self._keep_disk(at_once=True)
        self.recorder.flush()
        said = self.recorder.finished
        self.redaction.clean_file(self.log)
        death = Death(
            code=code,
            log_tail=ending.log_tail(self.log),
            cancel_requested=self.cancel_requested,
            interrupted=self.interrupted,
            memory_ran_out=code == -signal.SIGKILL and ending.memory_kills() > self._memory_kills,
        )
        ended = ending.judge(said, death)
        self._publish_log()
        if said is None and ended.status in ("failed", "cancelled"):
            self.recorder.say(JobFinished(status=ended.status, error=ended.error))
        if not self.recorder.close(patience_seconds=RECORD_PATIENCE_SECONDS):
            log.error("events left in the spool", run=self.claimed.run.public_id)
        return ended

    def _publish_log(self) -> None:
        if self.log.exists() and self.log.stat().st_size:
            self.publisher.add(self.log.relative_to(self.folder).as_posix(), "log")
        if not self.publisher.close(patience_seconds=PUBLISH_PATIENCE_SECONDS):
            log.error("artifacts left unpublished", run=self.claimed.run.public_id)
        self._say_problems()


def _launch(launch: Launch, secrets: Collection[str]) -> Child:
    if not settings.WORKER_WARM:
        return spawn_cold(launch)
    server = socket_path(Path(settings.STATE_DIR), "forkserver")
    # The fork-server outlives this job, so it gets none of what is this job's alone.
    shared = {name: value for name, value in launch.env.items() if name not in secrets}
    if not ensure(server, env=shared):
        # A start of its own beside a server that warms up would import everything twice at once.
        wait_until(lambda: not warming(server), WARMING_SECONDS)
    return start(launch, socket_path=server)


def _pipe() -> tuple[int, int]:
    """A pipe whose writing end has a high number."""
    reading, low = os.pipe()
    try:
        writing = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, FIRST_PIPE)
    finally:
        os.close(low)
    return reading, writing


def _end(claimed: Claim, ended: Ending, seconds: float) -> None:
    """Writes the ending, unless somebody else has taken the run over; gives the devices back."""
    columns: dict[str, object] = {
        "status": ended.status,
        "finished_at": None if ended.status in ("queued", "paused") else timezone.now(),
        "error": ended.error.model_dump(mode="json") if ended.error else None,
        "outcome": ended.outcome,
        "progress": None,
        "seconds": F("seconds") + seconds,
        "device_seconds": F("device_seconds") + seconds * len(claimed.devices),
    }
    mine = Run.objects.filter(pk=claimed.run.pk, attempt=claimed.attempt, status=Run.Status.RUNNING)
    last = Run.objects.filter(pk=claimed.run.pk).values_list("last_seq", flat=True).get()
    series.compact(claimed.run.pk, through=last)
    with transaction.atomic():
        mine.update(**columns)
        # Cancelled while it was put back or paused: nobody is left whom the wish could reach.
        waiting = Run.objects.filter(status__in=("queued", "paused"))
        unwanted = waiting.filter(pk=claimed.run.pk, attempt=claimed.attempt)
        unwanted.filter(cancel_requested_at__isnull=False).update(
            status=Run.Status.CANCELLED, finished_at=timezone.now()
        )
        Lease.objects.filter(run=claimed.run, attempt=claimed.attempt).delete()
    for follow in (families.learn_from, proofs.update, rescues.unattended):
        _follow(follow, claimed.run)


def _follow(follow: Callable[[int], object], run: Run) -> None:
    """What others make of the run's end; it has ended, whether that works or not."""
    try:
        follow(run.pk)
    except Exception:
        log.exception("the run's end was not followed", by=follow.__module__, run=run.public_id)


def _patiently(write: Callable[[], None]) -> None:
    """Writes as soon as the database is there; while this worker runs, it does not give up."""
    while True:
        try:
            close_old_connections()
            write()
        except (OperationalError, InterfaceError) as error:
            if STOPPING.is_set():
                raise
            log.warning("database away: the ending waits", error=str(error))
            time.sleep(RETRY_SECONDS)
        else:
            return


def _fault(error: Exception) -> ErrorInfo:
    return ErrorInfo(
        code="worker.fault",
        message=f"The worker failed, not the job: {type(error).__name__}: {error}"[:2000],
        remedy="See the worker's log; resume the run once the cause is gone.",
    )
