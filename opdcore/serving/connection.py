"""One server, asked over HTTP: few requests at a time, tried again while it is away, refused at once.

A server that is down, busy or restarting is waited for, and whoever listens is told so; what it refuses
is an error in its own words. The key goes to the named address alone: no proxy, no redirect. It knows
JSON and status codes, nothing of models.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event, Lock, local
from typing import Any
from urllib.parse import urlsplit

from opdcore.contract.errors import BadInput, EngineFailure
from opdcore.contract.serving import Endpoint

FIRST_WAIT_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 10.0
CONNECT_SECONDS = 10.0
# A wait is told to people from here on; what is shorter happens in every busy hour.
TOLD_FROM_SECONDS = 2.0
_WORTH_ANOTHER_TRY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})

Reply = Any


@dataclass(frozen=True)
class Away:
    """A server that does not answer: since how long, and what was seen."""

    address: str
    seconds: float
    why: str


Listener = Callable[[Away | None], None]


def _nobody(_: Away | None) -> None:
    """Listens to nothing."""


class Connection:
    """Asks one endpoint from several threads; a context manager, since it owns them.

    `listener` is told when the server is found away, from the asking thread, and None when it is back.
    `stop` ends the waiting. Raises BadInput where the key's variable holds none.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        listener: Listener = _nobody,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.endpoint = endpoint
        self.listener, self.stop = listener, stop
        self._headers = {"Content-Type": "application/json"} | _authorization(endpoint)
        self._threads = ThreadPoolExecutor(endpoint.requests_at_once, thread_name_prefix="served")
        self._own, self._lock, self._closing = local(), Lock(), Event()
        self._opened: list[http.client.HTTPConnection] = []
        self._away = False

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for connection in self._opened:
            connection.close()

    def get(self, path: str) -> Reply:
        """The reply to one question without a body."""
        return self._answered("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any], *, once: bool = False) -> Reply:
        """The reply to one request; with `once` a fault of the server's own is its refusal."""
        return self._answered("POST", path, json.dumps(body).encode(), once=once)

    def post_all(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[Reply]:
        """The replies in order; the first error ends what is still to be asked."""
        asked: list[Future[Reply]] = [self._threads.submit(self.post, path, one) for one in bodies]
        wait(asked, return_when=FIRST_EXCEPTION)
        for one in asked:
            one.cancel()
        failed = next(
            (e for one in asked if one.done() and not one.cancelled() and (e := one.exception())),
            None,
        )
        if failed is not None:
            raise failed
        return [one.result() for one in asked]

    def _answered(self, method: str, path: str, body: bytes | None, *, once: bool = False) -> Reply:
        """Tries until the server answers or patience ends."""
        since, pause = time.monotonic(), FIRST_WAIT_SECONDS
        while True:
            reply, why = self._once(method, path, body, final=once)
            if why is None:
                self._is_back()
                return reply
            passed = time.monotonic() - since
            if passed >= self.endpoint.patience_seconds or self._closing.is_set():
                raise self._gave_up(passed, why)
            self._tell(passed, why)
            # Jitter, so that the threads of a run do not come back all at once.
            if self._pause(pause * random.uniform(0.5, 1.5)):
                raise self._gave_up(passed, why)
            pause = min(2 * pause, LONGEST_WAIT_SECONDS)

    def _pause(self, seconds: float) -> bool:
        """Waits; true where the run is to stop meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._closing.wait(min(left, 0.2)) or self.stop():
                return True
        return False

    def _once(
        self, method: str, path: str, body: bytes | None, *, final: bool
    ) -> tuple[Reply, str | None]:
        """One try: the reply, or why another one may help.

        A server closes connections that were quiet for some seconds, which says nothing about it: then
        a new one is tried at once.
        """
        kept = getattr(self._own, "connection", None) is not None
        try:
            try:
                reply, content = self._exchange(method, path, body)
            except ConnectionError:
                if not kept:
                    raise
                self._drop()
                reply, content = self._exchange(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            return None, "it did not answer in time" if isinstance(error, TimeoutError) else (
                f"it cannot be reached ({type(error).__name__})"
            )
        broken = final and reply.status == http.client.INTERNAL_SERVER_ERROR
        if reply.status in _WORTH_ANOTHER_TRY and not broken:
            return None, f"it answers {reply.status} {reply.reason}"
        if reply.status != http.client.OK:
            raise self._refused(path, reply.status, content)
        return (_parsed(content), None) if content else ({}, None)

    def _exchange(
        self, method: str, path: str, body: bytes | None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        address = urlsplit(self.endpoint.base_url)
        connection = self._connection()
        if connection.sock is None:
            connection.timeout = min(CONNECT_SECONDS, self.endpoint.timeout_seconds)
            connection.connect()
        if connection.sock is not None:
            connection.sock.settimeout(self.endpoint.timeout_seconds)
        connection.request(method, address.path.rstrip("/") + path, body, self._headers)
        reply = connection.getresponse()
        return reply, reply.read()

    def _connection(self) -> http.client.HTTPConnection:
        """This thread's own, kept open between requests."""
        kept: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if kept is None:
            address = urlsplit(self.endpoint.base_url)
            kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
            kept = kinds[address.scheme](address.netloc, timeout=self.endpoint.timeout_seconds)
            self._own.connection = kept
            self._opened.append(kept)
        return kept

    def _drop(self) -> None:
        kept = self._connection()
        kept.close()
        self._opened.remove(kept)
        self._own.connection = None

    def _tell(self, passed: float, why: str) -> None:
        with self._lock:
            if passed >= TOLD_FROM_SECONDS and not self._away:
                self._away = True
                self.listener(Away(self.endpoint.base_url, passed, why))

    def _is_back(self) -> None:
        if self._away:
            with self._lock:
                if self._away:
                    self._away = False
                    self.listener(None)

    def _gave_up(self, seconds: float, why: str) -> EngineFailure:
        return EngineFailure(
            "serving.unreachable",
            f"{self.endpoint.base_url} was waited for {seconds:.0f} seconds: {why}.",
            remedy="See to it that the server runs, then resume the run: its last checkpoint is kept.",
        )

    def _refused(self, path: str, status: int, content: bytes) -> BadInput:
        return BadInput(
            "serving.refused",
            f"{self.endpoint.base_url}{path} refused a request ({status}): "
            f"{self._without_key(_words(content))}.",
            remedy="See the server's log; its model, its --max-model-len and its --max-logprobs must "
            "allow what the recipe asks.",
        )

    def _without_key(self, words: str) -> str:
        """A server's words, which may repeat what it was sent."""
        key = self._headers.get("Authorization", "").removeprefix("Bearer ")
        return words.replace(key, "(the key)") if key else words


def _parsed(content: bytes) -> Reply:
    try:
        return json.loads(content)
    except ValueError as error:
        raise EngineFailure(
            "serving.unreadable",
            "The server's reply is no JSON.",
            remedy="See to it that the address is a vLLM server's.",
        ) from error


def _words(content: bytes) -> str:
    """What a refusal says, short."""
    try:
        told = json.loads(content)
    except ValueError:
        told = content.decode(errors="replace")
    if isinstance(told, dict):
        told = (told.get("error") or told).get("message", told.get("detail", told))
    return " ".join(str(told).split())[:500].rstrip(".")


def _authorization(endpoint: Endpoint) -> dict[str, str]:
    name = endpoint.key_variable
    if name is None:
        return {}
    key = os.environ.get(name, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise BadInput(
            "serving.no_key",
            f"The environment variable {name}, which should hold the server's key, holds none.",
            remedy="Set it where the job runs, or name another one.",
            field="key_variable",
        )
    return {"Authorization": f"Bearer {key}"}
