"""Verifiers: each grades responses against what their prompt says. None stands for a run without one.

Importing this package loads neither torch nor math-verify. It knows no stage.

    with verifiers.open(Evaluation(verifier="numeric")) as verifier:
        grades = verifier.grade([Attempt(response, answer)])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opdcore.contract.errors import BadInput
from opdcore.contract.evaluation import Evaluation, VerifierName
from opdcore.contract.job import JudgeEndpoint
from opdcore.verifiers.choice import Choice
from opdcore.verifiers.exact import Exact
from opdcore.verifiers.grading import Attempt, Grade, Verifier
from opdcore.verifiers.judge import Judge
from opdcore.verifiers.laboratory import Laboratory
from opdcore.verifiers.math import Math
from opdcore.verifiers.numeric import Numeric
from opdcore.verifiers.sandbox.confinement import Limits
from opdcore.verifiers.unit_tests import UnitTests

__all__ = ["Attempt", "Grade", "Verifier", "open"]

Opened = AbstractContextManager[Verifier | None]


@contextmanager
def open(  # noqa: A001 - `verifiers.open` reads as it is.
    evaluation: Evaluation, *, judge: JudgeEndpoint | None = None
) -> Iterator[Verifier | None]:
    """Open the evaluation's verifier, and end its processes afterwards.

    Raises BadInput for `math` where math-verify is not installed, for `unit_tests` where code cannot be
    confined, and for `judge` without an endpoint or its key.
    """
    opens: dict[VerifierName, Callable[[], Opened]] = {
        "none": lambda: nullcontext(None),
        "exact": lambda: nullcontext(Exact()),
        "numeric": lambda: nullcontext(Numeric()),
        "choice": lambda: nullcontext(Choice()),
        "math": Math,
        "unit_tests": lambda: UnitTests(_limits(evaluation)),
        "judge": lambda: Judge(_registered(judge)),
        "laboratory": lambda: nullcontext(Laboratory()),
    }
    with opens[evaluation.verifier]() as verifier:
        yield verifier


def _limits(evaluation: Evaluation) -> Limits:
    return Limits(
        seconds=evaluation.test_limit_seconds, memory_bytes=evaluation.test_limit_mebibytes << 20
    )


def _registered(judge: JudgeEndpoint | None) -> JudgeEndpoint:
    if judge is None:
        raise BadInput(
            "judge.missing",
            "The recipe's verifier is judge, and the job names no endpoint to ask.",
            remedy="Give the job a judge with base_url and model, or choose another verifier.",
            field="judge",
        )
    return judge
