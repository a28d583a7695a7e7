"""Attempts at unit tests, and the processes that they run in."""

from __future__ import annotations

import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from opdcore.verifiers import Attempt
from opdcore.verifiers.sandbox.confinement import Limits
from opdcore.verifiers.unit_tests import UnitTests

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(seconds=20.0, memory_bytes=512 << 20)
ADD = "def add(a, b):\n    return a + b\n"
RIGHT = ("assert add(1, 2) == 3", "assert add(-1, 1) == 0")
WRONG = ("assert add(1, 2) == 4",)
REFUSED = """
def refused(action):
    try:
        action()
    except PermissionError:
        return True
    return False
"""


def attempt(code: str, *tests: str) -> Attempt:
    return Attempt(textwrap.dedent(code), None, tuple(textwrap.dedent(test) for test in tests))


def briefly(code: str, *tests: str, seconds: float = 1.0):
    """The grade of code under a short limit, and the seconds that it took."""
    with UnitTests(Limits(seconds, 512 << 20), processes=1) as verifier:
        verifier.grade([attempt(ADD, *RIGHT)])
        started = time.monotonic()
        (grade,) = verifier.grade([attempt(code, *tests)])
        return grade, time.monotonic() - started


def sandboxes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "opdcore.verifiers.sandbox" in " ".join(child.cmdline())]


@contextmanager
def running(code: str, *, limits: Limits = LIMITS):
    """The grading of code under way in a thread, and the confined process that it runs in."""
    before = sandboxes()
    with UnitTests(limits, processes=1) as verifier, ThreadPoolExecutor(1) as thread:
        verifier.grade([attempt(ADD, *RIGHT)])
        (server,) = set(sandboxes()) - set(before)
        grading = thread.submit(verifier.grade, [attempt(code, *RIGHT)])
        while not (found := server.children()):
            time.sleep(0.01)
        while _seccomp(found[0].pid) != "2" and not grading.done():
            time.sleep(0.01)
        try:
            yield grading, found[0]
        finally:
            with suppress(psutil.NoSuchProcess):
                found[0].kill()


def _seccomp(pid: int) -> str | None:
    with suppress(OSError):
        told = Path(f"/proc/{pid}/status").read_text()
        return told.partition("Seccomp:\t")[2][:1]
    return None
