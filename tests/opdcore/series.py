"""Synthetic series of runs with known slopes and onsets, and noise from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable

from opdcore.contract.distill import DistillStage
from opdcore.contract.positions import Positions
from opdcore.contract.verdicts import Verdict
from opdcore.monitor import Monitor

Curve = Callable[[int], float]


def flat(value: float) -> Curve:
    return lambda step: value


def towards(start: float, end: float, *, steps: int) -> Curve:
    """Halves its distance to `end` every `steps` steps."""
    return lambda step: end + (start - end) * 0.5 ** (step / steps)


def line(start: float, slope: float, *, low: float = 0.0, high: float = 1e9) -> Curve:
    return lambda step: min(high, max(low, start + slope * step))


def jump(before: float, after: float, *, at: int, over: int = 1) -> Curve:
    """`before` until step `at`, `after` from `over` steps later on."""
    return lambda step: before + (after - before) * min(1.0, max(0.0, (step - at) / over))


# As a success of the laboratory: levels, and standard deviations of one step of 64 rollouts.
HEALTHY: dict[str, Curve] = {
    "overlap_ratio": towards(0.81, 0.84, steps=15),
    "effective_overlap": towards(0.94, 0.97, steps=15),
    "top1_agreement": towards(0.98, 0.998, steps=10),
    "overlap_mass_student": towards(0.975, 0.985, steps=10),
    "overlap_mass_teacher": towards(0.975, 0.985, steps=10),
    "student_entropy": towards(0.25, 0.18, steps=15),
    "teacher_entropy": towards(0.22, 0.18, steps=15),
    "entropy_gap": towards(0.05, 0.007, steps=10),
    "reverse_kl": towards(0.11, 0.003, steps=8),
    "loss": towards(0.11, 0.003, steps=8),
    "token_reward": towards(-0.11, -0.003, steps=8),
    "grad_norm": towards(1.0, 0.2, steps=15),
    "truncation_rate": flat(0.02),
    "repetition_rate": flat(0.0),
    "rollout_accuracy": towards(0.5, 0.95, steps=8),
    "response_tokens_mean": flat(40.0),
    "incorrect_reverse_kl": towards(0.2, 0.05, steps=10),
    "control_token_share": flat(0.0),
    "reward_tail_share": flat(0.2),
    "reward_largest": flat(6.0),
}
NOISE = {
    "overlap_ratio": 0.006, "effective_overlap": 0.008, "top1_agreement": 0.004,
    "overlap_mass_student": 0.006, "overlap_mass_teacher": 0.006, "student_entropy": 0.02,
    "teacher_entropy": 0.02, "entropy_gap": 0.006, "reverse_kl": 0.015, "loss": 0.015,
    "token_reward": 0.02, "grad_norm": 0.15, "truncation_rate": 0.02, "repetition_rate": 0.004,
    "rollout_accuracy": 0.06, "response_tokens_mean": 1.5, "incorrect_reverse_kl": 0.03,
    "reward_tail_share": 0.05, "reward_largest": 1.0,
}  # fmt: skip
SHARES = ("overlap_ratio", "effective_overlap", "top1_agreement", "overlap_mass_student",
          "overlap_mass_teacher", "truncation_rate", "repetition_rate", "rollout_accuracy",
          "reward_tail_share")  # fmt: skip
SIGNED = ("token_reward",)

MISMATCH = HEALTHY | {
    "overlap_ratio": towards(0.37, 0.5, steps=40), "effective_overlap": towards(0.1, 0.4, steps=30),
    "top1_agreement": towards(0.13, 0.4, steps=30), "overlap_mass_student": flat(0.3),
    "overlap_mass_teacher": flat(0.3), "reverse_kl": towards(8.5, 4.0, steps=20),
    "loss": towards(8.5, 4.0, steps=20), "entropy_gap": flat(0.6),
    "rollout_accuracy": towards(0.5, 0.1, steps=15), "incorrect_reverse_kl": flat(8.0),
}  # fmt: skip
NOTHING_NEW = HEALTHY | {
    "overlap_ratio": flat(0.85), "effective_overlap": flat(0.98), "top1_agreement": flat(0.99),
    "reverse_kl": flat(0.006), "loss": flat(0.006), "entropy_gap": flat(0.01),
    "grad_norm": flat(0.05), "rollout_accuracy": flat(0.5), "student_entropy": flat(0.2),
    "teacher_entropy": flat(0.2), "overlap_mass_student": flat(0.98),
    "overlap_mass_teacher": flat(0.98), "incorrect_reverse_kl": flat(0.03),
}  # fmt: skip
QUIET = {key: value for key, value in NOISE.items() if key != "reverse_kl"} | {"reverse_kl": 0.001}
REVERSE = HEALTHY | {
    "reverse_kl": towards(0.03, 0.004, steps=10), "loss": towards(0.03, 0.004, steps=10),
    "rollout_accuracy": towards(0.97, 0.5, steps=12),
}  # fmt: skip


def noisy(curves: dict[str, Curve], step: int, draw: random.Random, noise: dict[str, float]):
    """The values of one step."""
    values = {
        key: curve(step) + draw.gauss(0, noise.get(key, 0.0)) for key, curve in curves.items()
    }
    values |= {key: min(1.0, max(0.0, values[key])) for key in SHARES if key in values}
    return {key: one if key in SIGNED else max(0.0, one) for key, one in values.items()}


def chunks(
    step: int, columns: dict[str, tuple[Curve, ...]], draw: random.Random, *, last: int = 200
) -> Positions:
    """Four position chunks of 25 tokens, the last of which holds `last` positions."""
    edges = (0, 25, 50, 75, 100)
    values = {
        key: tuple(max(0.0, curve(step) + draw.gauss(0, 0.02)) for curve in curves)
        for key, curves in columns.items()
    }
    return Positions(edges=edges, positions=(200, 200, 200, last), values=values)


def watched(
    curves: dict[str, Curve],
    *,
    steps: int = 150,
    stage: DistillStage | None = None,
    seed: int = 0,
    noise: dict[str, float] | None = None,
    by_chunk: dict[str, tuple[Curve, ...]] | None = None,
    last: int = 200,
) -> dict[int, Verdict]:
    """Every change of verdict by the step at which it came."""
    draw = random.Random(seed)
    monitor = Monitor(stage or DistillStage(steps=steps))
    told = {}
    for step in range(1, steps + 1):
        values = noisy(curves, step, draw, NOISE if noise is None else noise)
        positions = chunks(step, by_chunk, draw, last=last) if by_chunk else None
        verdict = monitor.observe(step, values, positions)
        if verdict is not None:
            told[step] = verdict
    return told


def codes(told: dict[int, Verdict]) -> list[str]:
    return [verdict.code for verdict in told.values()]


def first(told: dict[int, Verdict], code: str) -> int | None:
    """The step at which a code was first told."""
    return next((step for step, verdict in told.items() if verdict.code == code), None)
