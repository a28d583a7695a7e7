"""Workers, devices and the queue: who is there, who holds what, and why a run waits."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from tests.webapp.rows import make_pair, make_prompt_set, make_recipe, make_run
from webapp.models import Device, Lease, Project, Worker
from webapp.services import machines


def make_worker(host="still-1", *, devices=("cpu:0",), silent_seconds=3):
    worker = Worker.objects.create(
        host=host,
        pid=41,
        heartbeat_at=timezone.now() - timedelta(seconds=silent_seconds),
        versions={"python": "3.11.9"},
    )
    for name in devices:
        kind = name.partition(":")[0]
        Device.objects.create(worker=worker, name=name, kind=kind, memory_bytes=16_000_000_000)
    return worker


def lease(run, device, *, seconds=50):
    expires_at = timezone.now() + timedelta(seconds=seconds)
    return Lease.objects.create(run=run, device=device, attempt=1, expires_at=expires_at)


def text_of(answer):
    return " ".join(answer.content.decode().split())


def reasons(user):
    return [waiting.reason for waiting in machines.state(user).queue]


def test_without_a_worker_the_page_says_how_to_start_one(project, viewer, browse):
    text = text_of(browse(viewer).get("/workers/"))
    assert "No worker yet" in text
    assert "python manage.py worker" in text


def test_runs_that_wait_for_the_first_worker_are_told(project, viewer, browse):
    make_run(project, name="Patience")
    text = text_of(browse(viewer).get("/workers/"))
    assert "1 run waits in the queue until a worker is running" in text
    assert "Patience" in text


def test_a_fresh_worker_shows_its_devices_and_versions(project, viewer, browse):
    make_worker(devices=("cpu:0", "cuda:0"))
    text = text_of(browse(viewer).get("/workers/"))
    assert "still-1" in text
    assert "Fresh" in text
    assert "Stale" not in text
    assert "16.0 GB" in text
    assert "Python 3.11.9" in text
    assert "A new run starts at once" in text


def test_a_silent_worker_is_stale_in_words(project, viewer, browse):
    make_worker(silent_seconds=600)
    text = text_of(browse(viewer).get("/workers/"))
    assert "Stale" in text
    assert "heartbeat 10 min ago" in text
    assert "No worker is running" in text


def test_a_device_names_the_run_that_holds_it(project, viewer, browse):
    worker = make_worker()
    run = make_run(project, name="Holder", status="running")
    lease(run, worker.devices.get())
    text = text_of(browse(viewer).get("/workers/"))
    assert f"/runs/{run.public_id}/" in text
    assert "unless renewed" in text


def test_an_ended_lease_is_told(project, viewer, browse):
    lease(make_run(project, status="running"), make_worker().devices.get(), seconds=-5)
    assert "ended; the run is taken back soon" in text_of(browse(viewer).get("/workers/"))


def test_runs_of_other_projects_show_without_their_name(project, viewer, browse):
    other = Project.objects.create(name="Concealed", slug="concealed")
    lease(make_run(other, name="Hidden", status="running"), make_worker().devices.get())
    make_run(other, name="Hidden too")
    text = text_of(browse(viewer).get("/workers/"))
    assert "Hidden" not in text
    assert "Concealed" not in text
    assert text.lower().count("a run of another project") == 2


def test_the_queue_is_in_order_of_waiting(project, viewer):
    parts = {"pair": make_pair(project), "recipe": make_recipe(project)}
    parts["train_set"] = make_prompt_set(project)
    now = timezone.now()
    for name, minutes in (("second", 1), ("first", 9), ("third", 0)):
        make_run(project, name=name, queued_at=now - timedelta(minutes=minutes), **parts)
    state = machines.state(viewer)
    assert [waiting.run.name for waiting in state.queue] == ["first", "second", "third"]
    assert state.queue[0].waited >= timedelta(minutes=9)


def test_the_first_run_starts_and_the_next_waits_for_the_device(project, viewer):
    make_worker()
    make_run(project)
    make_run(project)
    assert reasons(viewer) == [
        "It starts in a moment.",
        "Waits for a device; what is free is kept for older runs.",
    ]


def test_what_an_older_run_waits_for_is_kept_for_it(project, viewer):
    worker = make_worker(devices=("cuda:0", "cuda:1"))
    lease(make_run(project, status="running"), worker.devices.get(name="cuda:0"))
    make_run(project, resources={"train": {"kind": "cuda", "count": 2}})
    make_run(project, resources={"train": {"kind": "cuda"}})
    assert reasons(viewer) == [
        "Waits for 2 GPUs; 1 is free, kept for it.",
        "Waits for a GPU; what is free is kept for older runs.",
    ]


@pytest.mark.parametrize(
    ("worker", "run", "reason"),
    [
        (None, {}, "No worker is running."),
        ({"silent_seconds": 600}, {}, "No worker is running."),
        (
            {},
            {"resources": {"train": {"kind": "cuda"}}},
            "No running worker has a GPU.",
        ),
        (
            {},
            {"host": "still-2"},
            "Its run folder is on still-2, whose worker is silent.",
        ),
    ],
)
def test_a_run_says_what_it_waits_for(project, viewer, worker, run, reason):
    if worker is not None:
        make_worker(**worker)
    make_run(project, **run)
    assert reasons(viewer) == [reason]


def test_the_state_alone_is_what_the_page_asks_for_again(project, viewer, browse):
    make_worker()
    page = text_of(browse(viewer).get("/workers/"))
    assert 'hx-get="/workers/state/" hx-trigger="every 4s"' in page
    part = text_of(browse(viewer).get("/workers/state/"))
    assert "still-1" in part
    assert "<html" not in part


@pytest.mark.parametrize("path", ["/workers/", "/workers/state/"])
def test_nobody_and_other_methods_are_refused(project, viewer, browse, path):
    assert Client().get(path).status_code == 302
    assert browse(viewer).post(path).status_code == 405


def test_many_devices_cost_no_more_queries(project, viewer, browse, django_assert_max_num_queries):
    worker = make_worker(devices=[f"cuda:{number}" for number in range(8)])
    for device in worker.devices.all():
        lease(make_run(project, status="running"), device)
        make_run(project)
    with django_assert_max_num_queries(7):
        machines.state(viewer)


def test_the_style_guide_is_served(project, viewer, browse):
    assert browse(viewer).get("/styleguide/").status_code == 200
