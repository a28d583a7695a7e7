"""Opening the form of a new run has the workers ready a job process; nothing depends on it."""

from datetime import timedelta

import pytest
from django.core.cache import cache
from django.utils import timezone
from kombu.exceptions import OperationalError

from webapp.models import Worker
from webapp.services import machines

FORM = "/runs/new/"


@pytest.fixture(autouse=True)
def nobody_has_asked():
    cache.delete("workers-asked-to-warm")


@pytest.fixture
def messages(monkeypatch):
    """What is sent to workers: name and queue."""
    sent = []
    monkeypatch.setattr(
        "webapp.celery.app.send_task", lambda name, **options: sent.append((name, options["queue"]))
    )
    return sent


@pytest.fixture
def hosts(db):
    """A worker that is there, another one, and one that is silent."""
    for host, silent_seconds in (("here", 1), ("there", 5), ("gone", 3600)):
        beat = timezone.now() - timedelta(seconds=silent_seconds)
        Worker.objects.create(host=host, pid=1, heartbeat_at=beat, versions={})


@pytest.mark.usefixtures("hosts")
def test_opening_the_form_asks_each_worker_that_is_there_once(browse, member, messages):
    for _ in range(3):
        assert browse(member).get(FORM).status_code == 200
    assert sorted(messages) == [("workers.warm", "host.here"), ("workers.warm", "host.there")]


@pytest.mark.usefixtures("hosts")
def test_while_the_form_is_filled_in_workers_are_asked_again(browse, member, messages):
    browse(member).get(FORM)
    cache.delete("workers-asked-to-warm")
    browse(member).post("/runs/new/check/", {})
    assert len(messages) == 4


@pytest.mark.usefixtures("hosts")
def test_somebody_who_may_not_launch_wakes_nobody(browse, viewer, messages):
    browse(viewer).get(FORM)
    browse(viewer).post("/runs/new/check/", {})
    assert messages == []


@pytest.mark.usefixtures("hosts")
def test_the_form_opens_although_the_broker_is_away(browse, member, monkeypatch):
    def refuse(*_, **__):
        raise OperationalError("connection refused")

    monkeypatch.setattr("webapp.celery.app.send_task", refuse)
    assert browse(member).get(FORM).status_code == 200


def test_no_message_is_sent_where_no_worker_is(db, messages):
    machines.warm()
    assert messages == []
