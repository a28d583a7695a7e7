"""The socket of a run: every event after the reader's last seq, gapless and once.

A bell only says that reading is worth while; a lost one costs seconds, never an event, because the
consumer reads by itself every few seconds. It holds no event between two reads.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

import structlog
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.db import DatabaseError
from redis.exceptions import RedisError

from webapp.models.runs import ENDED
from webapp.services import live

# How long a reader may be behind when the bell was lost: while the run lives, and after it ended
# (somebody may resume it).
LIVE_SECONDS = 3.0
ENDED_SECONDS = 15.0
LISTEN_SECONDS = 1.0

NOT_LOGGED_IN = 4401
NOT_FOUND = 4404
BAD_REQUEST = 4400
TRY_AGAIN = 1013

log = structlog.get_logger(__name__)


class RunConsumer(AsyncWebsocketConsumer):
    """Sends {"events": [...], "seq": last, "status": the run's} whenever there is something new."""

    @property
    def _group(self) -> str:
        return f"run.{self.public_id}"

    async def connect(self) -> None:
        self.bell = asyncio.Event()
        self.listens = False
        self.follower: asyncio.Task[None] | None = None
        self.public_id: str = self.scope["url_route"]["kwargs"]["public_id"]
        after = _after(self.scope)
        await self.accept()
        if after is None:
            await self.close(BAD_REQUEST)
        elif not self.scope["user"].is_authenticated:
            await self.close(NOT_LOGGED_IN)
        elif await self._read(after) is None:
            await self.close(NOT_FOUND)
        else:
            self.follower = asyncio.create_task(self._follow_or_close(after))

    async def disconnect(self, _code: int) -> None:
        if self.follower is None:
            return
        self.follower.cancel()
        with suppress(asyncio.CancelledError):
            await self.follower
        if self.listens:
            with suppress(RedisError, OSError):
                await self.channel_layer.group_discard(self._group, self.channel_name)

    async def run_changed(self, _bell: dict[str, Any]) -> None:
        """The bell: it carries nothing."""
        self.bell.set()

    async def _follow_or_close(self, after: int) -> None:
        try:
            await self._follow(after)
        except DatabaseError:
            log.warning("database away: the reader has to come back", run=self.public_id)
            await self.close(TRY_AGAIN)

    async def _follow(self, after: int) -> None:
        status = ""
        while True:
            self.bell.clear()
            await self._listen()
            page = await self._read(after)
            if page is None:
                await self.close(NOT_FOUND)
                return
            if not page.empty or page.status != status:
                await self.send(text_data=page.text)
            after, status = page.seq, page.status
            if not page.more:
                await self._wait(ENDED_SECONDS if status in ENDED else LIVE_SECONDS)

    async def _listen(self) -> None:
        """Joins the run's group; where the broker is away, reading by itself has to do."""
        if self.listens:
            return
        with suppress(RedisError, OSError):
            async with asyncio.timeout(LISTEN_SECONDS):
                await self.channel_layer.group_add(self._group, self.channel_name)
            self.listens = True

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.bell.wait(), seconds)

    async def _read(self, after: int) -> live.Page | None:
        # database_sync_to_async closes connections that the server has dropped.
        read = database_sync_to_async(live.read)
        return await read(self.scope["user"], self.public_id, after=after)


def _after(scope: dict[str, Any]) -> int | None:
    """The reader's last seq; None where it is no number."""
    text = parse_qs(scope["query_string"].decode("latin-1")).get("after", ["0"])[0]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else None
