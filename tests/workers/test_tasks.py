"""The task is a wake-up: it works through the queue, and what is sent is what is registered."""

import pytest

from tests.workers.conftest import make_told
from webapp.celery import app
from webapp.models import Run
from webapp.services.runs import WAKE_TASK
from workers import host as housekeeping
from workers import tasks


def test_the_name_that_a_launch_sends_is_a_task():
    assert tasks.wake.name == WAKE_TASK
    assert WAKE_TASK in app.tasks


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
