"""The warm start: a forked job is the job that a fresh process would be, and ends as cleanly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from opdcore.forkserver_client import (
    Child,
    Launch,
    NotWarm,
    ensure,
    log_path,
    retire,
    spawn,
    spawn_cold,
    start,
    take_lock,
)

ROOT = Path(__file__).resolve().parents[2]

PROBE = """
import json, os, signal, subprocess, sys, threading, time

def report(events):
    import torch
    torch.manual_seed(1)
    x = torch.randn(512, 512)
    y = (x @ x.T).relu().softmax(-1) @ x
    told = {"warm": "opdcore.execution" in sys.modules, "threads": torch.get_num_threads(),
        "sum": y.double().abs().sum().item(),
        "argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "name": __name__,
        "leads": os.getpgrp() == os.getpid(), "path": sys.path[0],
        "open": {n: os.readlink(f"/proc/self/fd/{n}")
            for n in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{n}")},
        "interrupts": signal.getsignal(signal.SIGINT) is signal.default_int_handler}
    with os.fdopen(events, "w") as sink:
        json.dump(told, sink)

match sys.argv[1:]:
    case ["report", events]:
        print("to stdout"); print("to stderr", file=sys.stderr)
        report(int(events))
    case ["exit", "text"]:
        sys.exit("a last word")
    case ["exit", code]:
        threading.Timer(0.2, lambda: print("a thread ended")).start()
        sys.exit(int(code))
    case ["raise"]:
        raise ValueError("a mistake")
    case ["sleep"]:
        print("asleep", flush=True); time.sleep(60)
    case ["sleep", seconds]:
        time.sleep(float(seconds))
    case ["family"]:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(child.pid, flush=True); time.sleep(60)
    case ["leave"]:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(child.pid, flush=True)
"""


@pytest.fixture(scope="module")
def folder():
    """Short, since a socket's path is: pytest's own folders may pass 100 characters."""
    with tempfile.TemporaryDirectory(prefix="warm-") as name:
        Path(name, "probe.py").write_text(PROBE)
        yield Path(name)


@pytest.fixture(scope="module")
def env(folder):
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "2", "PROBED": "yes"}


@pytest.fixture(scope="module")
def warm(folder, env):
    """The socket of a server that answers."""
    path = folder / "warm.sock"
    wait_until_warm(path, env=env)
    yield path
    retire(path)


def wait_until_warm(path, *, env, idle_seconds=600.0):
    give_up = time.monotonic() + 120
    while not ensure(path, env=env, idle_seconds=idle_seconds):
        assert time.monotonic() < give_up, log_path(path).read_text()
        time.sleep(0.1)


class Ends:
    """Read ends of a job's stdout, stderr and events."""

    def __init__(self):
        pipes = [os.pipe() for _ in range(3)]
        self._reads = [read for read, _ in pipes]
        self.writes = [write for _, write in pipes]

    def close_writes(self):
        while self.writes:
            os.close(self.writes.pop())

    def read(self, number):
        with os.fdopen(self._reads[number - 1], "rb") as stream:
            return stream.read().decode()

    def read_line(self):
        with os.fdopen(os.dup(self._reads[0]), "rb", buffering=0) as stream:
            return stream.readline().decode().strip()


def begin(how, argv, *, env, cwd=ROOT):
    """Start the probe; an argument EVENTS becomes the number of its third pipe."""
    ends = Ends()
    out, err, events = ends.writes
    argv = [str(events) if a == "EVENTS" else a for a in argv]
    launch = Launch(
        argv, env=env, cwd=cwd, stdout=out, stderr=err, pass_fds=(events,), program="probe"
    )
    child = spawn_cold(launch) if how == "cold" else spawn(launch, socket_path=how)
    ends.close_writes()
    return child, ends


@pytest.fixture(params=["warm", "cold"])
def how(request):
    return request.getfixturevalue("warm") if request.param == "warm" else "cold"


def test_a_forked_job_is_what_a_fresh_process_is(warm, env, tmp_path):
    told = {}
    for how in (warm, "cold"):
        child, ends = begin(how, ["report", "EVENTS"], env=env, cwd=tmp_path)
        assert child.wait(60) == 0, ends.read(2)
        assert ends.read(1) == "to stdout\n"
        assert ends.read(2) == "to stderr\n"
        told[how] = json.loads(ends.read(3))
    fork, fresh = told[warm], told["cold"]
    assert fork.pop("warm")
    assert not fresh.pop("warm")
    assert fork["threads"] == 2
    assert fork["env"] == env
    assert fork["cwd"] == str(tmp_path)
    assert fork["name"] == "__main__"
    assert fork["leads"]
    assert fork["interrupts"]
    same = ("threads", "sum", "env", "cwd", "name", "leads", "interrupts", "path")
    assert {key: fork[key] for key in same} == {key: fresh[key] for key in same}


def test_a_fork_sees_no_descriptor_of_the_server_or_of_another_job(warm, env):
    other, _ = begin(warm, ["sleep"], env=env)
    child, ends = begin(warm, ["report", "EVENTS"], env=env)
    assert child.wait(60) == 0
    told = json.loads(ends.read(3))
    ties = [name for name in told["open"].values() if name.startswith("socket:")]
    assert told["open"].pop("0") == "/dev/null"
    assert {"1", "2", told["argv"][1]} < set(told["open"])
    assert len(ties) == 1
    assert len(told["open"]) == 4
    other.killpg(signal.SIGKILL)
    assert other.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["exit", "0"], 0, ("a thread ended\n", "")),
        (["exit", "5"], 5, ("a thread ended\n", "")),
        (["exit", "text"], 1, ("", "a last word\n")),
        (["raise"], 1, ("", "ValueError: a mistake\n")),
    ],
)
def test_exit_codes_and_last_words_arrive(how, env, argv, code, said):
    child, ends = begin(how, argv, env=env)
    assert child.wait(60) == code
    assert child.wait() == code
    assert ends.read(1) == said[0]
    assert ends.read(2).endswith(said[1])


def test_wait_tells_a_running_job_from_a_killed_one(how, env):
    child, ends = begin(how, ["sleep"], env=env)
    assert ends.read_line() == "asleep"
    assert child.wait(0) is None
    assert child.wait(0.1) is None
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == -signal.SIGTERM
    child.killpg(signal.SIGKILL)
    child.send_signal(signal.SIGKILL)


def test_cancelling_the_group_leaves_no_orphan(how, env):
    child, ends = begin(how, ["family"], env=env)
    grandchild = psutil.Process(int(ends.read_line()))
    child.killpg(signal.SIGTERM)
    assert child.wait(10) == -signal.SIGTERM
    assert psutil.wait_procs([grandchild], timeout=5)[1] == []


def test_what_a_job_leaves_behind_ends_with_it(how, env):
    child, ends = begin(how, ["leave"], env=env)
    grandchild = psutil.Process(int(ends.read_line()))
    assert child.wait(60) == 0
    assert ends.read(1) == ""
    assert psutil.wait_procs([grandchild], timeout=5)[1] == []


def test_two_jobs_run_at_once(warm, env):
    jobs = [begin(warm, ["sleep"], env=env) for _ in range(2)]
    assert [ends.read_line() for _, ends in jobs] == ["asleep", "asleep"]
    first, second = (child for child, _ in jobs)
    first.killpg(signal.SIGINT)
    assert first.wait(10) == 1
    assert second.wait(0) is None
    second.killpg(signal.SIGKILL)
    assert second.wait(10) == -signal.SIGKILL


def test_a_job_ends_with_its_starter(how, env, folder):
    program = f"""
import os, sys, time
from pathlib import Path
from opdcore.forkserver_client import Launch, spawn, spawn_cold
launch = Launch(["sleep"], env=dict(os.environ), cwd=Path.cwd(), stdout=2, stderr=2, program="probe")
how = {str(how)!r}
child = spawn_cold(launch) if how == "cold" else spawn(launch, socket_path=Path(how))
print(child.pid, flush=True)
time.sleep(60)
"""
    starter = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**env, "PYTHONPATH": env["PYTHONPATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert starter.stdout is not None
    job = psutil.Process(int(starter.stdout.readline()))
    assert job.is_running()
    starter.kill()
    starter.wait()
    starter.stdout.close()
    assert psutil.wait_procs([job], timeout=10)[1] == []


def test_an_environment_that_imports_read_is_refused_and_starts_cold(warm, env):
    child: Child
    ends = Ends()
    launch = Launch(
        ["exit", "3"],
        env={**env, "HF_HOME": "/elsewhere"},
        cwd=ROOT,
        stdout=ends.writes[0],
        stderr=ends.writes[1],
        program="probe",
    )
    with pytest.raises(NotWarm, match="another value of HF_HOME"):
        spawn(launch, socket_path=warm)
    child = start(launch, socket_path=warm)
    ends.close_writes()
    assert child.wait(60) == 3


def test_no_server_and_a_path_too_long_are_said(tmp_path, env):
    launch = Launch([], env=env, cwd=ROOT, stdout=1, stderr=2)
    with pytest.raises(NotWarm, match="No fork-server answers"):
        spawn(launch, socket_path=Path("/tmp/nobody.sock"))
    long = tmp_path / ("x" * 100)
    with pytest.raises(NotWarm, match="at most 100 bytes"):
        spawn(launch, socket_path=long)
    assert ensure(long, env=env) is False


def test_a_second_server_on_the_same_socket_ends_at_once(warm, env):
    second = [sys.executable, "-m", "opdcore.forkserver", str(warm)]
    traced = {**env, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        second, cwd=ROOT, env=traced, capture_output=True, text=True, check=False, timeout=60
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "opdcore.forkserver_client" in imported
    assert "torch" not in imported
    assert ensure(warm, env=env)


def test_the_socket_is_its_owners_alone(warm):
    assert warm.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_an_idle_server_replaces_a_stale_socket_and_retires_after_its_last_job(folder, env):
    path = folder / "idle.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    wait_until_warm(path, env=env, idle_seconds=1.0)
    child, _ = begin(path, ["sleep", "2"], env=env)
    assert child.wait(1.5) is None
    assert ensure(path, env=env)
    assert child.wait(10) == 0
    time.sleep(2.5)
    assert not path.exists()
    lock = take_lock(path)
    assert lock is not None
    os.close(lock)
    assert log_path(path).read_text() == ""
