"""`python -m opdcore.forkserver SOCKET`: forks jobs from a process that has imported everything.

It imports torch and the job's own modules, runs no operation, touches no device, and then listens on
a unix socket. transformers, whose import takes twice as long as all the rest, is left to the jobs whose
architecture is not our own decoder's. One connection is one job: `forkserver_client` sends what to run
and the descriptors to run it on, and is told the pid and later the exit. The server refuses what it
could not run as a fresh process would, retires when idle, and knows no job document and no event.

Forking is sound only from a single thread, so it counts its threads before it serves. Linux only.
"""

from __future__ import annotations

import argparse
import atexit
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import random
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from opdcore.forkserver_client import QUIET_IMPORTS, receive_request, take_lock
from opdcore.leash import run_program

REQUEST_SECONDS = 2.0
_PACKAGE = Path(__file__).resolve().parent

# Read by libraries or by Python at import or start: a job that differs here must start cold.
_READ_AT_IMPORT = (
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH", "PYTORCH_", "PYTHON", "LD_", "HOME"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "XDG_CACHE_HOME"),
)
# Of those, read when used (the token), set here for each job (the threads), or the server's own.
_READ_LATER = {"HF_TOKEN", "OMP_NUM_THREADS", *QUIET_IMPORTS}

_PROGRAM = "opdcore.execution"
_STAGES = "opdcore.stages"


class Refused(Exception):
    """This server cannot run a job as a fresh process would; the text says why."""


@dataclass(frozen=True)
class _Imported:
    """What the imports stand for: a job for which any of it differs must start cold."""

    environment: Mapping[str, str]
    code: Mapping[Path, int]


@dataclass(frozen=True)
class _Job:
    """A live child: its pidfd tells its end, its connection its supervisor's."""

    pid: int
    pidfd: int
    connection: socket.socket


@dataclass(frozen=True)
class _Request:
    """What `forkserver_client.Launch` asks for, as it came over the socket."""

    program: str
    argv: list[str]
    env: dict[str, str] = field(repr=False)
    cwd: str
    pass_fds: list[int]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until idle; 0 too where another server holds the socket already."""
    parser = argparse.ArgumentParser(prog="python -m opdcore.forkserver", description=__doc__)
    parser.add_argument("socket", type=Path, help="path of the unix socket, at most 100 bytes")
    parser.add_argument("--idle-seconds", type=float, default=600.0, help="retire after (600)")
    parser.add_argument("--lock-fd", type=int, help="its lock, taken by whoever started it")
    arguments = parser.parse_args(argv)
    if not QUIET_IMPORTS.items() <= os.environ.items():  # Started by hand: too late to set them.
        command = [sys.executable, "-m", "opdcore.forkserver", *(argv or sys.argv[1:])]
        os.execve(sys.executable, command, {**os.environ, **QUIET_IMPORTS})  # noqa: S606 - itself
    lock = arguments.lock_fd or take_lock(arguments.socket)
    if lock is None:
        return 0
    imported = _preload()
    _Server(arguments.socket, lock, imported, idle_seconds=arguments.idle_seconds).serve()
    return 0


class _Server:
    """Accepts launches, forks them, reports their ends."""

    def __init__(self, path: Path, lock: int, imported: _Imported, *, idle_seconds: float) -> None:
        self._path, self._lock, self._imported = path, lock, imported
        self._idle_seconds = idle_seconds
        self._jobs: list[_Job] = []
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = _listen(path)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._busy_at = time.monotonic()

    def serve(self) -> None:
        """Serve until retired: nobody can ask any more, and no child is alive."""
        while self._listener or self._jobs:
            for key, _ in self._selector.select(self._patience()):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._jobs:
                    self._end(key.data, hung_up=key.fileobj is key.data.connection)
            if self._patience() == 0:
                self._close()

    def _patience(self) -> float | None:
        """Seconds left before this idle server retires; None while it is not idle."""
        if self._jobs or not self._listener:
            return None
        return max(0.0, self._busy_at + self._idle_seconds - time.monotonic())

    def _accept(self) -> None:
        assert self._listener is not None
        connection, _ = self._listener.accept()
        connection.settimeout(REQUEST_SECONDS)
        try:
            received = receive_request(connection)
        except (OSError, ValueError) as error:
            _complain(f"A request could not be read: {error}")
            received = None
        if received is None:  # A client that only looks whether somebody answers.
            connection.close()
            return
        self._serve_request(*received, connection)

    def _serve_request(
        self, request: dict[str, object], fds: list[int], connection: socket.socket
    ) -> None:
        try:
            self._check_open(request)
            self._launch(_Request(**request), fds, connection)  # type: ignore[arg-type]
        except Refused as reason:
            _tell(connection, {"refused": str(reason)})
            connection.close()
        finally:
            for descriptor in fds:
                os.close(descriptor)

    def _launch(self, request: _Request, fds: list[int], connection: socket.socket) -> None:
        self._check(request, fds)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _become(request, fds, connection, server_fds=self._descriptors())
        with suppress(PermissionError, ProcessLookupError):  # The child does it too: no race.
            os.setpgid(pid, pid)
        job = _Job(pid, os.pidfd_open(pid), connection)
        self._jobs.append(job)
        self._selector.register(job.pidfd, selectors.EVENT_READ, job)
        self._selector.register(connection, selectors.EVENT_READ, job)
        _tell(connection, {"pid": pid})

    def _check_open(self, request: dict[str, object]) -> None:
        """Raise Refused, and retire, if asked to or if the package changed under this server."""
        if "retire" in request:
            self._close()
            raise Refused("it was asked to retire")
        if _code() != self._imported.code:
            self._close()
            raise Refused("opdcore's files changed after it imported them")

    def _check(self, request: _Request, fds: list[int]) -> None:
        """Raise Refused where a fork would not run as a fresh process does."""
        here, there = self._imported.environment, _read_at_import(request.env)
        differing = [name for name in {*here, *there} if here.get(name) != there.get(name)]
        if differing:
            raise Refused(f"it imported with another value of {', '.join(sorted(differing))}")
        own = {*self._descriptors(), *fds}
        taken = [number for number in request.pass_fds if number not in own and _is_open(number)]
        if taken or min(request.pass_fds, default=3) < 3:
            raise Refused(f"descriptors {request.pass_fds} cannot all keep their numbers here")

    def _end(self, job: _Job, *, hung_up: bool) -> None:
        """Kill the job's group if its supervisor is gone; reap and report the job if it ended.

        The group is swept while the dead leader still holds its number, so no stranger is hit.
        """
        if hung_up:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(job.pid, signal.SIGKILL)
            self._selector.unregister(job.connection)
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(job.pid, signal.SIGKILL)
        _, status = os.waitpid(job.pid, 0)
        self._selector.unregister(job.pidfd)
        with suppress(KeyError):
            self._selector.unregister(job.connection)
        _tell(job.connection, {"exit": os.waitstatus_to_exitcode(status)})
        os.close(job.pidfd)
        job.connection.close()
        self._jobs.remove(job)
        self._busy_at = time.monotonic()

    def _close(self) -> None:
        """Take no more launches and let a successor in; serving goes on until the last job ends."""
        if self._listener is None:
            return
        self._selector.unregister(self._listener)
        self._listener.close()
        self._listener = None
        self._path.unlink(missing_ok=True)
        os.close(self._lock)

    def _descriptors(self) -> list[int]:
        """Everything this server holds open for itself, which a job must not inherit."""
        assert self._listener is not None
        held = [d for job in self._jobs for d in (job.pidfd, job.connection.fileno())]
        epoll = self._selector.fileno()
        return [self._lock, self._listener.fileno(), epoll, *held]


def _preload() -> _Imported:
    """Import what jobs need. Raises RuntimeError if that started threads or touched a device."""
    imported = _Imported(_read_at_import(os.environ), _code())
    os.environ.pop("OMP_NUM_THREADS", None)  # Each job sets its own on an untouched default.
    torch = importlib.import_module("torch")
    importlib.import_module(_PROGRAM)
    for module in pkgutil.iter_modules(importlib.import_module(_STAGES).__path__):
        importlib.import_module(f"{_STAGES}.{module.name}")
    threads = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    if len(threads) > 1 or torch.cuda.is_initialized():
        raise RuntimeError(
            f"The imports left the threads {threads}, and CUDA initialised: "
            f"{torch.cuda.is_initialized()}. Forking would not be sound, so jobs start cold."
        )
    gc.collect()
    gc.freeze()  # A collection in a child would copy every page it touches.
    return imported


def _become(
    request: _Request, fds: list[int], connection: socket.socket, *, server_fds: Sequence[int]
) -> NoReturn:
    """Turn the forked child into `python -m PROGRAM ARGV...`, run it, and end the process."""
    code = 1
    try:
        os.setpgid(0, 0)
        supervisor = _place(request, fds, connection, server_fds=server_fds)
        code = _run(request)
        _tell(supervisor, {"leaving": code})
    finally:
        os._exit(code)


def _run(request: _Request) -> int:
    """Run the program and leave as the interpreter would: threads, exit functions, flush."""
    code = 0
    try:
        _refresh(request.env)
        os.chdir(request.cwd)
        run_program(request.program, request.argv)
    except SystemExit as leaving:
        code = _exit_code(leaving)
    except BaseException:  # noqa: BLE001 - the outermost frame of a process: the interpreter's part
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    return code


def _exit_code(leaving: SystemExit) -> int:
    if leaving.code is None or isinstance(leaving.code, int):
        return (leaving.code or 0) & 0xFF
    _complain(str(leaving.code))
    return 1


def _place(
    request: _Request, fds: list[int], connection: socket.socket, *, server_fds: Sequence[int]
) -> socket.socket:
    """Give each received descriptor its number, and leave none of the server's open.

    They step aside first, above every wanted number, since any of them may lie on another's.
    """
    above = max([64, *request.pass_fds]) + 1
    aside = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, above) for number in fds]
    tie = connection.detach()
    supervisor = socket.socket(fileno=fcntl.fcntl(tie, fcntl.F_DUPFD_CLOEXEC, above))
    for number in (tie, *fds, *server_fds):
        with suppress(OSError):
            os.close(number)
    for number, target in zip(aside, [1, 2, *request.pass_fds], strict=True):
        os.dup2(number, target, inheritable=target < 3)
        os.close(number)
    return supervisor


def _refresh(env: Mapping[str, str]) -> None:
    """Undo what a fork inherits and a fresh process would not have."""
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.environ.clear()
    os.environ.update(env)
    random.seed()
    sys.modules["numpy"].random.seed()
    threads = env.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if threads.isdigit() and int(threads) > 0:
        sys.modules["torch"].set_num_threads(int(threads))


def _tell(connection: socket.socket, reply: Mapping[str, int | str]) -> None:
    with suppress(OSError):  # Whom it concerns is gone; its job is being killed for that.
        connection.sendall(json.dumps(reply).encode() + b"\n")


def _complain(text: str) -> None:
    """Write to stderr itself: a logger set up here would be every job's."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _listen(path: Path) -> socket.socket:
    """Listen where, by the lock, nobody else does: a socket found there is a dead server's."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    listener.bind(os.fspath(path))
    os.umask(before)
    listener.listen(16)
    return listener


def _read_at_import(env: Mapping[str, str]) -> dict[str, str]:
    names = (name for name in env if name.startswith(_READ_AT_IMPORT) and name not in _READ_LATER)
    return {name: env[name] for name in names}


def _code() -> dict[Path, int]:
    """The package's files and when they changed: a fork runs what was imported, not these."""
    changed: dict[Path, int] = {}
    for file in _PACKAGE.rglob("*.py"):
        with suppress(FileNotFoundError):  # An editor is just replacing it.
            changed[file] = file.stat().st_mtime_ns
    return changed


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
