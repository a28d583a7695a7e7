"""The recorder of one attempt: bytes from the job's pipe become rows, in order and once.

One thread empties the pipe, so that a job never waits for the database; another writes batches: a line
that comes after a pause at once, those that follow it within a tenth of a second together. While the
database is away, lines go to a file in the run's folder and are replayed from there. A line that is
not an event becomes a log event that says so.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog
from django.db import DatabaseError, InterfaceError, OperationalError, connections
from pydantic import ValidationError

from opdcore.contract.events import AnyEvent, JobFinished, Logged, Payload, encode, shape
from webapp.services import recording
from webapp.services.recording import Author, Line, StaleAttempt
from workers.redaction import NO_SECRETS, Redaction

BATCH_SECONDS = 0.1
BATCH_LINES = 500
RETRY_SECONDS = 1.0
# A stray process may hold the pipe open after the job; it is left behind.
PIPE_END_SECONDS = 5.0
READ_BYTES = 1 << 20
LONGEST_LINE = 32 << 20
SPOOL = "events.spool"
# The worker's own lines have numbers that no job reaches, so that neither displaces the other's.
WORKER_LINES = 1_000_000_000
# After so many unreadable lines of one attempt, further ones are only counted.
UNREADABLE_SHOWN = 20

log = structlog.get_logger(__name__)

Recorded = Callable[[Sequence[AnyEvent]], None]


class Recorder:
    """Reads `pipe` until its end. `recorded` is called, in its thread, with what has become rows."""

    def __init__(
        self,
        author: Author,
        *,
        pipe: int,
        folder: Path,
        recorded: Recorded,
        redaction: Redaction = NO_SECRETS,
    ) -> None:
        self.author = author
        self._redaction = redaction
        self.fenced = threading.Event()
        self.finished: JobFinished | None = None
        self._pipe = pipe
        self._spool = folder / SPOOL
        self._recorded = recorded
        self._lines: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        self._own_line = WORKER_LINES
        self._own_lock = threading.Lock()
        self._unreadable = 0
        self._ended = False
        self._wrote_at = -BATCH_SECONDS
        self._threads = [
            threading.Thread(target=target, name=f"recorder-{author.run_id}", daemon=True)
            for target in (self._pump, self._write)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def say(self, payload: Payload) -> None:
        """Records a line of the worker's own, after all that was read so far."""
        self._lines.put(self._shaped(payload))

    def flush(self) -> None:
        """Waits for the pipe's end and for all that came through it to be recorded or put aside."""
        self._threads[0].join(timeout=PIPE_END_SECONDS)
        written = threading.Event()
        self._lines.put(written)
        while not written.wait(RETRY_SECONDS) and self._threads[1].is_alive():
            pass

    def close(self, *, patience_seconds: float) -> bool:
        """Waits until everything is recorded, and says whether it is.

        What is not stays in the spool.
        """
        self._lines.put(None)
        self._threads[1].join(timeout=patience_seconds)
        return not self._threads[1].is_alive() and not self._spool.exists()

    def _shaped(self, payload: Payload) -> bytes:
        with self._own_lock:
            self._own_line += 1
            event = shape(payload, attempt=self.author.attempt, line=self._own_line)
        return encode(event)

    def _pump(self) -> None:
        rest = b""
        with os.fdopen(self._pipe, "rb", buffering=0) as pipe:
            while data := pipe.read(READ_BYTES):
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    self._lines.put(self._redaction.clean(line))
                if len(rest) > LONGEST_LINE:
                    self._lines.put(self._redaction.clean(rest)[:200])
                    rest = b""
        if rest:
            self._lines.put(self._redaction.clean(rest))

    def _write(self) -> None:
        try:
            while not self._ended or (self._spool.exists() and not self.fenced.is_set()):
                raws, flushed = self._collect()
                if raws:
                    self._wrote_at = time.monotonic()
                self._keep(raws)
                if flushed is not None:
                    flushed.set()
        finally:
            connections.close_all()

    def _collect(self) -> tuple[list[bytes], threading.Event | None]:
        """All lines that are there, no sooner than a moment after the last write; with them, whoever
        waits for just these.
        """
        raws: list[bytes] = []
        deadline = time.monotonic() + RETRY_SECONDS
        while len(raws) < BATCH_LINES:
            try:
                item = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if not isinstance(item, bytes):
                self._ended = self._ended or item is None
                return raws, item
            if not raws:
                deadline = self._wrote_at + BATCH_SECONDS
            raws.append(item)
        return raws, None

    def _keep(self, raws: list[bytes]) -> None:
        if self.fenced.is_set():
            return
        lines = [line for raw in raws if raw.strip() and (line := self._parsed(raw))]
        try:
            self._replay()
            self._record(lines)
        except StaleAttempt as error:
            log.warning("fenced off", run=self.author.run_id, reason=str(error))
            self.fenced.set()
        except (OperationalError, InterfaceError) as error:
            log.warning("database away: spooling", run=self.author.run_id, error=str(error))
            self._put_aside(lines)
            connections.close_all()

    def _parsed(self, raw: bytes) -> Line | None:
        try:
            line = recording.parse(raw)
        except (ValidationError, ValueError) as error:
            return self._not_an_event(raw, error)
        if line.event.attempt > self.author.attempt:
            return self._not_an_event(raw, f"its attempt is {line.event.attempt}")
        if line.event.kind == "job_finished" and line.event.attempt == self.author.attempt:
            self.finished = line.event.payload
        return line

    def _not_an_event(self, raw: bytes, reason: Exception | str) -> Line | None:
        self._unreadable += 1
        log.warning("unreadable line", run=self.author.run_id, reason=str(reason)[:500])
        if self._unreadable > UNREADABLE_SHOWN:
            return None
        text = raw[:200].decode(errors="replace")
        return self._warning(f"[event.unreadable] The job wrote a line that is no event: {text}")

    def _warning(self, message: str) -> Line:
        return recording.parse(self._shaped(Logged(level="warning", message=message)))

    def _record(self, lines: Sequence[Line]) -> None:
        if not lines:
            return
        try:
            recording.record(self.author, lines)
        except (OperationalError, InterfaceError):
            raise
        except DatabaseError as error:
            self._record_singly(lines, error)
            return
        self._recorded([line.event for line in lines])

    def _record_singly(self, lines: Sequence[Line], error: DatabaseError) -> None:
        """One line that the database refuses must not take its neighbours with it."""
        if len(lines) > 1:
            for line in lines:
                self._record([line])
            return
        event = lines[0].event
        log.error("refused line", run=self.author.run_id, line=event.line, error=str(error))
        message = f"[event.refused] The database refused line {event.line} ({event.kind})."
        recording.record(self.author, [self._warning(message)])

    def _put_aside(self, lines: Sequence[Line]) -> None:
        with self._spool.open("ab") as spool:
            spool.writelines(encode(line.event) + b"\n" for line in lines)

    def _replay(self) -> None:
        """Records what was put aside; a line that had been written already is dropped there."""
        if not self._spool.exists():
            return
        batch: list[Line] = []
        with self._spool.open("rb") as spool:
            for raw in spool:
                # A crash while it was written leaves half a line at the end.
                with suppress(ValidationError, ValueError):
                    batch.append(recording.parse(raw.rstrip(b"\n")))
                if len(batch) == BATCH_LINES:
                    self._record(batch)
                    batch = []
        self._record(batch)
        self._spool.unlink()
