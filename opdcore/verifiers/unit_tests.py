"""Grades code by the prompt's unit tests, in a sandbox: no network, no processes, no files but its own.

A test is Python, such as `assert add(1, 2) == 3`; it sees the names that the response's code defines,
and `from response import add` works too. All tests must pass. The code is the last fenced block that is
marked as Python, or else the last block, or else the whole response. It and the tests have Python's
standard library and nothing else.

The sandbox (`sandbox.server`) needs Linux with seccomp and Landlock, and no privilege: where it cannot
confine a process as it must, the verifier refuses to open, rather than run code less confined. It knows
no prompt and no recipe.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from opdcore.contract.errors import BadInput, EngineFailure
from opdcore.verifiers.grading import Attempt, Grade
from opdcore.verifiers.pool import Pool, Program, Request
from opdcore.verifiers.sandbox.confinement import Limits

NO_TESTS = "the prompt has no tests"
NO_CODE = "the response has no code"
# Above the limit of an attempt: the sandbox ends an attempt itself, unless it hangs.
MARGIN_SECONDS = 30.0
_PACKAGE = Path(__file__).resolve().parents[1]
_FENCE = re.compile(
    r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)
_PYTHON = frozenset({"python", "python3", "py"})

# Starts the sandbox without the packages around it, whose own imports would lie open to responses.
_START = """
import sys, types
for name, folder in (("opdcore", ""), ("opdcore.verifiers", "/verifiers")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1] + folder]
from opdcore.verifiers.sandbox.server import main
sys.exit(main(sys.argv[2:]))
"""

# What a confined process must fail at, and what it must still be able to do.
_PROBE_LIMITS = Limits(seconds=60.0, memory_bytes=512 << 20)
_PROBE = {
    "code": """
def refused(action):
    try:
        action()
    except PermissionError:
        return True
    return False
""",
    "tests": [
        "import socket; assert refused(lambda: socket.socket(socket.AF_INET))",
        "assert refused(lambda: open('/etc/passwd'))",
        "import os; assert refused(os.fork)",
        "assert refused(lambda: os.execv('/bin/true', ['true']))",
        "assert not refused(lambda: open('own', 'w').close())",
    ],
}


class UnitTests:
    """A pool of sandboxes; a context manager, since it owns them and their folder.

    `grade` may be called from any thread. A response whose code does not run, fails a test, ends early
    or passes a limit is incorrect. The verifier abstains where the prompt has no tests, where they are
    no Python or import what is not there, and where the sandbox itself fails.
    """

    name = "unit_tests"

    def __init__(self, limits: Limits, *, processes: int | None = None) -> None:
        self._scratch = TemporaryDirectory(prefix="stillroom-tests-")
        try:
            _refuse_unconfined(self._scratch.name)
            self._pool = Pool(_program(limits, self._scratch.name), processes=processes)
        except BaseException:
            self._scratch.cleanup()
            raise

    def grade(self, items: Sequence[Attempt]) -> list[Grade]:
        """Grade in order. Raises EngineFailure where sandboxes cannot start."""
        return self._pool.grade([_request(item) for item in items])

    def close(self) -> None:
        """End the sandboxes and remove their folder; the verifier grades no more."""
        self._pool.close()
        self._scratch.cleanup()

    def __enter__(self) -> UnitTests:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def code_of(response: str) -> str:
    """The code that a response states; a block without an end reaches to the response's end."""
    blocks = _FENCE.findall(response)
    python = [text for label, text in blocks if label.lower() in _PYTHON]
    others = [text for _, text in blocks]
    return [response, *others, *python][-1]


def _request(item: Attempt) -> Request | Grade:
    if not item.tests:
        return Grade(None, NO_TESTS)
    code = code_of(item.response)
    if not code.strip():
        return Grade(False, NO_CODE)
    return {"code": code, "tests": item.tests}


def _program(limits: Limits, scratch: str) -> Program:
    # No environment but this: no secrets, and the same order of sets in every attempt.
    environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "TZ": "UTC"}
    if "LD_LIBRARY_PATH" in os.environ:  # Some Pythons find their own library by it.
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    # No site-packages (-S), no folder of the user's (-s), no current folder (-P).
    python = (sys.executable, "-S", "-s", "-P", "-c", _START)
    return Program(
        verifier="unit_tests",
        command=(*python, str(_PACKAGE), json.dumps(asdict(limits)), scratch),
        environment=environment,
        limit_seconds=limits.seconds + MARGIN_SECONDS,
        remedy="See that this Python's standard library can be read, or choose another verifier.",
    )


def _refuse_unconfined(scratch: str) -> None:
    """Tries, in a sandbox of its own, whether code can be confined here."""
    with closing(Pool(_program(_PROBE_LIMITS, scratch), processes=1)) as pool:
        try:
            (found,) = pool.grade([_PROBE])
        except EngineFailure as error:
            found = Grade(None, error.info.message)
    if not found.correct:
        raise BadInput(
            "verifier.no_sandbox",
            f"Code cannot be confined on this machine: {found.reason}.",
            remedy="Run it on 64-bit Linux 5.13 or newer whose kernel has seccomp and Landlock "
            "(in a container: with a runtime that lets them through, such as Docker 23), or choose "
            "another verifier.",
            field="evaluation.verifier",
        )
