"""The unit-test verifier: what passes, what does not, and that no response fakes a pass."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from opdcore import verifiers
from opdcore.contract.evaluation import Evaluation
from opdcore.verifiers import Grade
from opdcore.verifiers.sandbox.examination import NO_MODULE, NO_PYTHON
from opdcore.verifiers.sandbox.server import UNFINISHED
from opdcore.verifiers.unit_tests import NO_CODE, NO_TESTS, UnitTests, code_of
from tests.opdcore.sandboxes import (
    ADD,
    LIMITS,
    RIGHT,
    WRONG,
    attempt,
)


@pytest.fixture(scope="module")
def graded():
    with UnitTests(LIMITS, processes=1) as verifier:
        yield lambda code, *tests: verifier.grade([attempt(code, *tests)])[0]


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


def test_the_limits_are_the_evaluations():
    evaluation = Evaluation(verifier="unit_tests", test_limit_seconds=0.5, test_limit_mebibytes=128)
    with verifiers.open(evaluation) as verifier:
        items = [attempt("while True: pass", *RIGHT), attempt("x = bytes(100 << 20)", *RIGHT)]
        grades = verifier.grade(items)
    assert grades[0].reason == "the code ran longer than 0.5 seconds"
    assert grades[1].reason == "the code ends with MemoryError"


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
