"""What a run is for and how it is graded: a recipe's goal and its evaluation, knob by knob.

Both hold for the whole recipe, whatever its stages do. It knows no stage.
"""

from __future__ import annotations

from typing import Literal

from opdcore.contract.document import Document, knob

GoalKind = Literal["acquire", "recover", "compress", "align"]
TargetMetric = Literal["accuracy", "response_tokens_mean"]
VerifierName = Literal[
    "none", "exact", "numeric", "choice", "math", "unit_tests", "judge", "laboratory"
]


class Goal(Document):
    """What the run is for; verdicts and outcomes are judged against it."""

    kind: GoalKind = knob(
        "acquire",
        group="goal",
        help="acquire: learn what the teacher knows and the student does not. recover: restore a "
        "skill that the student lost. compress: same answers, fewer tokens. align: adopt the "
        "teacher's manner.",
    )
    target_metric: TargetMetric = knob(
        "accuracy", group="goal", help="The evaluation metric on which the outcome is judged."
    )
    guard_metrics: tuple[TargetMetric, ...] = knob(
        (), group="goal", level="advanced", help="Evaluation metrics that may not get worse."
    )


class Evaluation(Document):
    """How held-out prompts are answered and graded: the same before, during and after the run."""

    verifier: VerifierName = knob(
        "none",
        group="evaluation",
        help="Grades a response against the prompt's answer: exact by its text, numeric by its "
        "number, choice by its letter, math by its value, judge by asking a registered model, "
        "laboratory by the built-in tasks' rules. unit_tests runs its Python code against the "
        "prompt's tests, without network and with Python's standard library alone. With none the "
        "run still works, but cannot say whether the student became more often right.",
    )
    test_limit_seconds: float = knob(
        10.0,
        group="evaluation",
        ge=0.5,
        le=600,
        unit="seconds",
        level="advanced",
        help="unit_tests: a response whose code and tests take longer, on the clock or on the "
        "processor, is incorrect.",
    )
    test_limit_mebibytes: int = knob(
        512,
        group="evaluation",
        ge=128,
        le=65_536,
        unit="MiB",
        level="advanced",
        help="unit_tests: a response whose code asks for more memory is incorrect.",
    )
    prompts: int = knob(
        512,
        group="evaluation",
        ge=1,
        le=100_000,
        unit="prompts",
        help="At most this many held-out prompts are answered, the first ones of the set.",
    )
    samples_per_prompt: int = knob(
        4,
        group="evaluation",
        ge=1,
        le=64,
        unit="responses",
        help="Responses per held-out prompt: n of avg@n and pass@n.",
    )
    temperature: float = knob(
        0.7,
        group="evaluation",
        gt=0,
        le=2,
        level="advanced",
        help="Sampling temperature of evaluations.",
    )
    sampling_top_p: float = knob(
        0.95,
        group="evaluation",
        gt=0,
        le=1,
        level="advanced",
        help="Nucleus of evaluations: 1 samples from the whole distribution.",
    )
    max_response_tokens: int = knob(
        7168,
        group="evaluation",
        ge=1,
        le=131_072,
        unit="tokens",
        help="Longer responses are cut and counted as truncated.",
    )
    teacher: bool = knob(
        True,
        group="evaluation",
        help="Evaluate the teacher too. Gap recovery is unknown without it.",
    )
