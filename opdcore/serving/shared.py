"""A server that several jobs of a host share: the first starts it, and it ends with the last.

Whoever uses it holds a lock on a file of its own in the server's folder, which the kernel lets go when the
process ends, however it ends. The server's keeper looks at those files, so that no count can be wrong and no
server outlives its users. What is decided about a server is decided under the folder's lock.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO
from uuid import uuid4

from opdcore.serving import widening
from opdcore.serving.keeper import in_use, is_held
from opdcore.serving.server import STOP_SECONDS, Server

RUNNING, STATE, LOG, MODEL = "running", "server.json", "server.log", "model"


@dataclass
class SharedServer(Server):
    """A user's share in the server of a folder; as a context manager it joins and leaves.

    `joined` says whether it ran already.
    """

    folder: Path = field(kw_only=True)
    joined: bool = field(default=False, init=False)
    _own: IO[str] | None = field(default=None, init=False)

    def start(self) -> None:
        """Joins the server, which is started unless it runs; it may not be ready yet."""
        (self.folder / "users").mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._own = (self.folder / "users" / uuid4().hex).open("w", encoding="utf-8")
            fcntl.flock(self._own, fcntl.LOCK_EX)
            self.joined = self.is_alive
            if self.joined:
                self.port = json.loads((self.folder / STATE).read_bytes())["port"]
            else:
                self._forget_earlier()
                self._begin()

    @property
    def is_alive(self) -> bool:
        """Whether its keeper runs, whoever started it."""
        return is_held(self.folder / RUNNING)

    def revive(self) -> bool:
        """Starts it anew where it has ended and no other user did; whether it had."""
        with self._locked():
            if self.is_alive:
                return False
            self._begin()
        return True

    def stop(self) -> None:
        """Leaves; where nobody else uses it, waits until it has ended and its devices are free."""
        if self._own is None:
            return
        Path(self._own.name).unlink()
        self._own.close()
        self._own = None
        until = time.monotonic() + STOP_SECONDS
        while self.is_alive and not in_use(self.folder) and time.monotonic() < until:
            time.sleep(0.1)
        if self.process is not None:
            # Of its starter: what has ended is not left behind.
            self.process.poll()

    def _begin(self) -> None:
        """Starts the process; its keeper holds the lock by which others see that it runs."""
        if not self.serving.on_gpu:
            wide = widening.widen_folder(self.serving.folder, self.folder / MODEL)
            self.serving = replace(self.serving, folder=wide)
        (self.folder / STATE).write_text(json.dumps({"port": self.port}), encoding="utf-8")
        with (self.folder / RUNNING).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            running = file.fileno()
            self.process = self._launch(f"--users={running}:{self.folder}", pass_fds=(running,))

    def _forget_earlier(self) -> None:
        """Removes the log of an earlier server, and the files of users that died."""
        self.log.unlink(missing_ok=True)
        for file in (self.folder / "users").iterdir():
            if not is_held(file):
                file.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
