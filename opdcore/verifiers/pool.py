"""A pool of grading processes with hard limits: one request a line, one reply a line.

Work that hangs cannot be interrupted in this process, so it is done in children: one that passes its
limit is killed and replaced, and the verifier abstains. It knows no verifier: the children's program
does the grading.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

from opdcore.contract.errors import EngineFailure
from opdcore.verifiers.grading import Grade

TIMED_OUT = "timed out"
DIED = "the grading process died"
INTERRUPTED = "the grading was interrupted"
START_SECONDS = 120.0  # A child's import takes about 1 s; a machine under load, many times that.

Request = Mapping[str, object]


@dataclass(frozen=True)
class Program:
    """What the children run, for how long at most on one request, and what to check if they do not."""

    verifier: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    limit_seconds: float
    remedy: str


class Pool:
    """Children that grade; whoever opens it closes it."""

    def __init__(self, program: Program, *, processes: int | None = None) -> None:
        self._program = program
        self._lock = Lock()
        count = processes or min(4, os.cpu_count() or 1)
        self._children = [_Child(program) for _ in range(count)]

    def grade(self, items: Sequence[Request | Grade]) -> list[Grade]:
        """Grade in order, from any thread; what is graded already is passed through.

        Raises EngineFailure where grading processes cannot start.
        """
        with self._lock:
            return _Round(items, self._children, self._program).play()

    def close(self) -> None:
        """End the children; the pool grades no more."""
        with self._lock:
            while self._children:
                self._children.pop().end()


class _Child:
    """One grading process and the request it works on."""

    def __init__(self, program: Program) -> None:
        self._process = subprocess.Popen(
            program.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(program.environment),
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

    def send(self, index: int, request: Request, *, limit_seconds: float) -> None:
        assert self._process.stdin is not None
        self.index, self.deadline = index, time.monotonic() + limit_seconds
        with suppress(BrokenPipeError):  # It died; `receive` will find its other pipe closed too.
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
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
    """One call of `grade`: hands requests to idle children, and replaces children that fail."""

    def __init__(
        self, items: Sequence[Request | Grade], children: list[_Child], program: Program
    ) -> None:
        if not children:
            raise ValueError(f"The {program.verifier} verifier is closed.")
        self._children, self._program = children, program
        self._grades = {i: item for i, item in enumerate(items) if isinstance(item, Grade)}
        self._waiting = deque(
            (i, item) for i, item in enumerate(items) if not isinstance(item, Grade)
        )
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
        return [self._grades[index] for index in range(len(self._grades))]

    def _hand_out(self, selector: selectors.BaseSelector) -> None:
        for child in [child for child in self._children if child.ready and child.index is None]:
            if child.exited():
                self._replace(child, selector, reason=DIED)
            elif self._waiting:
                index, request = self._waiting.popleft()
                child.send(index, request, limit_seconds=self._program.limit_seconds)

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
                f"A grading process of the {self._program.verifier} verifier could not start "
                f"({reason}).",
                remedy=self._program.remedy,
                field="verifier",
            )
        self._settle(child, Grade(None, reason))
        fresh = _Child(self._program)
        self._children[self._children.index(child)] = fresh
        selector.register(fresh, selectors.EVENT_READ)
