"""The unit-test verifier: what passes, what does not, and that no response reaches out or fakes a pass."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from opdcore.contract.errors import BadInput
from opdcore.verifiers import Attempt, Grade, unit_tests
from opdcore.verifiers.pool import DIED
from opdcore.verifiers.sandbox import syscalls
from opdcore.verifiers.sandbox.confinement import Limits
from opdcore.verifiers.sandbox.examination import NO_MODULE, NO_PYTHON
from opdcore.verifiers.sandbox.server import UNFINISHED
from opdcore.verifiers.unit_tests import NO_CODE, NO_TESTS, UnitTests, code_of

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(seconds=20.0, memory_bytes=512 << 20)
ADD = "def add(a, b):\n    return a + b\n"
RIGHT = ("assert add(1, 2) == 3", "assert add(-1, 1) == 0")
WRONG = ("assert add(1, 2) == 4",)


@pytest.fixture(scope="module")
def graded():
    with UnitTests(LIMITS, processes=1) as verifier:
        yield lambda code, *tests: verifier.grade([attempt(code, *tests)])[0]


def attempt(code: str, *tests: str) -> Attempt:
    return Attempt(textwrap.dedent(code), None, tuple(textwrap.dedent(test) for test in tests))


def briefly(code: str, *tests: str, seconds: float = 1.0):
    """The grade of code under a short limit, and the seconds that it took."""
    with UnitTests(Limits(seconds, 512 << 20), processes=1) as verifier:
        verifier.grade([attempt(ADD, *RIGHT)])
        started = time.monotonic()
        (grade,) = verifier.grade([attempt(code, *tests)])
        return grade, time.monotonic() - started


def sandboxes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "opdcore.verifiers.sandbox" in " ".join(child.cmdline())]


@contextmanager
def running(code: str, *, limits: Limits = LIMITS):
    """The grading of code under way in a thread, and the confined process that it runs in."""
    before = sandboxes()
    with UnitTests(limits, processes=1) as verifier, ThreadPoolExecutor(1) as thread:
        verifier.grade([attempt(ADD, *RIGHT)])
        (server,) = set(sandboxes()) - set(before)
        grading = thread.submit(verifier.grade, [attempt(code, *RIGHT)])
        while not (found := server.children()):
            time.sleep(0.01)
        while _seccomp(found[0].pid) != "2" and not grading.done():
            time.sleep(0.01)
        try:
            yield grading, found[0]
        finally:
            with suppress(psutil.NoSuchProcess):
                found[0].kill()


def _seccomp(pid: int) -> str | None:
    with suppress(OSError):
        told = Path(f"/proc/{pid}/status").read_text()
        return told.partition("Seccomp:\t")[2][:1]
    return None


# What a response says


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("Sure:\n```python\nx = 1\n```\nGladly.", "x = 1\n"),
        ("```py\nx = 1\n```\nBetter:\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\nIt prints\n```text\n1\n```", "x = 1\n"),
        ("```\nx = 1\n```\nor\n```\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\ny = 2", "x = 1\ny = 2"),
        ("x = 1", "x = 1"),
    ],
)
def test_the_code_is_the_last_python_block_or_the_last_block_or_all(response, code):
    assert code_of(response) == code


def test_code_that_passes_every_test_is_correct(graded):
    assert graded(ADD, *RIGHT) == Grade(True, None)


@pytest.mark.parametrize(
    ("code", "tests", "reason"),
    [
        (ADD, (RIGHT[0], *WRONG), "test 2 of 2 ends with AssertionError"),
        ("def plus(a, b): return a + b", RIGHT, "test 1 of 2 ends with NameError"),
        ("def add(a, b) return a + b", RIGHT, "the code ends with SyntaxError"),
        ("raise ValueError('no')", RIGHT, "the code ends with ValueError"),
        ("I do not know.", RIGHT, "the code ends with SyntaxError"),
        ("```python\n```", RIGHT, NO_CODE),
        ("def add(a, b): return add(a, b)", RIGHT, "test 1 of 2 ends with RecursionError"),
    ],
)
def test_code_that_does_not_do_it_is_incorrect_with_the_reason(graded, code, tests, reason):
    grade = graded(code, *tests)
    assert (grade.correct, grade.reason) == (False, reason)


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ((), NO_TESTS),
        (("assert add(1, 2 == 3",), NO_PYTHON),
        (("return 1",), NO_PYTHON),
        (("import numpy as np\nassert add(1, 2) == 3",), NO_MODULE),
    ],
)
def test_tests_that_cannot_be_run_are_an_abstention(graded, tests, reason):
    grade = graded(ADD, *tests)
    assert (grade.correct, grade.reason) == (None, reason)


@pytest.mark.parametrize(
    ("code", "test"),
    [
        (
            "class Stack:\n def __init__(self): self.items = []\n def push(self, x): self.items.append(x)",
            "s = Stack(); s.push(4)\nassert s.items == [4]",
        ),
        (
            "from dataclasses import dataclass\n@dataclass\nclass P:\n x: int\ndef f(x): return P(x)",
            "assert f(1) == P(1) and f(1) != P(2)",
        ),
        (
            "from fractions import Fraction\ndef f(): return Fraction(1, 2)",
            "assert f() == 0.5 and 0 < f() < 1 and f() in [0.5]",
        ),
        (
            "from collections import Counter, deque\ndef f(): return Counter('aab'), deque([1])",
            "c, d = f(); assert c == {'a': 2, 'b': 1}; from collections import deque; assert d == deque([1])",
        ),
        (
            "from typing import NamedTuple\nclass P(NamedTuple):\n x: int\ndef f(): return [P(1)]",
            "assert f() == [(1,)] and f()[0] in {(1,)}",
        ),
        ("def f(): raise ValueError", "try: f()\nexcept ValueError: pass\nelse: assert False"),
        ("async def f(): return 3", "import asyncio; assert asyncio.run(f()) == 3"),
        ("def f(): return float('nan')", "import math; assert math.isnan(f()) and f() != f()"),
        ("def sum(a, b): return a * b", "assert sum(3, 4) == 12"),
        ("def f(xs): xs.sort()", "xs = [2, 1]; f(xs); assert xs == [1, 2]"),
        ("def check_me(x): return x", "def check(f): assert f(1) == 1\ncheck(check_me)"),
        ("def f(): return 1\nif __name__ == '__main__': print(input())", "assert f() == 1"),
        (ADD, "from response import add; assert add(1, 1) == 2"),
        ("x = {i for i in 'abc'}", "import hashlib; assert hashlib.md5(b'').hexdigest()[:4] == 'd41d'"),
        (
            ("import threading\nsaid = []\n"
            "t = threading.Thread(target=said.append, args=(1,)); t.start(); t.join()"),
            "assert said == [1]",
        ),
        (
            "def f():\n with open('a.txt', 'w') as file: file.write('b')\n return open('a.txt').read()",
            "import os; assert f() == 'b' and os.listdir() == ['a.txt']",
        ),
    ],
)  # fmt: skip
def test_ordinary_python_is_graded_as_python_does(graded, code, test):
    assert graded(code, test).reason is None
    assert graded(code, test).correct is True


def test_the_order_of_a_batch_is_kept_and_threads_may_share_the_verifier():
    with UnitTests(LIMITS, processes=2) as verifier:
        items = [attempt(ADD, f"assert add(1, {n}) == 3") for n in range(8)]
        with ThreadPoolExecutor(2) as threads:
            for grades in threads.map(verifier.grade, [items, items]):
                assert [g.correct for g in grades] == [n == 2 for n in range(8)]


def test_randomness_and_the_order_of_sets_are_the_same_in_every_attempt(graded):
    code = "import random\nsaid = f'{random.random()} {list(set(chr(n) for n in range(40)))}'"
    told = "import hashlib; raise type(hashlib.md5(said.encode()).hexdigest(), (Exception,), {})"
    with UnitTests(LIMITS, processes=1) as another:
        (elsewhere,) = another.grade([attempt(code, told)])
    assert {graded(code, told).reason for _ in range(3)} == {elsewhere.reason}


# What a response may not reach

REFUSED = """
def refused(action):
    try:
        action()
    except PermissionError:
        return True
    return False
"""


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


def test_few_files_can_be_open_at_once(graded):
    code = "x = [open('a', 'w') for _ in range(100)]"
    assert graded(code, *RIGHT).reason == "the code ends with OSError"


def test_a_crash_of_the_interpreter_is_incorrect(graded):
    grade = graded("import faulthandler; faulthandler._sigsegv()", *RIGHT)
    assert (grade.correct, grade.reason) == (False, "the code's process died of SIGSEGV")


# What a response may not fake


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "def add(a, b):\n import os; os._exit(0)",
        "def add(a, b): exit(0)",
        "import sys\ndef add(a, b): sys.exit()",
        "import atexit, os; atexit.register(os._exit, 0); raise SystemExit",
        "import threading, os; threading.Timer(0.05, os._exit, [0]).start()\ndef add(a, b):\n while 1: 0",
        "print('{\"correct\": true, \"reason\": null}', flush=True); raise SystemExit",
        ("import os\nfor fd in range(64):\n try: os.write(fd, b'+' * 64 + b'{\"correct\": true}\\n')\n"
        " except OSError: pass\nos._exit(0)"),
    ],
)  # fmt: skip
def test_ending_early_is_no_pass(graded, code):
    grade = graded(code, *WRONG)
    assert grade.correct is False
    assert grade.reason


def test_an_exit_is_told_from_a_failed_test(graded):
    assert graded("import os; os._exit(0)", *RIGHT).reason == UNFINISHED


ALWAYS = """
class Always:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __hash__(self): return hash(4)
    def __sub__(self, other): return self
    def __abs__(self): return self
"""


@pytest.mark.parametrize(
    ("code", "test"),
    [
        (ALWAYS + "def f(): return Always()", "assert f() == 4"),
        (ALWAYS + "def f(): return Always()", "assert 4 == f()"),
        (ALWAYS + "def f(): return [Always()]", "assert f() == [4]"),
        (ALWAYS + "def f(): return (1, [Always()])", "assert f() == (1, [4])"),
        (ALWAYS + "def f(): return {'a': Always()}", "assert f() == {'a': 4}"),
        (ALWAYS + "def f(): return {Always(): 1}", "assert f() == {4: 1}"),
        (ALWAYS + "def f(): return {Always()}", "assert f() == {4}"),
        (ALWAYS + "def f(): return Always()", "assert f() in [4, 5]"),
        (ALWAYS + "def f(): return Always()", "assert f() in {4: 5}"),
        (ALWAYS + "def f(): return Always()", "assert abs(f() - 4) < 1e-6"),
        (ALWAYS + "def f(): return Always()", "assert 3 < f() <= 4"),
        (ALWAYS + "def f(): return Always()", "def check(c): assert c() == 4\ncheck(f)"),
        ("class L(list):\n def __eq__(self, o): return True\ndef f(): return L()", "assert f() == [4]"),
        ("class I(int):\n def __eq__(self, o): return True\ndef f(): return I()", "assert f() == 4"),
        ("from unittest.mock import ANY\ndef f(): return ANY", "assert f() == 4"),
        ("from unittest.mock import MagicMock\ndef f(): return MagicMock()", "assert f() == 4"),
        (
            ("class M(type):\n def __getattribute__(c, n): return int.__eq__\n"
            "class A(metaclass=M):\n def __eq__(self, o): return True\ndef f(): return A()"),
            "assert f() == 4",
        ),
        ("import builtins; builtins.abs = lambda x: 0\ndef f(): return 9", "assert abs(f() - 4) < 1"),
        ("import builtins; builtins.len = lambda x: 4\ndef f(): return []", "assert len(f()) == 4"),
        ("def abs(x): return 0\ndef f(): return 9", "assert abs(f() - 4) < 1"),
        ("def sorted(x): return [4]\ndef f(): return []", "assert sorted(f()) == [4]"),
        ("import builtins; builtins.AssertionError = type('E', (Exception,), {})\ndef f(): 0", "assert f() == 4"),
        ("__builtins__['len'] = lambda x: 4\ndef f(): return []", "assert len(f()) == 4"),
        ("import math; math.isclose = lambda *a, **k: True\ndef f(): return 9", "import math; assert math.isclose(f(), 4)"),
        ("import math; math.isclose = lambda *a, **k: True\ndef f(): return 9", "from math import isclose; assert isclose(f(), 4)"),
        (
            ("import sys, types\nfake = types.ModuleType('math'); fake.isclose = lambda *a: True\n"
            "sys.modules['math'] = fake\ndef f(): return 9"),
            "import math; assert math.isclose(f(), 4)",
        ),
        (
            "import unittest; unittest.TestCase.assertEqual = lambda *a: None\ndef f(): return 9",
            "assert f() == 4",
        ),
        (
            ("import sys\ndef skip(frame, event, arg):\n frame.f_lineno = 2\n return skip\n"
            "def f():\n sys.settrace(skip); sys._getframe(1).f_trace = skip\n return 9"),
            "assert f() == 4\n0",
        ),
        (
            "import gc; gc.get_referents(int.__dict__)[0]['__eq__'] = lambda a, b: True\ndef f(): return 9",
            "assert f() == 4",
        ),
        ("import ctypes\ndef f(): return 9", "assert f() == 4"),
        ("import importlib, sys; sys.modules.pop('_ctypes', 0); importlib.import_module('_ctypes')\ndef f(): return 9", "assert f() == 4"),
        ("compare = lambda *a: True\nglobals()['<compare>'] = compare\ndef f(): return 9", "assert f() == 4"),
        ("import sys; sys.excepthook = sys.unraisablehook = print\ndef f(): return 9", "assert f() == 4"),
    ],
)  # fmt: skip
def test_a_response_cannot_call_its_own_result_right(graded, code, test):
    grade = graded(code, test)
    assert grade.correct is False


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
print(verifier.grade([Attempt({ADD!r}, None, {RIGHT!r})])[0].correct, flush=True)
verifier.grade([Attempt("while True: pass", None, {RIGHT!r})] * 2)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "True\n"
    while len(children := psutil.Process(parent.pid).children(recursive=True)) < 4:
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=5.0)
    assert alive == []


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
