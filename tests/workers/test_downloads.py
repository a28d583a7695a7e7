"""Models of the hub: fetched while the run holds no device, told of, pinned, refused in words, never twice."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from django.utils import timezone

from opdcore.lab.record import shipped
from tests.workers.rows import make_run, make_user
from webapp.models import Run, Worker
from webapp.services import machines, project_secrets
from workers import job_folder, leases
from workers.downloads import Downloads, models_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "tall/teacher"
NAMED = {"kind": "hub", "repo": REPO, "revision": "main"}
NAMES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


class Hub:
    """The few routes of the hub that a download asks, with the laboratory's teacher behind them."""

    def __init__(self, *, gated=False, breaks=False):
        self.gated, self.breaks = gated, breaks
        self.folder = shipped("sums") / "teacher"
        self.seen: list[tuple[str, str | None]] = []

    def reply(self, method, path, headers):
        """Status, headers and body."""
        self.seen.append((f"{method} {path}", headers.get("Authorization")))
        if self.gated and headers.get("Authorization") != "Bearer hf_right":
            return (
                403,
                {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"},
                b"",
            )
        path = path.partition("?")[0]
        if path.startswith("/api/models/"):
            return self._api(path)
        name = path.rpartition("/")[2]
        if path != f"/{REPO}/resolve/{COMMIT}/{name}" or name not in NAMES:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        content = (self.folder / name).read_bytes()
        told = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = headers.get("Range")
        if asked is None:
            return 200, told, content
        start = int(asked.removeprefix("bytes=").partition("-")[0])
        told["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return 206, told, content[start:]

    def _api(self, path):
        rest = path.removeprefix(f"/api/models/{REPO}")
        files = [
            {"rfilename": name, "size": (self.folder / name).stat().st_size, "type": "file",
             "path": name, "oid": name, "blobId": name}
            for name in NAMES
        ]  # fmt: skip
        if rest.startswith("/tree/"):
            return 200, {}, json.dumps(files).encode()
        if rest in ("", "/revision/main", f"/revision/{COMMIT}"):
            told = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": files, "private": False}
            return 200, {}, json.dumps(told).encode()
        code = "RevisionNotFound" if "/revision/" in rest else "RepoNotFound"
        return 404, {"X-Error-Code": code}, b""


@contextmanager
def serving(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            status, headers, body = hub.reply(self.command, self.path, self.headers)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.breaks and self.path.endswith("safetensors") and "Range" not in self.headers:
                # Half of it, and then the line is cut.
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                hub.breaks = False
                self.close_connection = True
                return
            self.wfile.write(body)

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *_):
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that this machine's cache knows nothing of."""
    made = Hub()
    with serving(made) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.delenv("HF_HUB_CACHE", raising=False)
        yield made


def make_queued(**source):
    run = make_run(downloads=True)
    run.snapshot["teachers"][0]["participant"]["model"] = NAMED | source
    run.save()
    return run


def fetched(downloads, seconds=60):
    """Looks again and again until nothing is under way."""
    downloads.look()
    assert downloads.current is not None
    until = time.monotonic() + seconds
    while downloads.current is not None:
        assert time.monotonic() < until
        time.sleep(0.1)
        downloads.look()


@pytest.mark.django_db
def test_a_run_is_claimed_once_its_models_are_here_and_holds_nothing_before(host, hub):
    worker, run = host(), make_queued()
    assert leases.claim(worker) is None
    assert machines.reason(run).startswith("Its models are downloaded next")
    fetched(Downloads(worker.host))
    run.refresh_from_db()
    assert (run.downloaded_to, run.downloading_to, run.error) == (worker.host, "", None)
    assert not run.leases.exists()
    assert leases.claim(worker).run == run


@pytest.mark.django_db
def test_a_branch_is_pinned_to_the_commit_that_was_fetched_and_found_without_the_hub(
    host, hub, monkeypatch
):
    worker, run = host(), make_queued()
    fetched(Downloads(worker.host))
    run.refresh_from_db()
    assert models_of(run) == [f"{REPO}@{COMMIT}"]
    from opdcore import hub as ours
    from opdcore.contract.participant import HubModel

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(_cache()))
    asked = len(hub.seen)
    folder = ours.find(HubModel(repo=REPO, revision=COMMIT))
    assert sorted(file.name for file in folder.iterdir()) == sorted(NAMES)
    assert (folder / NAMES[-1]).read_bytes() == (hub.folder / NAMES[-1]).read_bytes()
    assert len(hub.seen) == asked
    assert ours.find(HubModel(repo=REPO, revision="main")) is None


def _cache():
    import os

    return Path(os.environ["HF_HOME"]) / "hub"


@pytest.mark.django_db
def test_a_gated_model_needs_the_projects_token_which_nobody_else_sees(host, hub):
    hub.gated, worker = True, host()
    run = make_queued()
    admin = make_user("eve", project=run.project, role="admin")
    fetched(Downloads(worker.host))
    run.refresh_from_db()
    assert (run.status, run.error["code"]) == ("failed", "model.gated")
    assert "HF_TOKEN" in run.error["remedy"]
    project_secrets.put(run.project, "HF_TOKEN", "hf_right", actor=admin)
    Run.objects.filter(pk=run.pk).update(status="queued", error=None)
    fetched(Downloads(worker.host))
    run.refresh_from_db()
    assert run.downloaded_to == worker.host
    home = job_folder.folder(run)
    assert all(b"hf_right" not in file.read_bytes() for file in home.iterdir() if file.is_file())


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("source", "code"),
    [({"repo": "no/body"}, "model.not_found"), ({"revision": "nowhere"}, "model.not_found")],
)
def test_what_the_hub_does_not_have_ends_the_run_in_words(host, hub, source, code):
    worker, run = host(), make_queued(**source)
    fetched(Downloads(worker.host))
    run.refresh_from_db()
    assert (run.status, run.error["code"], run.downloading_to) == ("failed", code, "")
    assert source.get("repo", "nowhere") in run.error["message"]


@pytest.mark.django_db
def test_a_hub_out_of_reach_ends_the_run_in_words(host, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    worker, run = host(), make_queued()
    fetched(Downloads(worker.host))
    run.refresh_from_db()
    assert (run.status, run.error["code"]) == ("failed", "model.unreachable")


@pytest.mark.django_db
def test_a_line_that_is_cut_is_gone_on_from(host, hub):
    hub.breaks, worker = True, host()
    run = make_queued()
    fetched(Downloads(worker.host))
    run.refresh_from_db()
    assert run.downloaded_to == worker.host
    assert not hub.breaks


@pytest.mark.django_db
def test_a_run_that_is_cancelled_meanwhile_is_fetched_no_longer(host, hub):
    worker, run = host(), make_queued()
    downloads = Downloads(worker.host)
    downloads.look()
    process = downloads.current.process
    Run.objects.filter(pk=run.pk).update(status="cancelled")
    downloads.look()
    assert downloads.current is None
    assert process.poll() is not None


@pytest.mark.django_db
def test_two_hosts_do_not_fetch_for_one_run_and_a_lost_one_is_stood_in_for(host, hub):
    here, there = host(), host(name="there")
    run = make_queued()
    first, second = Downloads(here.host), Downloads(there.host)
    first.look()
    second.look()
    assert (first.current is not None, second.current) == (True, None)
    Worker.objects.filter(pk=here.pk).update(
        heartbeat_at=timezone.now() - timezone.timedelta(hours=1)
    )
    second.look()
    assert second.current is not None
    first.stop()
    fetched_by = second
    until = time.monotonic() + 60
    while fetched_by.current is not None and time.monotonic() < until:
        time.sleep(0.1)
        fetched_by.look()
    run.refresh_from_db()
    assert run.downloaded_to == "there"
    assert leases.claim(there).run == run


@pytest.mark.django_db
def test_how_far_it_is_stands_where_the_run_waits(host):
    worker, run = host(), make_queued()
    progress = {"what": "downloading a/b", "done": 3_000_000, "total": 9_000_000, "unit": "bytes"}
    Run.objects.filter(pk=run.pk).update(progress=progress, downloading_to=worker.host)
    run.refresh_from_db()
    assert machines.reason(run).replace("\xa0", " ") == (
        "Its models are being downloaded: 2.9 MB of 8.6 MB."
    )


@pytest.mark.django_db
def test_a_worker_that_starts_anew_takes_up_what_it_left(host, hub):
    worker, run = host(), make_queued()
    Run.objects.filter(pk=run.pk).update(downloading_to=worker.host)
    downloads = Downloads(worker.host)
    downloads.look()
    assert downloads.current is None
    downloads.begin()
    fetched(downloads)
    run.refresh_from_db()
    assert run.downloaded_to == worker.host
