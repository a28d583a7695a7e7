"""Grades mathematics with math-verify, in child processes that can be killed.

math-verify's own time limit is an alarm, which fails outside the main thread and cannot interrupt
one long integer operation such as 9^9^9^9. Here every attempt has a wall limit; a child that passes
it is killed and replaced, and the verifier abstains. This module never imports math-verify: the
children (`math_child`) do. It knows no algebra and no stage.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from opdcore.contract.errors import BadInput
from opdcore.verifiers.grading import NO_REFERENCE, Attempt, Grade
from opdcore.verifiers.pool import Pool, Program, Request

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


class Math:
    """A pool of grading processes; a context manager, since it owns them.

    `grade` may be called from any thread. A reference that cannot be read, an attempt that passes
    `limit_seconds` of wall time and one that kills its process are abstentions; a response that
    cannot be read is incorrect.
    """

    name = "math"

    def __init__(self, *, limit_seconds: float = 5.0, processes: int | None = None) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise BadInput(
                "verifier.missing",
                "The math verifier needs the package math-verify, which is not installed.",
                remedy="Install it with `pip install math-verify`, or choose another verifier.",
                field="verifier",
            )
        self._pool = Pool(_program(limit_seconds), processes=processes)

    def grade(self, items: Sequence[Attempt]) -> list[Grade]:
        """Grade in order. Raises EngineFailure where grading processes cannot start."""
        return self._pool.grade([_request(item) for item in items])

    def close(self) -> None:
        """End the children; the verifier grades no more."""
        self._pool.close()

    def __enter__(self) -> Math:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _program(limit_seconds: float) -> Program:
    paths = [_PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")]
    return Program(
        verifier="math",
        command=(sys.executable, "-m", "opdcore.verifiers.math_child", str(limit_seconds)),
        environment={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        limit_seconds=limit_seconds,
        remedy="Check that `python -c 'import math_verify'` works here.",
    )


def _request(item: Attempt) -> Request | Grade:
    if item.answer is None:
        return Grade(None, NO_REFERENCE)
    return {"response": item.response, "answer": item.answer}
