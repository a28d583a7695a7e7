"""`python -m opdcore.leash PARENT CWD PROGRAM ARGV...`: a cold start that ends with its parent.

It becomes `python -m PROGRAM ARGV...` in CWD, and asks the kernel (Linux) to kill it when PARENT,
or the thread of PARENT that started it, is gone. It knows no job, no fork-server and no torch.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def main(parent: int, cwd: str, program: str, argv: Sequence[str]) -> None:
    """Tie this process to its parent and run the program in it; its SystemExit passes through."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("The process that started this job is gone.")
    # A shell that starts things in the background has them ignore SIGINT; a job never does.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    run_program(program, argv)


def run_program(program: str, argv: Sequence[str]) -> None:
    """Do what `python -m PROGRAM ARGV...` does, in this process."""
    sys.argv[:] = [program, *argv]
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
