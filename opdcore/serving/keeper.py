"""`python keeper.py --parent=PID ARGV...`: runs a program and all that it starts for as long as PID lives.

`--users=FD:FOLDER` in its place: for as long as a process holds a lock on a file of FOLDER/users; FD is closed
when the program has ended. A vLLM server is several processes, of which the kernel would kill one alone when
its parent is gone. This one watches, and ends them all. It knows no server, and imports nothing of ours: it
runs in an environment that has vLLM and perhaps nothing else.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

LOOK_SECONDS = 0.5
GRACE_SECONDS = 5.0


def main(kept: str, argv: Sequence[str]) -> int:
    """Runs the program; its exit status, or that of a process that was ended."""
    program = subprocess.Popen(argv, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: _end(program))
    how, _, what = kept.partition("=")
    end_if_unwanted = _by_users(what) if how == "--users" else _by_parent(int(what))
    while program.poll() is None:
        end_if_unwanted(program)
        time.sleep(LOOK_SECONDS)
    # What it has started may still be there.
    _kill(program, signal.SIGKILL)
    return program.returncode


Look = Callable[["subprocess.Popen[bytes]"], None]


def _by_parent(parent: int) -> Look:
    def look(program: subprocess.Popen[bytes]) -> None:
        if os.getppid() != parent:
            _end(program)

    return look


def _by_users(what: str) -> Look:
    running, folder = int(what.partition(":")[0]), Path(what.partition(":")[2])

    def look(program: subprocess.Popen[bytes]) -> None:
        if in_use(folder):
            return
        # Whoever comes now waits for this lock, and then finds no server.
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not in_use(folder):
                _end(program)
                os.close(running)

    return look


def in_use(folder: Path) -> bool:
    """Whether a living process holds the lock of one of the users' files."""
    return any(is_held(file) for file in (folder / "users").iterdir())


def is_held(file: Path) -> bool:
    """Whether some process holds the file's lock; whoever asks at the same time is not in the way."""
    try:
        with file.open() as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _end(program: subprocess.Popen[bytes]) -> None:
    _kill(program, signal.SIGTERM)
    try:
        program.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        _kill(program, signal.SIGKILL)
        program.wait()


def _kill(program: subprocess.Popen[bytes], how: signal.Signals) -> None:
    try:
        os.killpg(program.pid, how)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
