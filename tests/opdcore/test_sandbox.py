"""The sandbox: each thing that code must not reach, use up or leave behind is tried."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from opdcore.contract.errors import BadInput
from opdcore.verifiers import unit_tests
from opdcore.verifiers.pool import DIED
from opdcore.verifiers.sandbox import syscalls
from opdcore.verifiers.sandbox.confinement import Limits
from opdcore.verifiers.unit_tests import UnitTests
from tests.opdcore.sandboxes import (
    ADD,
    LIMITS,
    REFUSED,
    RIGHT,
    ROOT,
    attempt,
    briefly,
    running,
    sandboxes,
)


@pytest.fixture(scope="module")
def graded():
    with UnitTests(LIMITS, processes=1) as verifier:
        yield lambda code, *tests: verifier.grade([attempt(code, *tests)])[0]


# What a response may not reach


@pytest.mark.parametrize(
    "test",
    [
        "import socket; assert refused(lambda: socket.socket(socket.AF_INET))",
        "import socket; assert refused(lambda: socket.socket(socket.AF_INET6))",
        "import socket; assert refused(lambda: socket.socket(socket.AF_UNIX))",
        "import socket; assert refused(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))",
        "import socket; assert refused(lambda: socket.create_connection(('127.0.0.1', {port})))",
        (
            "import socket; a, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); "
            "assert refused(lambda: a.connect('/dev/log')) and refused(lambda: a.sendto(b'', '/dev/log'))"
        ),
        (
            "import urllib.request as r\ntry: r.urlopen('http://127.0.0.1:{port}')\n"
            "except r.URLError as error: assert isinstance(error.reason, PermissionError)"
        ),
    ],
)
def test_nothing_reaches_the_network(graded, test, listener):
    assert graded(REFUSED, test.replace("{port}", str(listener))).reason is None


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    "expression",
    [
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
        "open('/proc/self/maps')",
        "open('/proc/%d/environ' % os.getppid())",
        "open('/proc/%d/mem' % os.getppid(), 'r+b')",
        "os.listdir('/')",
        "os.listdir('/tmp')",
        "os.listdir('..')",
        "open('/tmp/written', 'w')",
        "open('/dev/shm/written', 'w')",
        "open('{secret}')",
        "open('{secret}', 'w')",
        "os.unlink('{secret}')",
        "os.rename('{secret}', 'mine')",
        "os.link('{secret}', 'mine')",
        "os.symlink('{secret}', 'mine')",
        "os.truncate('{secret}', 0)",
        "os.open('{secret}', os.O_RDONLY | os.O_TRUNC)",
        "os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)",
        "open(os.__file__, 'a')",
        "os.chmod('{secret}', 0o777)",
        "os.chmod(os.__file__, 0o777)",
        "os.fchmod(os.open(os.__file__, os.O_RDONLY), 0o777)",
        "os.utime('{secret}')",
        "os.setxattr('{secret}', 'user.a', b'b')",
        "os.mkdir('folder')",
        "os.mkfifo('pipe')",
        "os.chroot('.')",
        "os.memfd_create('hidden')",
    ],
)
def test_nothing_but_the_private_folder_and_the_library_can_be_opened(graded, expression, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the run's folder")
    expression = expression.replace("{secret}", str(secret))
    assert graded(REFUSED, f"import os; assert refused(lambda: {expression})").reason is None
    assert secret.read_text() == "the run's folder"
    assert secret.stat().st_mode & 0o777 == 0o644


def test_a_path_with_dots_does_not_lead_out(graded):
    test = "import os, pathlib; assert refused(lambda: pathlib.Path('../../../etc/passwd').read_text())"
    assert graded(REFUSED, test).reason is None


@pytest.mark.parametrize(
    "expression",
    [
        "os.fork()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
        "subprocess.run(['/bin/true'])",
        "multiprocessing.Process(target=print).start()",
        "os.kill(os.getppid(), 9)",
        "os.kill(-1, 9)",
        "os.kill(0, 9)",
        "os.killpg(os.getpgid(os.getppid()), 9)",
        "os.kill(1, 0)",
        "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
        "fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "os.sched_setaffinity(os.getppid(), {0})",
        "os.setuid(0)",
        "os.setpgid(0, os.getppid())",
    ],
)
def test_no_process_can_be_started_or_touched(graded, expression):
    modules = "import os, subprocess, multiprocessing, signal, fcntl, resource"
    assert graded(REFUSED, f"{modules}; assert refused(lambda: {expression})").reason is None
    assert graded(ADD, *RIGHT).correct


def test_limits_cannot_be_raised_again(graded):
    code = """
    import resource
    def raised(kind, most):
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):
            return False
        return True
    """
    kinds = "CPU", "AS", "FSIZE", "NOFILE"
    tests = [
        f"import resource; assert not raised(resource.RLIMIT_{kind}, 1 << 40)" for kind in kinds
    ]
    assert graded(code, *tests).reason is None


def test_the_process_has_no_capability_and_can_gain_none():
    with running("while True: pass") as (_, process):
        told = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in told)
    capabilities = {
        name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")
    }
    assert capabilities == dict.fromkeys(capabilities, 0)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_the_environment_holds_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    with UnitTests(LIMITS, processes=1) as verifier:
        (grade,) = verifier.grade(
            [attempt("import os", "assert set(os.environ) <= {'PYTHONHASHSEED', 'PYTHONUTF8', 'TZ', "
                     "'LC_CTYPE', 'LD_LIBRARY_PATH'}")]
        )  # fmt: skip
    assert grade.reason is None


def test_no_descriptor_is_inherited():
    code = """
    import os
    def is_open(fd):
        try:
            os.fstat(fd)
        except OSError:
            return False
        return True
    """
    with Path(os.devnull).open() as inherited, UnitTests(LIMITS, processes=1) as verifier:
        os.set_inheritable(inherited.fileno(), True)
        # The three standard ones are the null device; two pipes belong to the examination.
        test = "import os, stat\nfound = [fd for fd in range(1024) if is_open(fd)]\n"
        test += "assert len(found) == 5 and found[:3] == [0, 1, 2]\n"
        test += "null = os.stat(os.devnull).st_rdev\n"
        test += "assert all(os.fstat(fd).st_rdev == null for fd in found[:3])\n"
        test += "assert all(stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in found[3:])"
        (grade,) = verifier.grade([attempt(code, test)])
    assert grade.reason is None


def test_only_the_standard_library_is_there(graded):
    code = """
    import importlib, sys
    def is_there(name):
        try:
            importlib.import_module(name)
        except ImportError:
            return False
        return True
    """
    absent = "numpy", "pydantic", "opdcore", "torch", "pip"
    tests = [f"assert not is_there({name!r})" for name in absent]
    loaded = (
        "import sys; assert {m.partition('.')[0] for m in sys.modules if m[:12] != '_sysconfigda'"
    )
    loaded += "} - {'response'} <= "
    assert graded(code, *tests, loaded + "set(sys.stdlib_module_names)").reason is None


def test_packages_beside_the_standard_library_cannot_be_read(graded):
    packages = Path(os.__file__).parent / "site-packages"
    found = next((str(one) for one in packages.glob("*/*") if one.is_file()), None)
    if found is None:
        pytest.skip("nothing is installed there")
    assert graded(REFUSED, f"assert refused(lambda: open({found!r}))").reason is None


# What a response may not use up


def test_an_endless_loop_ends_at_its_limit():
    grade, seconds = briefly("while True: pass", *RIGHT)
    assert grade.correct is False
    assert grade.reason == "the code ran longer than 1 seconds"
    assert 0.9 < seconds < 5.0


def test_a_sleep_in_a_test_call_ends_at_its_limit():
    grade, seconds = briefly("import time\ndef add(a, b): time.sleep(60)", *RIGHT)
    assert (grade.correct, seconds < 5.0) == (False, True)


def test_an_uninterruptible_power_ends_at_its_limit():
    grade, seconds = briefly("x = 9 ** 9 ** 9 ** 9", *RIGHT)
    assert (grade.correct, seconds < 5.0) == (False, True)


def test_a_signal_handler_does_not_outlast_the_limit():
    code = """
    import signal
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    while True: pass
    """
    grade, seconds = briefly(code, *RIGHT)
    assert (grade.correct, seconds < 5.0) == (False, True)


def test_threads_do_not_multiply_the_processor_time():
    code = """
    import hashlib, threading
    def burn():
        while True: hashlib.pbkdf2_hmac('sha256', b'a', b'b', 1_000_000)
    for _ in range(8): threading.Thread(target=burn).start()
    burn()
    """
    limits = Limits(0.5, 512 << 20)
    with running(code, limits=limits) as (grading, process):
        most = 0.0
        while not grading.done():
            with suppress(psutil.NoSuchProcess):
                most = max(most, sum(process.cpu_times()[:2]))
        (grade,) = grading.result()
    assert grade.correct is False
    assert most <= 1.2


@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(4 << 30)",
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "import mmap\nx = [mmap.mmap(-1, 1 << 28) for _ in range(64)]",
    ],
)
def test_a_memory_balloon_bursts_within_its_limit(graded, code):
    grade = graded(code, *RIGHT)
    assert grade.correct is False
    assert grade.reason in ("the code ends with MemoryError", "the code ends with OSError")


def test_a_gigabyte_of_output_costs_nothing(graded):
    code = ADD + "import os\nfor fd in (1, 2):\n for _ in range(16): os.write(fd, bytes(64 << 20))"
    assert graded(code, *RIGHT).correct is True


def test_a_file_cannot_grow_past_its_limit(graded):
    code = """
    def written(count):
        with open('big', 'wb', buffering=0) as file:
            return sum(file.write(bytes(1 << 20)) for _ in range(count))
    """
    assert graded(code, "assert written(16) == 16 << 20").reason is None
    assert graded(code, "written(17)").reason == "test 1 of 1 ends with OSError"


def test_many_files_end_the_attempt(graded):
    code = "import time\nfor n in range(200): open(str(n), 'w').close()\ntime.sleep(60)"
    assert graded(code, *RIGHT).reason == "the code wrote more than 64 files"


def test_many_threads_end_the_attempt(graded):
    code = """
    import threading, time
    threading.stack_size(65536)
    for _ in range(100): threading.Thread(target=time.sleep, args=(60,)).start()
    time.sleep(60)
    """
    assert graded(code, *RIGHT).reason == "the code ran more than 32 threads"


def test_a_fork_bomb_does_not_go_off(graded):
    grade = graded("import os\nwhile True: os.fork()", *RIGHT)
    assert (grade.correct, grade.reason) == (False, "the code ends with PermissionError")


def test_few_files_can_be_open_at_once(graded):
    code = "x = [open('a', 'w') for _ in range(100)]"
    assert graded(code, *RIGHT).reason == "the code ends with OSError"


def test_a_crash_of_the_interpreter_is_incorrect(graded):
    grade = graded("import faulthandler; faulthandler._sigsegv()", *RIGHT)
    assert (grade.correct, grade.reason) == (False, "the code's process died of SIGSEGV")


# What is left behind


def test_nothing_is_left_running_and_no_folder_is_left():
    before = sandboxes()
    with UnitTests(Limits(1.0, 512 << 20), processes=2) as verifier:
        code = "import threading, time\nopen('left', 'w').write('x')\n"
        code += "threading.Thread(target=time.sleep, args=(60,)).start()\n" + ADD
        assert [g.correct for g in verifier.grade([attempt(code, *RIGHT)] * 4)] == [True] * 4
        assert verifier.grade([attempt("while True: pass", *RIGHT)])[0].correct is False
        servers = [one for one in sandboxes() if one not in before]
        assert len(servers) == 2
        assert all(server.children() == [] for server in servers)
        (scratch,) = {Path(server.cmdline()[-1]) for server in servers}
        assert list(scratch.iterdir()) == []
    assert not scratch.exists()
    assert sandboxes() == before


def test_a_killed_sandbox_takes_its_attempt_with_it_and_is_an_abstention():
    with running("while True: pass") as (grading, process):
        process.parent().kill()
        (grade,) = grading.result()
        assert (grade.correct, grade.reason) == (None, DIED)
        _, alive = psutil.wait_procs([process], timeout=5.0)
        assert alive == []


def test_a_pool_works_after_a_sandbox_was_killed():
    before = sandboxes()
    with UnitTests(LIMITS, processes=1) as verifier:
        verifier.grade([attempt(ADD, *RIGHT)])
        (server,) = set(sandboxes()) - set(before)
        server.kill()
        grades = verifier.grade([attempt(ADD, *RIGHT)] * 3)
    assert all(grade.correct or grade.reason == DIED for grade in grades)
    assert sum(grade.correct is True for grade in grades) >= 2


def test_nothing_outlives_a_killed_parent():
    program = f"""
from opdcore.verifiers import Attempt
from opdcore.verifiers.unit_tests import UnitTests
from opdcore.verifiers.sandbox.confinement import Limits
verifier = UnitTests(Limits(60.0, 512 << 20), processes=2)
print(verifier._scratch.name)
print(verifier.grade([Attempt({ADD!r}, None, {RIGHT!r})])[0].correct, flush=True)
verifier.grade([Attempt("while True: pass", None, {RIGHT!r})] * 2)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    scratch = Path(parent.stdout.readline().strip())
    assert parent.stdout.readline() == "True\n"
    while len(children := psutil.Process(parent.pid).children(recursive=True)) < 4:
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=5.0)
    assert alive == []
    assert not scratch.exists()


# Where it cannot be had


@pytest.mark.skipif(os.getuid() != 0, reason="this user is plain already")
def test_a_plain_user_is_confined_as_root_is():
    """The sandbox's own program under another user, who may not be able to read this checkout."""
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    with TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "opdcore/verifiers/sandbox", f"{folder}/verifiers/sandbox")
        Path(folder, "scratch").mkdir()
        os.chown(f"{folder}/scratch", 65534, 65534)
        Path(folder).chmod(0o755)
        limits = json.dumps({"seconds": 20.0, "memory_bytes": 512 << 20})
        start = [_python_for(nobody), "-S", "-s", "-P", "-c", unit_tests._START, folder, limits]
        with subprocess.Popen(
            [*start, f"{folder}/scratch"],
            **nobody, cwd="/", env={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as server:  # fmt: skip
            assert server.stdout.readline() == '{"ready": true}\n'
            for request, correct in [
                (unit_tests._PROBE, True),
                ({"code": "", "tests": ["1/0"]}, False),
            ]:
                server.stdin.write(json.dumps(request) + "\n")
                server.stdin.flush()
                assert json.loads(server.stdout.readline())["correct"] is correct
            server.stdin.close()
        assert server.returncode == 0


def _python_for(user) -> str:
    asked = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        with suppress(OSError):
            if (
                subprocess.run([python, "-S", "-c", asked], **user, cwd="/", check=False).returncode
                == 0
            ):
                return python
    pytest.skip("no Python 3.11 that a plain user can start")


def test_a_machine_without_landlock_is_refused(monkeypatch):
    lacking = "import opdcore.verifiers.sandbox.landlock as l\nl._CREATE_RULESET = 9999\n"
    start = unit_tests._START.replace("from opdcore.v", lacking + "from opdcore.v", 1)
    monkeypatch.setattr(unit_tests, "_START", start)
    with pytest.raises(BadInput, match=r"the sandbox could not be set up.*Linux 5\.13") as refusal:
        UnitTests(LIMITS)
    assert refusal.value.info.code == "verifier.no_sandbox"
    assert refusal.value.info.field == "evaluation.verifier"


def test_the_tables_hold_this_machines_numbers():
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no header of the kernel's here")
    words = [line.split() for line in header.read_text().splitlines() if "__NR_" in line]
    numbers = {line[1].removeprefix("__NR_"): int(line[2]) for line in words if len(line) == 3}
    table = syscalls._ALLOWED.split()
    ours = dict(zip(table[::3], table[1::3], strict=True))
    assert {name: number for name, number in ours.items() if numbers[name] != int(number)} == {}
