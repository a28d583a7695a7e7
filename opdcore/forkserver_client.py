"""Starts jobs: warm, from the fork-server, or cold, as a plain child process; one interface.

    ensure(socket_path, env=env)                           # once, early: warms a server up
    child = start(Launch(argv, env=env, cwd=folder, stdout=1, stderr=2, pass_fds=(events,)),
                  socket_path=socket_path)
    code = child.wait(timeout=None)

Either way a job leads a process group of its own, nothing of that group outlives the job, and the
job is killed when its starter is gone. This module imports the standard library alone. It knows no
torch, no job document and no event.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

logger = logging.getLogger(__name__)

SOCKET_PATH_BYTES = 100  # The kernel takes 107; a few are left for the server's own suffixes.
REPLY_SECONDS = 5.0
# A server must fork from a single thread; importing numpy and pyarrow starts others without these,
# and asking whether there is a CUDA device must not initialise it.
QUIET_IMPORTS = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
_LENGTH = struct.Struct("!I")
_PACKAGE_ROOT = Path(__file__).resolve().parents[1]


class NotWarm(Exception):
    """No fork-server can run this launch now; start it cold. The text says why."""


@dataclass(frozen=True)
class Launch:
    """What to start: `python -m PROGRAM ARGV...` with exactly this environment.

    `stdout` and `stderr` become descriptors 1 and 2; those in `pass_fds` keep their numbers.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = field(repr=False)  # It may hold a project's secrets.
    cwd: Path
    stdout: int
    stderr: int
    pass_fds: Sequence[int] = ()
    program: str = "opdcore"


class Child(Protocol):
    """A started job. One thread waits for it; any thread may signal it.

    Hold on to it: a warm job whose Child is gone has lost its starter, and is killed.
    """

    @property
    def pid(self) -> int:
        """Its process id, which is its group's too."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs on."""

    def send_signal(self, number: int) -> None:
        """Signal the process; nothing happens once it has ended."""

    def killpg(self, number: int) -> None:
        """Signal the whole process group; nothing happens once it has ended."""


def start(launch: Launch, *, socket_path: Path, idle_seconds: float = 600.0) -> Child:
    """Start a job warm if a server answers, or else cold, with a server warming up for the next."""
    try:
        return spawn(launch, socket_path=socket_path)
    except NotWarm as reason:
        logger.info("Cold start: %s", reason)
    child = spawn_cold(launch)
    ensure(socket_path, env=launch.env, idle_seconds=idle_seconds)
    return child


def ensure(socket_path: Path, *, env: Mapping[str, str], idle_seconds: float = 600.0) -> bool:
    """Say whether a server answers; if none does and none is warming up, start one, detached.

    `env` should be what jobs will run with: libraries read some of it when they are imported, and
    the server refuses a job that differs there.
    """
    if not _possible(socket_path):
        return False
    try:
        _connect(socket_path).close()
    except NotWarm:
        lock = take_lock(socket_path)
        if lock is not None:
            _start_server(socket_path, lock, env, idle_seconds=idle_seconds)
            os.close(lock)  # The server has its own copy, and with it the lock.
        return False
    return True


def warming(socket_path: Path) -> bool:
    """Say whether a server lives but does not answer yet: it is importing what jobs need."""
    if not _possible(socket_path):
        return False
    lock = take_lock(socket_path)
    if lock is not None:
        os.close(lock)
        return False
    try:
        _connect(socket_path).close()
    except NotWarm:
        return True
    return False


def spawn(launch: Launch, *, socket_path: Path) -> Child:
    """Have the server fork a job. Raises NotWarm where none answers or it refuses."""
    connection = _connect(socket_path)
    try:
        send_request(
            connection,
            {
                "program": launch.program,
                "argv": list(launch.argv),
                "env": dict(launch.env),
                "cwd": str(launch.cwd),
                "pass_fds": list(launch.pass_fds),
            },
            fds=[launch.stdout, launch.stderr, *launch.pass_fds],
        )
        return _WarmChild(connection)
    except (OSError, NotWarm) as error:
        connection.close()
        raise NotWarm(f"The fork-server did not start the job: {error}") from error


def spawn_cold(launch: Launch) -> Child:
    """Start a job as a plain child process, which takes seconds to import what it needs.

    Call it from the thread that stays with the job: the kernel ties the child to that thread.
    """
    leash = [sys.executable, "-m", "opdcore.leash", str(os.getpid()), str(launch.cwd)]
    process = subprocess.Popen(
        [*leash, launch.program, *launch.argv],
        cwd=_PACKAGE_ROOT,  # So that `-m` finds opdcore; the leash moves on to the job's folder.
        env=launch.env,
        stdin=subprocess.DEVNULL,
        stdout=launch.stdout,
        stderr=launch.stderr,
        pass_fds=launch.pass_fds,
        start_new_session=True,
    )
    return _ColdChild(process)


def retire(socket_path: Path) -> None:
    """Ask the server, if there is one, to end once its last job has."""
    with suppress(NotWarm, OSError):
        connection = _connect(socket_path)
        with connection:
            send_request(connection, {"retire": True})


def take_lock(socket_path: Path) -> int | None:
    """Take the lock that a server holds from before its start to its retirement, as a descriptor.

    None where another holds it: that server answers, warms up, or is about to.
    """
    socket_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = socket_path.with_name(socket_path.name + ".lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def log_path(socket_path: Path) -> Path:
    """Where a server started by `ensure` writes what it and its libraries have to say."""
    return socket_path.with_name(socket_path.name + ".log")


def send_request(
    connection: socket.socket, request: Mapping[str, object], *, fds: Sequence[int] = ()
) -> None:
    """Send a length, with the descriptors riding on it, and then the JSON text."""
    text = json.dumps(request).encode()
    socket.send_fds(connection, [_LENGTH.pack(len(text))], fds)
    connection.sendall(text)


def receive_request(connection: socket.socket) -> tuple[dict[str, object], list[int]] | None:
    """Read what `send_request` sent; None where the other side only looked in."""
    head, fds, _, _ = socket.recv_fds(connection, _LENGTH.size, maxfds=64)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    with connection.makefile("rb") as stream:
        return json.loads(stream.read(length)), fds


class _WarmChild:
    """A job of the fork-server: the connection carries its pid, and later its exit."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""
        self._leaving: int | None = None
        self._code: int | None = None
        connection.settimeout(REPLY_SECONDS)
        reply = self._reply()
        if reply is None or "pid" not in reply:
            raise NotWarm(str(reply["refused"]) if reply else "it ended")
        self.pid = int(reply["pid"])

    def wait(self, timeout: float | None = None) -> int | None:
        if self._code is None:
            self._connection.settimeout(timeout)
            with suppress(TimeoutError, BlockingIOError):
                self._code = self._exit()
        if self._code is not None:
            self._connection.close()
        return self._code

    def send_signal(self, number: int) -> None:
        if self._code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def killpg(self, number: int) -> None:
        if self._code is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _exit(self) -> int:
        """The server's word counts; a server that is gone leaves the job's own last word.

        Both hold the connection's other end. Where it closes without a word, a signal ended the
        job after its server, and only SIGKILL says nothing.
        """
        while reply := self._reply():
            if "exit" in reply:
                return int(reply["exit"])
            self._leaving = int(reply["leaving"])
        return -signal.SIGKILL if self._leaving is None else self._leaving

    def _reply(self) -> dict[str, int | str] | None:
        while b"\n" not in self._received:
            try:
                chunk = self._connection.recv(4096)
            except ConnectionResetError:
                return None
            if not chunk:
                return None
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        reply: dict[str, int | str] = json.loads(line)
        return reply


class _ColdChild:
    """A job that is our own child process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def wait(self, timeout: float | None = None) -> int | None:
        if self._process.returncode is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
                self._sweep()
        return self._process.returncode

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def killpg(self, number: int) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _sweep(self) -> None:
        """End what the job left behind. A group that still has members keeps its number."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def _possible(socket_path: Path) -> bool:
    return sys.platform == "linux" and len(os.fsencode(socket_path)) <= SOCKET_PATH_BYTES


def _connect(socket_path: Path) -> socket.socket:
    if not _possible(socket_path):
        raise NotWarm(
            f"{socket_path} cannot be a fork-server's: it needs Linux and a path of at most "
            f"{SOCKET_PATH_BYTES} bytes."
        )
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(REPLY_SECONDS)
    try:
        connection.connect(os.fspath(socket_path))
    except OSError as error:
        connection.close()
        raise NotWarm(f"No fork-server answers at {socket_path}: {error}") from error
    return connection


def _start_server(
    socket_path: Path, lock: int, env: Mapping[str, str], *, idle_seconds: float
) -> None:
    """Start the server in a session of its own; the shell's `&` makes it nobody's zombie."""
    server = [sys.executable, "-m", "opdcore.forkserver", str(socket_path.resolve())]
    options = ["--idle-seconds", str(idle_seconds), "--lock-fd", str(lock)]
    with log_path(socket_path).open("wb") as log:
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", *server, *options],
            cwd=_PACKAGE_ROOT,
            env={**env, **QUIET_IMPORTS},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            start_new_session=True,
            check=True,
        )
