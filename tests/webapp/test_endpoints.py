"""Endpoints: registered by an admin alone, asked with patience, their keys never shown."""

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from django.test import Client

from tests.webapp.callers import errors_of, post, with_token
from webapp import sealing
from webapp.models import AuditEntry, ModelEndpoint
from webapp.services import endpoint_probe, endpoints

KEY = "sk-AbCdEfGhIjKlMnOpQrSt"
API = "/api/endpoints"
PAGE = "/models/endpoints/"
MODELS = {"/v1/models": {"data": [{"id": "tall/teacher"}]}, "/version": {"version": "0.32.0"}}


@contextmanager
def server(replies=MODELS, *, status=200, key="", seconds=0.0):
    """A model server on a port of its own: what it replies, and to whom."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(seconds)
            refused = key and self.headers.get("Authorization") != f"Bearer {key}"
            body = json.dumps(replies.get(self.path)).encode()
            self.send_response(401 if refused else status if self.path in replies else 404)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(BrokenPipeError):
                self.wfile.write(body)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{served.server_port}"
    finally:
        served.shutdown()
        served.server_close()


def register(project, admin, **overrides):
    parts = {"base_url": "http://teacher:8000/v1/", "model": "tall/teacher", "key": KEY}
    return endpoints.register(project, "Teacher", **{**parts, **overrides}, actor=admin)


def test_the_key_is_sealed_and_the_address_has_no_version(project, admin):
    made = register(project, admin)
    assert (made.base_url, made.last_four) == ("http://teacher:8000", "QrSt")
    assert KEY not in made.sealed_key
    assert sealing.unseal(made.sealed_key) == endpoints.key_of(made) == KEY
    entry = AuditEntry.objects.get()
    assert (entry.verb, entry.actor) == ("register_endpoint", admin)
    assert KEY not in json.dumps(entry.detail)


def test_a_server_tells_its_models_and_its_version():
    with server() as url:
        answer = endpoint_probe.ask(url, "m", None)
    assert (answer.models, answer.version, answer.fault) == (("tall/teacher",), "0.32.0", None)


@pytest.mark.parametrize(
    ("replies", "status", "can"),
    [
        ({}, 200, False),
        ({"/inference/v1/generate": {"prompt_token_id_logprobs": None}}, 200, False),
        ({"/inference/v1/generate": {"prompt_token_id_logprobs": "k05VTVBZ"}}, 200, True),
    ],
)
def test_a_server_is_asked_whether_it_tells_the_students_tokens(replies, status, can):
    with server(MODELS | replies, status=status) as url:
        assert endpoint_probe.ask(url, "tall/teacher", None).student_top_k is can
        assert endpoint_probe.ask(url, "another", None).student_top_k is None


def test_a_server_need_not_tell_its_version():
    with server({"/v1/models": {"data": []}}) as url:
        assert endpoint_probe.ask(url, "m", None).version is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"key": "right"}, "It asks for a key."),
        ({"status": 302}, "It answered with status 302 at /v1/models."),
        ({"status": 500}, "It answered with status 500 at /v1/models."),
        ({"replies": {"/v1/models": ["?"]}}, "It answered, but not as OpenAI's API does"),
    ],
)
def test_what_is_wrong_with_an_answer_is_told(given, said):
    with server(**given) as url:
        assert endpoint_probe.ask(url, "m", None).fault.startswith(said)


def test_a_key_is_sent_and_a_wrong_one_is_told():
    with server(key="right") as url:
        assert endpoint_probe.ask(url, "m", "right").fault is None
        assert endpoint_probe.ask(url, "m", "wrong").fault == "It refused the key."


def test_patience_with_a_server_ends(monkeypatch):
    monkeypatch.setattr(endpoint_probe, "PATIENCE_SECONDS", 0.2)
    began = time.monotonic()
    with server(seconds=1.0) as url:
        assert "did not answer" in endpoint_probe.ask(url, "m", None).fault
        assert time.monotonic() - began < 0.9
    assert "could not be reached" in endpoint_probe.ask("http://127.0.0.1:1", "m", None).fault


def test_an_admin_registers_asks_and_removes_on_the_page(project, admin, browse):
    client = browse(admin)
    with server(key=KEY) as url:
        sent = {"name": "Teacher", "base_url": url, "model": "tall/teacher", "key": KEY}
        text = client.post(PAGE, sent, follow=True).content.decode()
        assert "Serves it" in text
        assert "version 0.32.0" in text
        assert "QrSt" in text
        assert KEY not in text
    endpoint = ModelEndpoint.objects.get()
    text = client.post(f"{PAGE}{endpoint.public_id}/ask/", follow=True).content.decode()
    assert "could not be reached" in text
    client.post(f"{PAGE}{endpoint.public_id}/remove/")
    assert not ModelEndpoint.objects.exists()
    assert AuditEntry.objects.filter(verb="remove_endpoint").exists()


def test_another_model_than_the_registered_one_is_told(project, admin):
    with server() as url:
        made = register(project, admin, base_url=url, model="other", key="")
        endpoints.probe(made, actor=admin)
    assert made.probe["serves_model"] is False


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_url", "ftp://teacher"),
        ("base_url", "http://user@teacher"),
        ("base_url", "http://teacher?x=1"),
        ("base_url", "teacher:8000"),
        ("model", " "),
        ("name", ""),
        ("key", "kéy"),
    ],
)
def test_what_is_no_endpoint_is_refused_at_its_field(project, admin, field, value):
    body = {"name": "T", "base_url": "http://t", "model": "m", "key": "", field: value}
    assert errors_of(post(with_token(admin), API, body), 422)[0]["field"] == field
    answer = Client()
    answer.force_login(admin)
    assert answer.post(PAGE, body).status_code == 422
    assert not ModelEndpoint.objects.exists()


def test_a_name_is_given_once(project, admin):
    register(project, admin)
    body = {"name": "Teacher", "base_url": "http://t", "model": "m"}
    assert errors_of(post(with_token(admin), API, body), 422)[0]["field"] == "name"


@pytest.fixture
def readers(maintainer, member, viewer):
    """Everybody of the project but its admin."""
    return [maintainer, member, viewer]


def test_only_an_admin_registers_and_removes_and_only_members_ask(
    project, admin, readers, stranger, browse
):
    made = register(project, admin)
    viewer = readers[-1]
    body = {"name": "Mine", "base_url": "http://t", "model": "m"}
    one = f"{PAGE}{made.public_id}"
    for user in readers:
        assert browse(user).get(PAGE).status_code == 200
        assert browse(user).post(PAGE, body).status_code == 403
        assert browse(user).post(f"{one}/remove/").status_code == 403
        errors_of(post(with_token(user), API, body), 403)
        errors_of(with_token(user).delete(f"{API}/{made.public_id}"), 403)
    assert browse(viewer).post(f"{one}/ask/").status_code == 403
    errors_of(post(with_token(viewer), f"{API}/{made.public_id}/probe"), 403)
    assert browse(stranger).get(PAGE).status_code == 404
    for action in ("ask", "remove"):
        assert browse(stranger).post(f"{one}/{action}/").status_code == 404
        assert browse(admin).get(f"{one}/{action}/").status_code == 405
    errors_of(post(with_token(stranger), f"{API}/{made.public_id}/probe"), 404)
    assert with_token(stranger).get(API).json()["items"] == []
    assert Client().get(PAGE).status_code == 302
    assert ModelEndpoint.objects.count() == 1


def test_the_api_registers_asks_and_removes(project, admin):
    client = with_token(admin)
    with server() as url:
        body = {"name": "T", "base_url": f"{url}/v1", "model": "tall/teacher", "key": KEY}
        made = post(client, API, body)
        assert made.status_code == 201
        public_id = made.json()["public_id"]
        asked = post(client, f"{API}/{public_id}/probe").json()
    assert asked["probe"]["serves_model"] is True
    assert asked["probe"]["version"] == "0.32.0"
    assert KEY not in client.get(API).content.decode()
    assert client.delete(f"{API}/{public_id}").status_code == 204
