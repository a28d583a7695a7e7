"""The doorbell: rings a run's channel group, at most ten times a second, without data.

Bells are lost without harm: whoever listens reads the database by itself as well. So nothing here
raises, waits for an answer, or is retried. One event loop in one thread serves the whole process,
since a channel layer keeps its connections by loop.
"""

from __future__ import annotations

import asyncio
import threading
import time

import structlog
from channels.layers import get_channel_layer

PAUSE_SECONDS = 0.1
SEND_SECONDS = 2.0
COMPLAIN_SECONDS = 60.0

log = structlog.get_logger(__name__)


class Bell:
    """Any thread may ring; rings of a group within the pause become one at its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rung_at: dict[str, float] = {}
        self._coming: dict[str, asyncio.Task[None]] = {}
        self._complained_at = -COMPLAIN_SECONDS

    def ring(self, group: str) -> None:
        """Rings soon; returns at once."""
        self._running_loop().call_soon_threadsafe(self._schedule, group)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="bell", daemon=True).start()
            return self._loop

    def _schedule(self, group: str) -> None:
        if group not in self._coming:
            self._coming[group] = asyncio.ensure_future(self._ring_after_pause(group))

    async def _ring_after_pause(self, group: str) -> None:
        since = time.monotonic() - self._rung_at.get(group, 0.0)
        if since < PAUSE_SECONDS:
            await asyncio.sleep(PAUSE_SECONDS - since)
        # What is recorded from here on deserves a ring of its own.
        del self._coming[group]
        self._rung_at[group] = time.monotonic()
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await get_channel_layer().group_send(group, {"type": "run.changed"})
        except Exception as error:  # a broker fails in the ways of every client beneath it
            self._complain(group, error)

    def _complain(self, group: str, error: Exception) -> None:
        if time.monotonic() - self._complained_at > COMPLAIN_SECONDS:
            self._complained_at = time.monotonic()
            log.warning("no bell: pages catch up by themselves", group=group, error=repr(error))


BELL = Bell()
