"""How much a client may send: counted while it arrives, before anything is kept or anybody is known.

Django writes a whole body to the disk before a view, or even a log-in, is asked. It knows no form.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from django.conf import settings

from webapp.api import errors

# ASGI's own shapes, as Django types them.
Event = Mapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

# Where files are sent to; everything else is a form or a document of text.
UPLOADS = ("/prompt-sets/new/", "/api/prompt-sets/upload")
# What a form's other fields and a multipart body's borders may take beside a file.
SPARE_BYTES = 1 << 20
TOO_LARGE = 413


class TooLarge(Exception):
    """More arrived than this address takes."""


class BoundedBodies:
    """Answers 413 as soon as a request's body is announced, or grows, beyond its address's limit."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        limit, arrived = most_bytes(scope["path"]), 0

        async def counted() -> Event:
            nonlocal arrived
            event = await receive()
            if event["type"] == "http.request":
                arrived += len(event.get("body", b""))
            if arrived > limit:
                raise TooLarge
            return event

        if _announced(scope["headers"]) > limit:
            await _refuse(send, limit)
            return
        try:
            await self.application(scope, counted, send)
        except TooLarge:
            await _refuse(send, limit)


def most_bytes(path: str) -> int:
    """The largest body that is taken at this address."""
    file = settings.PROMPT_SET_MAX_BYTES if path in UPLOADS else 0
    return SPARE_BYTES + max(int(file), int(settings.DATA_UPLOAD_MAX_MEMORY_SIZE))


def _announced(headers: list[tuple[bytes, bytes]]) -> int:
    """Content-Length, where there is one that is a number."""
    value = dict(headers).get(b"content-length", b"")
    return int(value) if value.isdigit() and len(value) < 20 else 0


async def _refuse(send: Send, limit: int) -> None:
    refusal = errors.told(TOO_LARGE, f"At most {limit / 1e6:,.0f} MB are taken at this address.")
    headers = [
        (b"content-type", refusal["Content-Type"].encode()),
        (b"content-length", str(len(refusal.content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": TOO_LARGE, "headers": headers})
    await send({"type": "http.response.body", "body": refusal.content, "more_body": False})
