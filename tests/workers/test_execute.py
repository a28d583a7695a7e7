"""Executing: a run ends as its job did, and whatever happens to the process leaves a reason."""

import json
import os
import signal
import threading
import time

import psutil
import pytest
from django.db import connections
from django.utils import timezone

from tests.workers.conftest import make_told
from tests.workers.rows import make_user
from webapp.models import Artifact, Event, Lease, Run
from webapp.services import runs, series
from workers import execute as executing
from workers import job_folder, leases
from workers.broker import wait_until
from workers.ending import Ending
from workers.execute import execute
from workers.footprint import size_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("emitting")]


def run_it(host, told=None, **overrides):
    run = make_told(told, **overrides)
    execute(leases.claim(host()))
    run.refresh_from_db()
    return run


def test_a_job_that_succeeds_is_recorded_to_its_last_line(host):
    run = run_it(host, {"steps": 5})
    assert (run.status, run.attempt, run.step, run.error) == ("succeeded", 1, 5, None)
    kinds = list(run.events.order_by("seq").values_list("kind", flat=True))
    assert kinds == [
        "job_started",
        "stage_started",
        *["metrics"] * 5,
        "stage_finished",
        "job_finished",
    ]
    assert run.last_seq == run.compacted_seq == 9
    assert series.read(run, ["loss"]).series["loss"].steps.tolist() == [1, 2, 3, 4, 5]
    assert (run.student_tokens, run.teacher_tokens) == (50, 50)
    assert 0 < run.seconds == run.device_seconds
    assert run.finished_at >= run.started_at
    assert not Lease.objects.exists()


def test_outputs_and_traces_are_published(host):
    run = run_it(host, {"output": True})
    found = {a.key: (a.kind, a.size_bytes) for a in Artifact.objects.filter(run=run)}
    assert found["output/model.safetensors"] == ("output", 7)
    assert found["output/config.json"] == ("output", 2)
    assert found["traces/step-1.parquet"] == ("trace", 4)
    from django.core.files.storage import storages

    stored = Artifact.objects.get(run=run, key="output/model.safetensors")
    assert storages["artifacts"].open(stored.storage_key).read() == b"weights"
    # The prompts, the job, its log and the trace lie there too.
    assert run.disk_bytes == size_of(job_folder.folder(run)) > 13


def test_a_killed_job_fails_with_a_remedy_and_can_be_resumed(host):
    run = run_it(host, {"die_at": 3})
    assert run.status == "failed"
    assert run.error["code"] == "job.killed"
    assert "SIGKILL" in run.error["message"]
    assert "Resume" in run.error["remedy"]
    assert run.events.filter(kind="metrics").count() == 2
    last = run.events.order_by("-seq").first()
    assert json.loads(last.payload)["error"]["code"] == "job.killed"


def test_a_crash_is_told_with_the_last_line_of_its_log(host):
    run = run_it(host, {"exit": 1, "stderr": "RuntimeError: no such kernel"})
    assert run.error["code"] == "job.crashed"
    assert "RuntimeError: no such kernel" in run.error["message"]
    assert Artifact.objects.filter(run=run, kind="log").count() == 1


def test_running_out_of_memory_is_recognised(host):
    run = run_it(host, {"exit": 1, "stderr": "torch.OutOfMemoryError: CUDA out of memory."})
    assert run.error["code"] == "job.out_of_memory"


def test_lines_that_are_no_events_become_warnings_and_nothing_is_lost(host):
    run = run_it(host, {"garbage": True})
    assert run.status == "succeeded"
    warnings = run.events.filter(kind="log").values_list("payload", flat=True)
    assert len(warnings) == 3
    assert all("[event.unreadable]" in payload for payload in warnings)
    assert run.events.filter(kind="job_finished").count() == 1


def test_a_prompt_file_that_is_gone_fails_the_run_and_frees_the_device(host):
    run = make_told()
    run.snapshot["prompt_sets"]["train"]["storage_key"] = "gone.jsonl"
    run.save()
    execute(leases.claim(host()))
    run.refresh_from_db()
    assert (run.status, run.error["code"]) == ("failed", "worker.fault")
    assert not Lease.objects.exists()


def test_the_job_sees_no_credentials(host, monkeypatch, settings):
    for name in (
        "DATABASE_URL",
        "REDIS_URL",
        "STILLROOM_SECRET_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "X_TOKEN",
    ):
        monkeypatch.setenv(name, "hidden")
    run = run_it(host)
    seen = json.loads(
        (settings.STATE_DIR / "runs" / run.public_id / "environment.json").read_text()
    )
    assert "hidden" not in seen.values()
    assert seen["OMP_WAIT_POLICY"] == "PASSIVE"
    assert seen["CUDA_VISIBLE_DEVICES"] == ""


class Background:
    """An execution in a thread of its own."""

    def __init__(self, claimed):
        self.thread = threading.Thread(target=self._work, args=(claimed,))
        self.thread.start()

    def _work(self, claimed):
        try:
            self.ending = execute(claimed)
        finally:
            connections.close_all()

    def join(self):
        self.thread.join(timeout=60)
        assert not self.thread.is_alive()


def started(run):
    """Waits for the first step; returns the pids of the job and of what it started."""
    assert wait_until(lambda: Event.objects.filter(run=run, kind="metrics").exists(), 60)
    me = psutil.Process()
    return [p.pid for p in me.children(recursive=True) if "emitter" in " ".join(p.cmdline())]


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def cancel(run):
    Run.objects.filter(pk=run.pk).update(cancel_requested_at=timezone.now())


def test_a_cancelled_job_stops_at_its_next_step(host):
    run = make_told({"steps": 1000, "seconds": 0.1})
    background = Background(leases.claim(host()))
    started(run)
    cancel(run)
    background.join()
    run.refresh_from_db()
    assert run.status == "cancelled"
    assert run.events.filter(kind="job_finished").count() == 1


def test_cancelling_a_deaf_job_leaves_no_orphan(host, settings):
    run = make_told({"steps": 1000, "seconds": 0.1, "deaf": True, "child": True})
    background = Background(leases.claim(host()))
    pids = started(run)
    stray = int((settings.STATE_DIR / "runs" / run.public_id / "stray.pid").read_text())
    cancel(run)
    background.join()
    run.refresh_from_db()
    assert run.status == "cancelled"
    assert all(wait_until(lambda pid=pid: gone(pid), 5) for pid in [*pids, stray])


def test_a_job_killed_from_outside_is_resumed_where_it_stopped(host, settings):
    run = run_it(host, {"die_at": 5, "steps": 10})
    Run.objects.filter(pk=run.pk).update(status="queued")
    run.refresh_from_db()
    run.snapshot["recipe"]["document"]["description"] = json.dumps(
        {"first_step": 2, "resumed": True, "steps": 4}
    )
    run.save()
    execute(leases.claim(host()))
    run.refresh_from_db()
    assert (run.status, run.attempt) == ("succeeded", 2)
    assert series.read(run, ["loss"]).series["loss"].steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert set(run.events.values_list("attempt", flat=True)) == {1, 2}


def test_a_run_that_pauses_frees_its_device_and_is_resumed_where_it_stopped(host):
    run = run_it(host, {"steps": 4, "pause": True})
    assert (run.status, run.finished_at, run.error["code"]) == ("paused", None, "run.paused")
    assert not Lease.objects.exists()
    assert run.events.filter(kind="job_finished").count() == 1
    member = make_user(project=run.project)
    assert runs.resume(run, actor=member).status == "queued"
    run.refresh_from_db()
    told = {"first_step": 4, "resumed": True, "steps": 2}
    run.snapshot["recipe"]["document"]["description"] = json.dumps(told)
    run.save()
    execute(leases.claim(host()))
    run.refresh_from_db()
    assert (run.status, run.attempt, run.error) == ("succeeded", 2, None)
    assert series.read(run, ["loss"]).series["loss"].steps.tolist() == [1, 2, 3, 4, 5, 6]


def test_a_run_that_was_cancelled_while_it_paused_is_cancelled(host):
    make_told(None)
    claimed = leases.claim(host())
    Run.objects.update(cancel_requested_at=timezone.now())
    executing._end(claimed, Ending("paused"), 1.0)
    assert Run.objects.get().status == "cancelled"


def test_a_worker_that_shuts_down_puts_its_run_back_into_the_queue(host, monkeypatch):
    run = make_told({"steps": 1000, "seconds": 0.1})
    stopping = threading.Event()
    monkeypatch.setattr(executing, "STOPPING", stopping)
    background = Background(leases.claim(host()))
    started(run)
    stopping.set()
    background.join()
    run.refresh_from_db()
    assert (run.status, run.attempt, run.finished_at) == ("queued", 1, None)
    assert not Lease.objects.exists()


def test_an_executor_that_lost_its_run_kills_its_job_and_writes_nothing(host):
    run = make_told({"steps": 1000, "seconds": 0.1})
    background = Background(leases.claim(host()))
    (pid,) = started(run)
    Run.objects.filter(pk=run.pk).update(attempt=2)
    background.join()
    assert wait_until(lambda: gone(pid), 5)
    run.refresh_from_db()
    assert (run.status, run.attempt, run.error) == ("running", 2, None)


def test_the_signal_to_stop_leaves_within_a_second_of_the_click(host):
    run = make_told({"steps": 1000, "seconds": 0.05})
    background = Background(leases.claim(host()))
    started(run)
    clicked = time.time()
    cancel(run)
    background.join()
    last = run.events.filter(kind="metrics").order_by("-seq").first()
    assert last.at.timestamp() - clicked < 1.5


@pytest.mark.chaos
def test_a_killed_worker_leaves_no_job_training(host, tmp_path):
    run = make_told({"steps": 10_000, "seconds": 0.05, "child": True})
    claimed = leases.claim(host())
    pid = os.fork()
    if pid == 0:
        connections.close_all()
        try:
            execute(claimed)
        finally:
            os._exit(0)
    try:
        assert wait_until(lambda: Event.objects.filter(run=run, kind="metrics").exists(), 60)
        children = [p.pid for p in psutil.Process(pid).children(recursive=True)]
        assert children
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    jobs = [child for child in children if psutil.pid_exists(child)]
    assert wait_until(
        lambda: all(gone(child) or "sleep" in psutil.Process(child).cmdline() for child in jobs), 10
    )


def test_a_run_that_was_cancelled_while_it_was_put_back_is_cancelled(host):
    make_told(None)
    claimed = leases.claim(host())
    Run.objects.update(cancel_requested_at=timezone.now())
    executing._end(claimed, Ending("queued"), 1.0)
    run = Run.objects.get()
    assert (run.status, run.finished_at is None) == ("cancelled", False)
    assert not Lease.objects.exists()


def test_a_run_that_goes_on_from_a_checkpoint_finds_its_weights_beside_its_job(host, settings):
    from django.core.files.base import ContentFile
    from django.core.files.storage import storages

    run = make_told({"steps": 1})
    key = storages["artifacts"].save("p/starts/one/model.safetensors", ContentFile(b"weights"))
    run.snapshot["start"] = {"storage_key": key, "sha256": "b" * 64}
    run.save()
    execute(leases.claim(host()))
    folder = job_folder.folder(run)
    job = json.loads((folder / "job.json").read_bytes())
    assert job["start"] == {"path": str(folder / "start"), "sha256": "b" * 64}
    assert (folder / "start" / "model.safetensors").read_bytes() == b"weights"
    assert job["response_cache"].endswith("/responses")
    assert [one["scores"] for one in job["teachers"]] == [None]


def test_what_fails_after_a_runs_end_leaves_it_ended(host, monkeypatch):
    def fail(run_id):
        raise RuntimeError("no plan")

    monkeypatch.setattr(executing.rescues, "unattended", fail)
    run = run_it(host, {"steps": 1})
    assert run.status == "succeeded"
