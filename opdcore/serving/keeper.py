"""`python keeper.py PARENT ARGV...`: runs a program and everything it starts, for as long as PARENT lives.

A vLLM server is several processes, of which the kernel would kill one alone when its parent is gone. This
one watches, and ends them all. It knows no server, and imports nothing of ours: it runs in an
environment that has vLLM and perhaps nothing else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

LOOK_SECONDS = 0.5
GRACE_SECONDS = 5.0


def main(parent: int, argv: Sequence[str]) -> int:
    """Runs the program; its exit status, or that of a process that was ended."""
    program = subprocess.Popen(argv, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: _end(program))
    while program.poll() is None:
        if os.getppid() != parent:
            _end(program)
        time.sleep(LOOK_SECONDS)
    # What it has started may still be there.
    _kill(program, signal.SIGKILL)
    return program.returncode


def _end(program: subprocess.Popen[bytes]) -> None:
    _kill(program, signal.SIGTERM)
    try:
        program.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        _kill(program, signal.SIGKILL)


def _kill(program: subprocess.Popen[bytes], how: signal.Signals) -> None:
    try:
        os.killpg(program.pid, how)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
