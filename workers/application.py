"""The whole application as one process tree: broker, worker and web server, started and stopped.

For one machine: `manage.py up`. It prepares the database and the static files, watches what it
started, and starts anew what dies. It holds no request and no run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.core.management import call_command

from opdcore.contract.errors import StillroomError
from workers.broker import Broker, socket_path, wait_until

READY_SECONDS = 60.0
STOP_SECONDS = 20.0
PORTS_TRIED = 50
# A program that dies again within this time is started again after twice the wait.
STEADY_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 30.0
LOCK = "up.json"

Tell = Callable[[str], None]


class AlreadyRunning(StillroomError):
    """Another `up` serves this state folder; `url` is where."""

    def __init__(self, url: str) -> None:
        super().__init__(
            "up.running",
            f"Stillroom is already running at {url}.",
            remedy="Open that address, or stop it with Ctrl-C where it was started.",
        )
        self.url = url


@dataclass
class Program:
    """A child of `up`, with its log; started again when it dies."""

    name: str
    argv: list[str]
    env: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    wait_seconds: float = 1.0

    def start(self) -> None:
        """On a leash: the kernel ends it if `up` is killed; its own group spares it Ctrl-C."""
        self.started_at = time.monotonic()
        leash = [sys.executable, "-m", "opdcore.leash", str(os.getpid()), str(settings.BASE_DIR)]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*leash, *self.argv],
                cwd=settings.BASE_DIR,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def is_due(self) -> bool:
        """Whether it is time to start it again: later each time that it died young."""
        lived = time.monotonic() - self.started_at
        if lived > STEADY_SECONDS:
            self.wait_seconds = 1.0
        if lived < self.wait_seconds:
            return False
        self.wait_seconds = min(2 * self.wait_seconds, LONGEST_WAIT_SECONDS)
        return True

    def stop(self, *, grace_seconds: float) -> None:
        """Asks it to end, and insists after the grace."""
        if self.process is None or self.ended:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=grace_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Application:
    """Broker, worker and web server of one state folder."""

    def __init__(self, *, host: str, port: int, tell: Tell) -> None:
        self.host = host
        self.port = port
        self.tell = tell
        self.stopping = threading.Event()
        self._state = Path(settings.STATE_DIR)
        self._logs = self._state / "logs"
        self._broker: Broker | None = None
        self._programs: list[Program] = []

    @property
    def url(self) -> str:
        shown = "localhost" if self.host in ("127.0.0.1", "0.0.0.0", "::") else self.host  # noqa: S104
        return f"http://{shown}:{self.port}/"

    def run(self, *, ready: Callable[[], None]) -> None:
        """Starts everything, calls `ready` once a page answers, and returns when it is stopped."""
        try:
            self._start()
            ready()
            while not self.stopping.wait(1.0):
                self._watch()
        finally:
            self._stop()

    def _start(self) -> None:
        env = os.environ | {"STILLROOM_HTTPS": os.environ.get("STILLROOM_HTTPS", "false")}
        if not os.environ.get("REDIS_URL"):
            self.tell("Starting the embedded broker")
            self._broker = Broker(socket_path(self._state), log=self._logs / "broker.log")
            self._broker.start()
            env["REDIS_URL"] = self._broker.url
        env["DJANGO_SETTINGS_MODULE"] = "webapp.settings"
        self.tell("Starting the worker and the web server")
        self._programs = [
            Program("worker", ["django", "worker"], env, self._logs / "worker.log"),
            Program("web", ["uvicorn", *self._uvicorn()], env, self._logs / "web.log"),
        ]
        for program in self._programs:
            program.start()
        if not wait_until(lambda: self._answers() or self.stopping.is_set(), READY_SECONDS):
            raise StillroomError(
                "up.not_ready",
                f"No page answered at {self.url} within {READY_SECONDS:.0f} s.",
                remedy=f"See {self._logs / 'web.log'}.",
            )

    def _uvicorn(self) -> list[str]:
        return [
            "webapp.asgi:application",
            *("--host", self.host, "--port", str(self.port)),
            *("--lifespan", "off", "--no-server-header", "--no-access-log"),
            # Sockets stay open for ever; they must not hold up the end.
            *("--timeout-graceful-shutdown", "2"),
        ]

    def _answers(self) -> bool:
        web = self._programs[-1]
        if web.ended:
            raise StillroomError(
                "up.web_ended",
                "The web server ended while it started.",
                remedy=f"See {web.log}.",
            )
        try:
            with urllib.request.urlopen(self.url, timeout=5) as reply:  # noqa: S310 - ours
                return bool(reply.status < 500)
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False

    def _watch(self) -> None:
        if self._broker is not None and self._broker.watch():
            self.tell("The broker had died and was started again")
        for program in self._programs:
            if program.ended and program.is_due():
                self.tell(f"The {program.name} had died and is started again; see {program.log}")
                program.start()

    def _stop(self) -> None:
        """The worker first: its jobs end at their next step, and it records their last words."""
        for program in self._programs:
            grace = STOP_SECONDS + settings.WORKER_GRACE_SECONDS
            program.stop(grace_seconds=grace if program.name == "worker" else STOP_SECONDS)
        if self._broker is not None:
            self._broker.stop()


def prepare(tell: Tell) -> None:
    """Brings the database up to date, and the static files where they are older than their sources."""
    tell("Preparing the database")
    call_command("migrate", interactive=False, verbosity=0)
    if _static_files_are_stale():
        tell("Collecting static files")
        call_command("collectstatic", interactive=False, verbosity=0)


def free_port(host: str, port: int) -> int:
    """That port, or the next one that nobody listens on."""
    for candidate in range(port, port + PORTS_TRIED):
        with contextlib.closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            return candidate
    raise StillroomError(
        "up.no_port",
        f"No port from {port} to {port + PORTS_TRIED - 1} is free on {host}.",
        remedy="Give another one with --port.",
    )


@contextmanager
def only_one(state: Path, url: str) -> Iterator[None]:
    """Holds the state folder for this `up`; raises AlreadyRunning where another one does."""
    path = state / LOCK
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(json.loads(path.read_text())["url"]) from error
        _write(file.fileno(), {"pid": os.getpid(), "url": url})
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def stop_on_signals(stopping: threading.Event) -> None:
    """Ctrl-C, a closed terminal and `kill` all end the application in order."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())


def _write(descriptor: int, document: dict[str, object]) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(document).encode())
    os.fsync(descriptor)


def _static_files_are_stale() -> bool:
    """Whether any source is newer than the manifest; without a manifest, yes."""
    manifest = Path(settings.STATIC_ROOT) / "staticfiles.json"
    if not manifest.exists():
        return True
    made = manifest.stat().st_mtime
    return any(
        Path(storage.path(name)).stat().st_mtime > made
        for finder in get_finders()
        for name, storage in finder.list([])
    )
