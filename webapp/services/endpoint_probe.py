"""Asks a model server what it serves: its models, its version, and whether it tells tokens of one's choice.

The whole of it takes a few seconds at most. Redirects are not followed and proxies not used, so that the
key goes to the registered address alone; what a server says is untrusted text and kept short. It knows
no row.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

PATIENCE_SECONDS = 5.0
LONGEST_REPLY_BYTES = 1 << 20
MOST_MODELS = 50
LONGEST_WORD = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said; `fault` in words where it could not be understood.

    `student_top_k` is None where it is not known whether it can tell it.
    """

    models: tuple[str, ...] = ()
    version: str | None = None
    student_top_k: bool | None = None
    seconds: float = 0.0
    fault: str | None = None

    @property
    def document(self) -> dict[str, Any]:
        return asdict(self)


def ask(base_url: str, model: str, key: str | None) -> Answer:
    """The server's models, version and abilities, or why they are not known. Raises nothing."""
    began = time.monotonic()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    deadline = began + PATIENCE_SECONDS
    try:
        told = _ask(base_url, "/v1/models", headers, deadline)
        models = tuple(str(one["id"])[:LONGEST_WORD] for one in told["data"][:MOST_MODELS])
    except TimeoutError:
        return Answer(fault=f"It did not answer within {PATIENCE_SECONDS:.0f} seconds.")
    except _Refused as error:
        return Answer(fault=str(error))
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        return Answer(fault=f"It could not be reached: {reason}.")
    except (ValueError, LookupError, TypeError, RecursionError):
        return Answer(fault="It answered, but not as OpenAI's API does at /v1/models.")
    version = _version(base_url, headers, deadline)
    can_tell = _student_top_k(base_url, model, headers, deadline) if model in models else None
    return Answer(models, version, can_tell, time.monotonic() - began)


class _Refused(Exception):
    """A status that is not 200."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def _version(base_url: str, headers: Mapping[str, str], deadline: float) -> str | None:
    """As vLLM tells it; others need not."""
    try:
        return str(_ask(base_url, "/version", headers, deadline)["version"])[:LONGEST_WORD]
    except (OSError, http.client.HTTPException, _Refused, ValueError, LookupError, TypeError):
        return None


def _student_top_k(
    base_url: str, model: str, headers: Mapping[str, str], deadline: float
) -> bool | None:
    """Whether it tells the logprob of a token of our choice, asked of one position."""
    asked = {"max_tokens": 1, "prompt_logprob_token_ids": [[1]], "prompt_logprob_start": 0}
    body = {"model": model, "token_ids": [1, 1], "sampling_params": asked}
    try:
        told = _ask(base_url, "/inference/v1/generate", headers, deadline, body=body)
    except _Refused as refusal:
        # A server that is busy or broken may be able to.
        return None if refusal.status >= http.client.INTERNAL_SERVER_ERROR else False
    except (OSError, http.client.HTTPException, ValueError):
        return None
    return isinstance(told, dict) and told.get("prompt_token_id_logprobs") is not None


def _ask(
    base_url: str,
    path: str,
    headers: Mapping[str, str],
    deadline: float,
    *,
    body: Mapping[str, Any] | None = None,
) -> Any:  # noqa: ANN401 (JSON)
    address = urlsplit(base_url)
    kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    connection = kind[address.scheme](address.netloc, timeout=_left(deadline))
    try:
        content = None if body is None else json.dumps(body)
        told = dict(headers) | ({} if body is None else {"Content-Type": "application/json"})
        method = "GET" if body is None else "POST"
        connection.request(method, f"{address.path.rstrip('/')}{path}", content, told)
        reply = connection.getresponse()
        if reply.status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            words = "It refused the key." if headers else "It asks for a key."
            raise _Refused(reply.status, words)
        if reply.status != http.client.OK:
            raise _Refused(reply.status, f"It answered with status {reply.status} at {path}.")
        return json.loads(_body(connection, reply, deadline))
    finally:
        connection.close()


def _body(
    connection: http.client.HTTPConnection, reply: http.client.HTTPResponse, deadline: float
) -> bytes:
    """The reply, however slowly it drips, by the deadline; raises ValueError where it is too long."""
    parts: list[bytes] = []
    while True:
        if connection.sock is not None:
            connection.sock.settimeout(_left(deadline))
        part = reply.read1(65536)
        if not part:
            return b"".join(parts)
        parts.append(part)
        if sum(map(len, parts)) > LONGEST_REPLY_BYTES:
            raise ValueError("too long")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
