"""A server that several jobs share: started once, ended with its last user, however users end."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from opdcore.serving.keeper import in_use
from opdcore.serving.server import Serving
from opdcore.serving.shared import SharedServer
from tests.opdcore.model_folders import make_pair

# Stands in for vLLM: answers at --port, and notes each start in a file.
PROGRAM = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
open("starts", "a").write(f"{os.getpid()}\\n")
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
# They touch files and processes alone, so nothing of torch is at risk.
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def serving(tmp_path, monkeypatch):
    """What to serve, by a program that starts at once."""
    (tmp_path / "program.py").write_text(PROGRAM)
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'case "$1" in *keeper.py) exec {sys.executable} "$@";; esac\n'
        f'exec {sys.executable} {tmp_path}/program.py "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setenv("STILLROOM_VLLM_PYTHON", str(python))
    return Serving(make_pair(tmp_path)[1], longest=64)


def shared(serving, folder):
    return SharedServer(serving, folder / "server.log", folder=folder)


def starts(folder):
    file = folder / "starts"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def is_there(pid):
    asked = ["ps", "-o", "stat=", "-p", str(pid)]
    told = subprocess.run(asked, capture_output=True, text=True, check=False)
    return bool(told.stdout.strip()) and not told.stdout.startswith("Z")


def answers(server):
    for _ in server.readying():
        pass
    connection = HTTPConnection("127.0.0.1", server.port, timeout=2)
    connection.request("GET", "/health")
    return connection.getresponse().status == 200


def waited_for(condition, seconds=15.0):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def test_the_second_user_joins_and_the_last_one_ends_it(serving, tmp_path):
    folder = tmp_path / "servers" / "one"
    with shared(serving, folder) as second:
        with shared(serving, folder) as first:
            assert (second.joined, first.joined) == (False, True)
            assert first.port == second.port
            assert answers(first)
            (pid,) = starts(folder)
        assert answers(second)
        assert is_there(pid)
    assert not is_there(pid)
    assert not in_use(folder)
    with shared(serving, folder) as again:
        assert not again.joined
        assert answers(again)
        assert len(starts(folder)) == 2


def test_a_cpus_server_reads_a_copy_in_its_own_folder(serving, tmp_path):
    folder = tmp_path / "servers" / "one"
    with shared(serving, folder) as server:
        assert json.loads((folder / "server.json").read_text()) == {"port": server.port}
        assert server.serving.folder == folder / "model"
        assert (folder / "model" / "model.safetensors").exists()


def test_whoever_finds_it_dead_starts_it_anew_at_its_port_and_only_once(serving, tmp_path):
    folder = tmp_path / "servers" / "one"
    with shared(serving, folder) as first, shared(serving, folder) as second:
        assert answers(first)
        (pid,) = starts(folder)
        os.kill(pid, signal.SIGKILL)
        assert waited_for(lambda: not first.is_alive)
        assert [second.revive(), first.revive()] == [True, False]
        assert answers(first)
        assert first.port == second.port
        assert len(starts(folder)) == 2


def use(serving, folder, joined, go_on):
    with shared(serving, Path(folder)) as server:
        joined.put((os.getpid(), server.port))
        go_on.wait(60)


def test_users_that_are_killed_are_counted_no_longer(serving, tmp_path):
    """The one that started it dies first: the other still has it, and it ends with the other."""
    folder = tmp_path / "servers" / "one"
    joined, go_on = FORK.Queue(), FORK.Event()
    users = [FORK.Process(target=use, args=(serving, str(folder), joined, go_on)) for _ in range(2)]
    users[0].start()
    _, port = joined.get(timeout=60)
    users[1].start()
    assert joined.get(timeout=60)[1] == port
    assert waited_for(lambda: len(starts(folder)) == 1)
    (pid,) = starts(folder)
    users[0].kill()
    users[0].join()
    time.sleep(1.5)
    assert is_there(pid)
    users[1].kill()
    users[1].join()
    assert waited_for(lambda: not is_there(pid))


def test_many_who_come_and_go_at_once_never_have_two_servers_or_a_dead_one(serving, tmp_path):
    folder = tmp_path / "servers" / "one"
    done = FORK.Queue()
    users = [
        FORK.Process(target=come_and_go, args=(serving, str(folder), seed, done))
        for seed in range(4)
    ]
    for user in users:
        user.start()
    found = [done.get(timeout=120) for _ in users]
    for user in users:
        user.join()
    assert found == [[]] * 4
    assert waited_for(lambda: not any(is_there(pid) for pid in starts(folder)))


def come_and_go(serving, folder, seed, done):
    """Faults that were seen in three visits; the server must answer throughout each."""
    faults = []
    for visit in range(3):
        with shared(serving, Path(folder)) as server:
            if not answers(server):
                faults.append((visit, "no answer"))
            time.sleep(0.1 * ((seed + visit) % 3))
            living = [pid for pid in starts(Path(folder)) if is_there(pid)]
            if len(living) != 1:
                faults.append((visit, living))
    done.put(faults)
