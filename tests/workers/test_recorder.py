"""The recorder: in order and once, whatever happens to the database between two lines."""

import json
import os
import time

import pytest
from django.db import OperationalError

from opdcore.contract.events import Logged, metrics
from tests.workers.rows import Scribe, make_running
from webapp.models import Event
from webapp.services import recording
from workers import recorder as recorders
from workers.broker import wait_until
from workers.recorder import Recorder

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(recorders, "RETRY_SECONDS", 0.1)


class Desk:
    """A recorder at work on a pipe."""

    def __init__(self, folder, run=None):
        reading, self.writing = os.pipe()
        self.scribe = Scribe(run or make_running())
        self.batches = []
        self.recorder = Recorder(
            self.scribe.author, pipe=reading, folder=folder, recorded=self.batches.append
        )
        self.recorder.start()

    def write(self, *raws):
        os.write(self.writing, b"".join(raw + b"\n" for raw in raws))

    def step(self, number):
        return self.scribe.raw(metrics({"loss": 1.0}), step=number)

    def close(self, seconds=20):
        os.close(self.writing)
        self.recorder.flush()
        return self.recorder.close(patience_seconds=seconds)


def steps():
    return list(Event.objects.filter(kind="metrics").order_by("seq").values_list("step", flat=True))


def test_lines_are_recorded_within_a_moment_while_the_job_lives(tmp_path):
    desk = Desk(tmp_path)
    desk.write(desk.step(1))
    assert wait_until(lambda: steps() == [1], 10)
    assert desk.close()


def test_a_line_that_comes_in_pieces_is_one_line(tmp_path):
    desk = Desk(tmp_path)
    raw = desk.step(1)
    os.write(desk.writing, raw[:20])
    time.sleep(0.3)
    os.write(desk.writing, raw[20:] + b"\n")
    assert desk.close()
    assert steps() == [1]


def test_lines_of_one_moment_share_a_transaction(tmp_path):
    desk = Desk(tmp_path)
    desk.write(*(desk.step(i) for i in range(1, 51)))
    assert desk.close()
    assert steps() == list(range(1, 51))
    assert len(desk.batches) <= 3


def test_while_the_database_is_away_lines_are_spooled_and_then_replayed_in_order(
    tmp_path, monkeypatch
):
    record, away = recording.record, True

    def sometimes(author, lines):
        if away:
            raise OperationalError("the database is away")
        return record(author, lines)

    monkeypatch.setattr(recording, "record", sometimes)
    desk = Desk(tmp_path)
    desk.write(desk.step(1), desk.step(2))
    spool = tmp_path / recorders.SPOOL
    assert wait_until(spool.exists, 10)
    desk.write(desk.step(3))
    time.sleep(0.3)
    assert steps() == []
    away = False
    assert wait_until(lambda: len(steps()) == 3, 10)
    desk.write(desk.step(4))
    assert desk.close()
    assert steps() == [1, 2, 3, 4]
    assert not spool.exists()


def test_a_commit_whose_answer_was_lost_is_not_recorded_twice(tmp_path, monkeypatch):
    record, calls = recording.record, []

    def lost(author, lines):
        calls.append(len(lines))
        last = record(author, lines)
        if len(calls) == 1:
            raise OperationalError("the connection broke after the commit")
        return last

    monkeypatch.setattr(recording, "record", lost)
    desk = Desk(tmp_path)
    desk.write(desk.step(1), desk.step(2))
    assert wait_until(lambda: len(calls) > 1, 10)
    assert desk.close()
    assert steps() == [1, 2]


def test_what_an_earlier_worker_left_in_the_spool_comes_first(tmp_path):
    run = make_running()
    left = Scribe(run)
    raws = [left.raw(metrics({"loss": 1.0}), step=step) for step in (1, 2)]
    (tmp_path / recorders.SPOOL).write_bytes(raws[0] + b"\n" + raws[1][:30])
    run.attempt = 2
    run.save()
    desk = Desk(tmp_path, run)
    desk.recorder.author = recording.Author(run.pk, 2, (20,))
    desk.scribe.attempt = 2
    desk.write(desk.step(2))
    assert desk.close()
    assert list(Event.objects.order_by("seq").values_list("attempt", "step")) == [(1, 1), (2, 2)]


def test_the_workers_own_lines_displace_none_of_the_jobs(tmp_path):
    desk = Desk(tmp_path)
    desk.recorder.say(Logged(level="info", message="mine"))
    desk.write(desk.step(1), b"no event", desk.step(2))
    assert desk.close()
    assert steps() == [1, 2]
    said = Event.objects.filter(kind="log").order_by("seq").values_list("payload", flat=True)
    assert json.loads(said[0])["message"] == "mine"
    assert json.loads(said[1])["message"].startswith("[event.unreadable]")


def test_a_flood_of_unreadable_lines_is_shown_in_part(tmp_path):
    desk = Desk(tmp_path)
    desk.write(*[b"?"] * 200)
    assert desk.close()
    assert Event.objects.count() == recorders.UNREADABLE_SHOWN


def test_a_line_that_claims_a_later_attempt_is_refused(tmp_path):
    desk = Desk(tmp_path)
    desk.scribe.attempt = 7
    desk.write(desk.step(1))
    assert desk.close()
    assert steps() == []
    assert "attempt is 7" not in Event.objects.get().payload


def test_a_fenced_recorder_says_so_and_writes_nothing(tmp_path):
    run = make_running()
    desk = Desk(tmp_path, run)
    run.status = "cancelled"
    run.save()
    desk.write(desk.step(1))
    assert wait_until(desk.recorder.fenced.is_set, 10)
    desk.close()
    assert Event.objects.count() == 0
