"""`manage.py up`: one tree, one at a time per state folder, and nothing left when it stops."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from workers.application import AlreadyRunning, Program, free_port, only_one
from workers.broker import wait_until

ROOT = Path(__file__).resolve().parents[2]


def test_a_taken_port_gives_way_to_the_next_free_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) < port + 50


def test_a_second_one_is_told_where_the_first_one_is(tmp_path):
    with only_one(tmp_path, "http://localhost:1/"):
        with pytest.raises(AlreadyRunning) as other, only_one(tmp_path, "http://localhost:2/"):
            pass
        assert other.value.url == "http://localhost:1/"
    with only_one(tmp_path, "http://localhost:3/"):
        pass


def test_what_dies_young_waits_longer_each_time(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("workers.application.time.monotonic", lambda: clock[0])
    program = Program("worker", [], {}, tmp_path / "log", started_at=1000.0)
    waits = []
    for _ in range(7):
        while not program.is_due():
            clock[0] += 0.5
        waits.append(clock[0] - program.started_at)
        program.started_at = clock[0]
    assert waits == [1, 2, 4, 8, 16, 30, 30]


def gone(process):
    """Ended; who reaps an orphan is the system's business."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def programs(up):
    """The worker and the web server, by their last words on the command line."""
    return {p.cmdline()[-1]: p for p in up.tree() if not gone(p) and "opdcore.leash" in p.cmdline()}


class Up:
    """`manage.py up` in a state folder of its own."""

    def __init__(self, state, *options):
        state.mkdir(exist_ok=True)
        self.state = state
        self.output = state / "up.out"
        taken = ("DATABASE_URL", "REDIS_URL")
        env = {name: value for name, value in os.environ.items() if name not in taken}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "up", "--no-demo", *options],
                cwd=ROOT,
                env=env | {"STILLROOM_STATE": str(state), "STILLROOM_WARM": "false"},
                stdout=output,
                stderr=output,
            )

    def said(self, text):
        return text in self.output.read_text()

    def url(self):
        return json.loads((self.state / "up.json").read_text())["url"]

    def tree(self):
        return psutil.Process(self.process.pid).children(recursive=True)


def status_of(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_everything_starts_answers_restarts_and_stops(tmp_path):
    up = Up(tmp_path / "state", "--port", "18000")
    try:
        assert wait_until(lambda: up.said("Ctrl-C"), 120), up.output.read_text()
        assert status_of(up.url()) == 200
        second = Up(up.state, "--port", "18000")
        second.output = up.state / "second.out"
        assert second.process.wait(60) == 0
        programs(up)["worker"].kill()
        assert wait_until(lambda: "worker" in programs(up), 30)
        left = up.tree()
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(60) == 0
        assert wait_until(lambda: all(map(gone, left)), 10)
        assert not (up.state / "broker.sock").exists()
    finally:
        up.process.kill()


@pytest.mark.chaos
def test_a_killed_tree_leaves_no_web_server_and_no_worker_and_starts_again(tmp_path):
    up = Up(tmp_path / "state", "--port", "18100")
    assert wait_until(lambda: up.said("Ctrl-C"), 120), up.output.read_text()
    left = programs(up).values()
    up.process.kill()
    up.process.wait()
    assert wait_until(lambda: all(map(gone, left)), 10)
    again = Up(up.state, "--port", "18100")
    try:
        assert wait_until(lambda: again.said("Ctrl-C"), 120), again.output.read_text()
    finally:
        again.process.terminate()
        again.process.wait(60)
