"""Each verifier's findings on rows as people write them, and the math verifier's hard limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import psutil
import pytest

from opdcore import verifiers
from opdcore.contract.evaluation import Evaluation, VerifierName
from opdcore.contract.job import JudgeEndpoint
from opdcore.verifiers import Attempt
from opdcore.verifiers.math import Math
from opdcore.verifiers.pool import DIED, TIMED_OUT

ROOT = Path(__file__).resolve().parents[2]
GSM8K = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72"
)
HANGS = Attempt(r"So it is \boxed{9^{9^{9^{9}}}}.", "4")


def correct(name: str, response: str, answer: str | None) -> bool | None:
    with verifiers.open(Evaluation(verifier=name)) as verifier:
        assert verifier is not None
        assert verifier.name == name
        (grade,) = verifier.grade([Attempt(response, answer)])
    assert (grade.reason is None) == (grade.correct is True)
    return grade.correct


def test_no_verifier_is_none():
    with verifiers.open(Evaluation(verifier="none")) as verifier:
        assert verifier is None


@pytest.mark.parametrize("name", get_args(VerifierName))
def test_every_verifier_of_the_contract_opens_under_its_name(name):
    judge = JudgeEndpoint(base_url="http://127.0.0.1:9", model="any")
    with verifiers.open(Evaluation(verifier=name), judge=judge) as verifier:
        assert (verifier.name if verifier else "none") == name


@pytest.mark.parametrize("name", ["exact", "numeric", "choice", "laboratory"])
def test_without_a_reference_answer_a_verifier_abstains(name):
    assert correct(name, "Answer: 4", None) is None


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("We think.\nAnswer:  New   York ", "New York", True),
        ("We think.\nNew York\n\n", "New York", True),
        ("Answer: Rome\nNo. **Answer:** Paris\nGladly.", "Paris", True),
        ("Answer:\n\nParis", "Paris", True),
        ("It is Paris", "Paris", False),
        ("Answer: paris", "Paris", False),
        ("#### 72", GSM8K, True),
        ("", "Paris", False),
    ],
)
def test_exact_compares_the_marked_answer_or_the_final_line(response, answer, expected):
    assert correct("exact", response, answer) is expected


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("48 + 24 = 72 clips.\n#### 72", GSM8K, True),
        ("She sold 48 in April and 24 in May, so 72.", GSM8K, True),
        ("She sold 72 in all, 48 of them in April.", GSM8K, False),
        ("The answer is $1,234.50.", "1234.5", True),
        ("Answer: 3 + 4 = 7 apples for 2 people", "7", True),
        (r"Thus \boxed{\frac{3}{4}}, by rule 12.", "0.75", True),
        (r"Thus \boxed{1\frac{1}{2}}", "1.5", True),
        ("1 1/2", "3/2", True),
        ("Answer: 1/3", "0.3333333", True),
        ("Answer: 1/3", "0.33", False),
        ("so it drops by \u22127", "-7", True),
        ("pages 10-12", "12", True),
        ("Answer: 20%", "20", True),
        (r"\boxed{20\%}", "0.2", True),
        ("Answer: 20", "20%", True),
        ("Answer: 20%", "0.2%", False),
        ("Answer: 1e3", "1,000", True),
        (r"\boxed{12{,}345}", "12345", True),
        ("Answer: 1/0", "1", False),
        ("Answer: none of them", "1", False),
        ("9" * 500, "1", False),
        ("no number", "1", False),
        ("Answer: 4", "four", None),
    ],
)
def test_numeric_reads_numbers_as_people_write_them(response, answer, expected):
    assert correct("numeric", response, answer) is expected


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("Answer: B", "B", True),
        ("The answer is **(b)**, since A is wrong.", "(B)", True),
        (r"\boxed{\text{C}}", "C", True),
        ("Rivers first.\nD) the Rhine", "D", True),
        ("I would take (A). Not (B)? No: (A), I am sure", "A", True),
        ("Answer: option E.", "E", True),
        ("Answer: A or B", "A", False),
        ("A cat sat there.", "A", False),
        ("Answer: Because", "B", False),
        ("Answer: C", "B", False),
        ("", "B", False),
        ("Answer: C", "Paris", None),
    ],
)
def test_choice_wants_one_letter_from_a_to_e(response, answer, expected):
    assert correct("choice", response, answer) is expected


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        (" So a: 4 plus 3 is 2, 0 plus 2 is 2. Answer: 2", "2", True),
        (" take a add 3 to 4 yields 2/ add 2 to 0 yields 2~ result = 2", "2", True),
        (
            " Again step 1 reverse: mint gray. Answer: mint gray lime plum.",
            "mint gray lime plum",
            True,
        ),
        (" Answer: mint gray plum lime.", "mint gray lime plum", False),
        (" So a: 4 plus 3 is 2", "2", False),
        (" Answer: 2", " ", None),
    ],
)
def test_laboratory_accepts_either_style(response, answer, expected):
    assert correct("laboratory", response, answer) is expected


@pytest.fixture(scope="module")
def math():
    with Math(limit_seconds=5.0, processes=1) as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("48 + 24 = 72 clips.\n#### 72", GSM8K, True),
        ("The answer is $73.", GSM8K, False),
        (r"Hence \boxed{\frac{2\sqrt{3}}{2}}.", r"\sqrt{3}", True),
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        (r"\boxed{x^2+2x+1}", "$(x+1)^2$", True),
        (r"\boxed{(1, 3)}", "(1,2)", False),
        ("I do not know.", "4", False),
        (r"\boxed{4}", r"\frac{", None),
        (r"\boxed{4}", "", None),
        ("4", None, None),
    ],
)
def test_math_judges_by_value_and_abstains_where_the_reference_is_unreadable(
    math, response, answer, expected
):
    assert math.grade([Attempt(response, answer)])[0].correct is expected


def test_math_keeps_the_order_of_a_batch(math):
    items = [Attempt(rf"\boxed{{{n % 3}}}", str(n % 2)) for n in range(60)]
    grades = math.grade(items)
    assert [grade.correct for grade in grades] == [n % 3 == n % 2 for n in range(60)]


def test_a_hang_is_cut_within_its_limit_and_the_pool_works_after_it():
    with Math(limit_seconds=1.0, processes=1) as math:
        math.grade([Attempt("4", "4")])
        started = time.monotonic()
        grades = math.grade([Attempt("4", "4"), HANGS])
        assert 0.9 < time.monotonic() - started < 3.0
        assert [grade.correct for grade in grades] == [True, None]
        assert grades[1].reason == TIMED_OUT
        assert [g.correct for g in math.grade([Attempt("4", "4"), Attempt("5", "4")])] == [
            True,
            False,
        ]


def test_a_killed_grading_process_costs_one_abstention_at_most():
    before = _grading_processes(os.getpid())
    with Math(limit_seconds=5.0, processes=1) as math:
        math.grade([Attempt("4", "4")])
        (child,) = set(_grading_processes(os.getpid())) - set(before)
        child.kill()
        grades = math.grade([Attempt("4", "4")] * 3)
        assert all(g.correct or g.reason == DIED for g in grades)
        assert sum(g.correct is True for g in grades) >= 2


def test_close_ends_the_processes_even_a_hung_one():
    before = _grading_processes(os.getpid())
    with Math(limit_seconds=0.5, processes=2) as math:
        math.grade([HANGS])
        assert len(_grading_processes(os.getpid())) == len(before) + 2
    assert _grading_processes(os.getpid()) == before


def test_math_grades_outside_the_main_thread(math):
    with ThreadPoolExecutor(max_workers=2) as threads:
        rounds = [threads.submit(math.grade, [Attempt(str(n), "4")]) for n in range(6)]
        assert [r.result()[0].correct for r in rounds] == [n == 4 for n in range(6)]


def test_grading_processes_do_not_outlive_a_killed_parent():
    program = f"""
from opdcore.verifiers import Attempt
from opdcore.verifiers.math import Math
math = Math(limit_seconds=1.0, processes=2)
print(math.grade([Attempt("4", "4")])[0].correct, flush=True)
while True:
    math.grade([Attempt({HANGS.response!r}, "4")] * 2)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "True\n"
    time.sleep(0.3)
    children = _grading_processes(parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=5.0)
    assert len(children) == 2
    assert alive == []


def test_importing_the_verifiers_loads_neither_torch_nor_math_verify():
    program = (
        "import sys, opdcore.verifiers as v\n"
        "from opdcore.contract.evaluation import Evaluation\n"
        "with v.open(Evaluation(verifier='numeric')): pass\n"
        "print({'torch', 'transformers', 'math_verify', 'sympy'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def _grading_processes(parent: int) -> list[psutil.Process]:
    children = psutil.Process(parent).children(recursive=True)
    return [child for child in children if "opdcore.verifiers.math_child" in child.cmdline()]
