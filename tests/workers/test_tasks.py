"""The task is a wake-up: it works through the queue, and what is sent is what is registered."""

import tempfile
from pathlib import Path

import psutil
import pytest

from opdcore.forkserver_client import warming
from tests.workers.conftest import make_told
from webapp.celery import app
from webapp.models import Run
from webapp.services.machines import WARM_TASK
from webapp.services.runs import WAKE_TASK
from workers import host as housekeeping
from workers import tasks
from workers.broker import socket_path


@pytest.mark.parametrize(("task", "name"), [(tasks.wake, WAKE_TASK), (tasks.warm, WARM_TASK)])
def test_the_names_that_pages_send_are_tasks(task, name):
    assert task.name == name
    assert name in app.tasks


def test_warming_a_host_starts_one_forkserver_and_asking_again_none(settings):
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        settings.STATE_DIR = Path(folder)
        socket = socket_path(Path(folder), "forkserver")
        tasks.warm()
        assert warming(socket)
        tasks.warm()
        servers = forkservers(socket)
        for server in servers:
            server.kill()
        psutil.wait_procs(servers)
    assert len(servers) == 1


def test_a_host_that_shuts_down_warms_nothing(settings, tmp_path):
    settings.STATE_DIR = tmp_path
    host = housekeeping.Host()
    host.stop()
    host.warm()
    assert forkservers(socket_path(tmp_path, "forkserver")) == []


def forkservers(socket):
    """The servers of this socket among all processes."""
    found = psutil.process_iter(["cmdline"])
    return [one for one in found if str(socket) in (one.info["cmdline"] or [])]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("emitting")
def test_one_wake_up_works_through_the_whole_queue(host):
    host()
    for _ in range(2):
        make_told({"steps": 1})
    tasks.wake()
    assert list(Run.objects.values_list("status", flat=True)) == ["succeeded"] * 2


@pytest.mark.django_db
def test_waiting_runs_are_dispatched_once_for_each_free_device(host, monkeypatch):
    host("cpu:0", "cpu:1")
    sent = []
    monkeypatch.setattr(housekeeping.app, "send_task", lambda name, **options: sent.append(options))
    assert housekeeping.dispatch() == 0
    for _ in range(3):
        make_told()
    assert housekeeping.dispatch() == 2
    assert {options["queue"] for options in sent} == {"host.here"}
