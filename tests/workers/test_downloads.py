"""Models of the hub: fetched while the run holds no device, told of, pinned, refused in words, never twice."""

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.db import connections
from django.utils import timezone

from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.lab.record import shipped
from tests.workers.rows import make_run, make_user
from webapp.models import Run, Worker
from webapp.services import machines, project_secrets
from webapp.services.machines import FRESH_SECONDS
from webapp.services.run_documents import hub_models
from workers import job_folder, leases
from workers.broker import wait_until
from workers.downloads import Downloads
from workers.execute import execute

NOBODY = "http://127.0.0.1:9"
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
        self.ranges: list[str | None] = []
        self.told_bytes: int | None = None
        self.slow_seconds = 0.0

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
        if method == "GET" and name.endswith("safetensors"):
            self.ranges.append(asked)
            time.sleep(self.slow_seconds)
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
            is_told = (
                self.command == "HEAD" and hub.told_bytes and self.path.endswith("safetensors")
            )
            self.send_header("Content-Length", str(hub.told_bytes if is_told else len(body)))
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
    assert hub_models(run.snapshot) == [f"{REPO}@{COMMIT}"]
    from opdcore import hub as ours
    from opdcore.contract.participant import HubModel

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(_cache()))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = len(hub.seen)
    folder = ours.find(HubModel(repo=REPO, revision=COMMIT))
    assert sorted(file.name for file in folder.iterdir()) == sorted(NAMES)
    assert (folder / NAMES[-1]).read_bytes() == (hub.folder / NAMES[-1]).read_bytes()
    assert len(hub.seen) == asked
    assert ours.find(HubModel(repo=REPO, revision="main")) is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert ours.find(HubModel(repo=REPO, revision="main")) == folder


def _cache():
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
def test_a_hub_that_stays_out_of_reach_ends_the_run_in_words(host, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    worker, run = host(), make_queued()
    downloads = Downloads(worker.host, pauses=(0.0,))
    fetched(downloads)
    run.refresh_from_db()
    assert (run.status, run.error) == ("queued", None)
    fetched(downloads)
    run.refresh_from_db()
    assert (run.status, run.error["code"]) == ("failed", "model.unreachable")


@pytest.mark.django_db
def test_a_hub_out_of_reach_is_tried_again_and_other_runs_are_fetched_meanwhile(
    host, hub, monkeypatch
):
    worker, first = host(), make_queued()
    downloads = Downloads(worker.host, pauses=(600.0,))
    with monkeypatch.context() as away:
        away.setenv("HF_ENDPOINT", NOBODY)
        fetched(downloads)
    assert "That was try 1 of 2; the next one comes by itself." in machines.reason(first)
    second = make_queued()
    fetched(downloads)
    downloads.look()
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.downloaded_to, second.downloaded_to) == ("", worker.host)
    assert downloads.current is None
    with monkeypatch.context() as later:
        now = time.monotonic()
        later.setattr("workers.downloads.time.monotonic", lambda: now + 601)
        downloads.look()
    until = time.monotonic() + 60
    while downloads.current is not None and time.monotonic() < until:
        time.sleep(0.1)
        downloads.look()
    first.refresh_from_db()
    assert (first.status, first.downloaded_to, first.progress) == ("queued", worker.host, None)


@pytest.mark.django_db
def test_a_line_that_is_cut_is_gone_on_from(host, hub, tmp_path):
    # The client writes pieces of 10 MiB, so a cut shows only in a file of more than one.
    folder = tmp_path / "long"
    shutil.copytree(hub.folder, folder)
    (folder / NAMES[-1]).write_bytes(os.urandom(30 << 20))
    hub.folder, hub.breaks, worker = folder, True, host()
    run = make_queued()
    fetched(Downloads(worker.host))
    run.refresh_from_db()
    assert run.downloaded_to == worker.host
    assert hub.ranges == [None, f"bytes={10 << 20}-"]
    (weights,) = _cache().glob(f"models--*/snapshots/{COMMIT}/{NAMES[-1]}")
    assert weights.read_bytes() == (folder / NAMES[-1]).read_bytes()


@pytest.mark.django_db
def test_a_disk_too_small_is_told_before_the_first_byte(host, hub):
    hub.told_bytes, worker, run = 10**17, host(), make_queued()
    fetched(Downloads(worker.host))
    run.refresh_from_db()
    assert (run.status, run.error["code"]) == ("failed", "model.disk_full")
    others = sum((hub.folder / name).stat().st_size for name in NAMES[:-1])
    assert f"takes {10**17 + others} bytes more" in run.error["message"]
    assert hub.ranges == []


@pytest.mark.django_db
def test_what_is_wholly_here_will_do_where_the_hub_is_out_of_reach(host, hub, monkeypatch):
    worker = host()
    make_queued(revision=COMMIT)
    fetched(Downloads(worker.host))
    # The client's own list of the model's files is what a cache of an earlier client lacks.
    for listing in list(_cache().rglob("trees")):
        shutil.rmtree(listing)
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    whole = make_queued(revision=COMMIT)
    fetched(Downloads(worker.host, pauses=()))
    whole.refresh_from_db()
    assert (whole.status, whole.downloaded_to) == ("queued", worker.host)
    next(_cache().glob(f"models--*/snapshots/{COMMIT}/{NAMES[-1]}")).unlink()
    part = make_queued(revision=COMMIT)
    fetched(Downloads(worker.host, pauses=()))
    part.refresh_from_db()
    assert (part.status, part.error["code"]) == ("failed", "model.unreachable")


@pytest.mark.django_db
def test_what_killed_downloads_left_behind_is_freed(host, hub):
    worker, _ = host(), make_queued()
    blobs = _cache() / "models--tall--teacher" / "blobs"
    blobs.mkdir(parents=True)
    lost, written_to = blobs / "a.1.incomplete", blobs / "a.2.incomplete"
    for part in (lost, written_to):
        part.write_bytes(b"part")
    os.utime(lost, (0, 0))
    fetched(Downloads(worker.host))
    assert (lost.exists(), written_to.exists()) == (False, True)


@pytest.mark.django_db
def test_a_download_that_cannot_begin_is_not_said_to_be_under_way(host, hub, settings, tmp_path):
    worker, run = host(), make_queued()
    downloads, state = Downloads(worker.host, pauses=(0.0,)), settings.STATE_DIR
    settings.STATE_DIR = tmp_path / "a file"
    settings.STATE_DIR.write_text("no folder")
    downloads.look()
    run.refresh_from_db()
    assert (run.status, run.downloading_to) == ("queued", "")
    assert "could not begin: Not a directory. That was try 1 of 2" in machines.reason(run)
    settings.STATE_DIR = state
    fetched(downloads)
    run.refresh_from_db()
    assert run.downloaded_to == worker.host


@pytest.mark.django_db(transaction=True)
def test_a_download_ends_with_the_thread_of_the_worker_that_began_it(host, hub):
    hub.slow_seconds = 20.0
    worker, run = host(), make_queued()
    downloads, is_seen = Downloads(worker.host), threading.Event()

    def work():
        try:
            downloads.look()
            is_seen.wait(60)
        finally:
            connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    assert wait_until(lambda: len(hub.ranges) == 1, 60)
    assert downloads.current.process.poll() is None
    is_seen.set()
    thread.join()
    assert downloads.current.process.wait(10) == -signal.SIGKILL
    # The next worker of this host is the only one that fetches.
    hub.slow_seconds = 0.0
    after = Downloads(worker.host)
    after.begin()
    fetched(after)
    run.refresh_from_db()
    assert (run.downloaded_to, hub.ranges) == (worker.host, [None, None])


@pytest.mark.django_db
def test_models_are_fetched_where_the_runs_folder_is(host, hub):
    here, there = host(), host(name="there")
    run = make_queued()
    Run.objects.filter(pk=run.pk).update(host="here", downloaded_to="here", attempt=1)
    short = timezone.now() - timezone.timedelta(seconds=FRESH_SECONDS + 5)
    Worker.objects.filter(pk=here.pk).update(heartbeat_at=short)
    elsewhere = Downloads("there")
    elsewhere.look()
    assert elsewhere.current is None
    # It was lost, another host fetched for the run, and then it came back.
    Run.objects.filter(pk=run.pk).update(downloaded_to="there")
    Worker.objects.filter(pk=here.pk).update(heartbeat_at=timezone.now())
    assert (leases.claim(here), leases.claim(there)) == (None, None)
    fetched(Downloads("here"))
    assert leases.claim(here).run == run


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


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_fetched_teacher_trains_a_student_without_the_hub(host, hub, settings, monkeypatch):
    settings.WORKER_WARM = False
    worker, run = host(), make_queued()
    stage = {"kind": "distill", "steps": 1, "prompts_per_step": 2, "max_response_tokens": 8}
    document = RecipeDocument(name="one step", stages=[stage])
    run.snapshot["recipe"]["document"] = document.model_dump(mode="json")
    student = {"kind": "local", "path": str(shipped("sums") / "student")}
    run.snapshot["student"]["participant"]["model"] = student
    prompts = b"".join((shipped("sums") / "train.jsonl").read_bytes().splitlines(True)[:4])
    key = storages["prompts"].save("sums.jsonl", ContentFile(prompts))
    run.snapshot["prompt_sets"]["train"] |= {
        "storage_key": key, "sha256": hashlib.sha256(prompts).hexdigest(), "rows": 4
    }  # fmt: skip
    run.save()
    fetched(Downloads(worker.host))
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    execute(leases.claim(worker))
    run.refresh_from_db()
    assert (run.error, run.status, run.step) == (None, "succeeded", 1)
    job = json.loads((job_folder.folder(run) / "job.json").read_bytes())
    assert job["teachers"][0]["model"] == NAMED | {"revision": COMMIT}
