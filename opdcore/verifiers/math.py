"""Grades mathematics with math-verify, in child processes that can be killed.

math-verify's own time limit is an alarm, which fails outside the main thread and cannot interrupt
one long integer operation such as 9^9^9^9. Here every attempt has a wall limit; a child that passes
it is killed and replaced, and the verifier abstains. This module never imports math-verify: the
children (`math_child`) do. It knows no algebra and no stage.
"""

from __future__ import annotations

import importlib.util
import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import TracebackType

from opdcore.contract.errors import BadInput, EngineFailure
from opdcore.verifiers.grading import NO_REFERENCE, Attempt, Grade

TIMED_OUT = "timed out"
DIED = "the grading process died"
INTERRUPTED = "the grading was interrupted"
START_SECONDS = 120.0  # A child's import takes about 1 s; a machine under load, many times that.
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
        self._limit_seconds = limit_seconds
        self._lock = Lock()
        count = processes or min(4, os.cpu_count() or 1)
        self._children = [_Child(limit_seconds) for _ in range(count)]

    def grade(self, items: Sequence[Attempt]) -> list[Grade]:
        """Grade in order. Raises EngineFailure where grading processes cannot start."""
        with self._lock:
            return _Round(items, self._children, limit_seconds=self._limit_seconds).play()

    def close(self) -> None:
        """End the children; the verifier grades no more."""
        with self._lock:
            while self._children:
                self._children.pop().end()

    def __enter__(self) -> Math:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Child:
    """One grading process and the attempt it works on."""

    def __init__(self, limit_seconds: float) -> None:
        paths = [_PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "opdcore.verifiers.math_child", str(limit_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        self._received = b""
        self.ready = False
        self.index: int | None = None
        self.deadline = time.monotonic() + START_SECONDS

    def exited(self) -> bool:
        return self._process.poll() is not None

    def fileno(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, index: int, item: Attempt, *, limit_seconds: float) -> None:
        assert self._process.stdin is not None
        request = json.dumps({"response": item.response, "answer": item.answer})
        self.index, self.deadline = index, time.monotonic() + limit_seconds
        with suppress(BrokenPipeError):  # It died; `receive` will find its other pipe closed too.
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, bool | str | None] | None:
        """The reply if a whole one has come, None if not. Raises EOFError from a dead child."""
        chunk = os.read(self.fileno(), 65536)
        if not chunk:
            raise EOFError
        self._received += chunk
        if not self._received.endswith(b"\n"):
            return None
        line, self._received = self._received, b""
        reply: dict[str, bool | str | None] = json.loads(line)
        return reply

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with suppress(BrokenPipeError):  # A request that the dead child never read.
            self._process.stdin.close()


class _Round:
    """One call of `grade`: hands attempts to idle children, and replaces children that fail."""

    def __init__(
        self, items: Sequence[Attempt], children: list[_Child], *, limit_seconds: float
    ) -> None:
        if not children:
            raise ValueError("The math verifier is closed.")
        self._items, self._children, self._limit_seconds = items, children, limit_seconds
        self._waiting = deque(i for i, item in enumerate(items) if item.answer is not None)
        self._grades = {i: Grade(None, NO_REFERENCE) for i in range(len(items))}
        self._open = len(self._waiting)

    def play(self) -> list[Grade]:
        with selectors.DefaultSelector() as selector:
            for child in self._children:
                selector.register(child, selectors.EVENT_READ)
            try:
                while self._open:
                    self._hand_out(selector)
                    self._collect(selector)
                    self._cut(selector)
            finally:  # Interrupted: what is under way belongs to no later round.
                for child in [child for child in self._children if child.index is not None]:
                    self._replace(child, selector, reason=INTERRUPTED)
        return [self._grades[index] for index in range(len(self._items))]

    def _hand_out(self, selector: selectors.BaseSelector) -> None:
        for child in [child for child in self._children if child.ready and child.index is None]:
            if child.exited():
                self._replace(child, selector, reason=DIED)
            elif self._waiting:
                index = self._waiting.popleft()
                child.send(index, self._items[index], limit_seconds=self._limit_seconds)

    def _collect(self, selector: selectors.BaseSelector) -> None:
        busy = [c.deadline for c in self._children if c.index is not None or not c.ready]
        patience = max(0.0, min(busy) - time.monotonic())
        for key, _ in selector.select(patience):
            child = key.fileobj
            assert isinstance(child, _Child)
            try:
                reply = child.receive()
            except EOFError:
                self._replace(child, selector, reason=DIED)
                continue
            if reply is not None:
                self._accept(child, reply)

    def _accept(self, child: _Child, reply: dict[str, bool | str | None]) -> None:
        if child.index is None:
            child.ready = True
            return
        correct, reason = reply["correct"], reply["reason"]
        assert not isinstance(correct, str)
        assert not isinstance(reason, bool)
        self._settle(child, Grade(correct, reason))

    def _settle(self, child: _Child, grade: Grade) -> None:
        if child.index is not None:
            self._grades[child.index] = grade
            self._open -= 1
            child.index = None

    def _cut(self, selector: selectors.BaseSelector) -> None:
        now = time.monotonic()
        for child in list(self._children):
            if now >= child.deadline and (child.index is not None or not child.ready):
                self._replace(child, selector, reason=TIMED_OUT)

    def _replace(self, child: _Child, selector: selectors.BaseSelector, *, reason: str) -> None:
        selector.unregister(child)
        child.end()
        if not child.ready:
            self._children.remove(child)
            raise EngineFailure(
                "verifier.start",
                f"A grading process of the math verifier could not start ({reason}).",
                remedy="Check that `python -c 'import math_verify'` works here.",
                field="verifier",
            )
        self._settle(child, Grade(None, reason))
        fresh = _Child(self._limit_seconds)
        self._children[self._children.index(child)] = fresh
        selector.register(fresh, selectors.EVENT_READ)
