"""What a client may send, over ASGI: counted as it arrives, whoever sends it."""

import asyncio
import json

import pytest
from asgiref.testing import ApplicationCommunicator

from webapp.request_bodies import SPARE_BYTES, BoundedBodies


async def echo(scope, receive, send):
    """Reads a body to its end, as Django does before it asks anything, and tells its length."""
    length, more = 0, True
    while more:
        event = await receive()
        length, more = length + len(event["body"]), event["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode(), "more_body": False})


def sent(path, pieces, *, announced=None):
    headers = [] if announced is None else [(b"content-length", str(announced).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}

    async def talk():
        server = ApplicationCommunicator(BoundedBodies(echo), scope)
        for piece in pieces:
            await server.send_input({"type": "http.request", "body": piece, "more_body": True})
        await server.send_input({"type": "http.request", "body": b"", "more_body": False})
        start, body = await server.receive_output(), await server.receive_output()
        return start["status"], body["body"]

    return asyncio.run(talk())


@pytest.fixture(autouse=True)
def small_limits(settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    settings.PROMPT_SET_MAX_BYTES = 5000


def test_what_fits_arrives_whole():
    assert sent("/runs/new/", [b"x" * 600, b"x" * 400]) == (200, b"1000")


@pytest.mark.parametrize("path", ["/log-in/", "/api/runs"])
def test_a_body_that_grows_beyond_the_limit_is_cut_off_with_a_remedy(path):
    status, body = sent(path, [b"x" * SPARE_BYTES, b"x" * 1001])
    assert status == 413
    assert "Send less at once" in json.loads(body)["errors"][0]["remedy"]


def test_a_body_that_is_announced_too_large_is_not_waited_for():
    assert sent("/log-in/", [], announced=SPARE_BYTES + 1001)[0] == 413


@pytest.mark.parametrize("path", ["/prompt-sets/new/", "/api/prompt-sets/upload"])
def test_uploads_may_be_as_large_as_a_prompt_set(path):
    assert sent(path, [b"x" * SPARE_BYTES, b"x" * 5000])[0] == 200
    assert sent(path, [b"x" * SPARE_BYTES, b"x" * 5001])[0] == 413
