"""Detectors of risks: signatures that a run may recover from, each from windows to a sign or none.

Signatures are those of 2604.13016 (5.2, 6.3), 2606.09471, 2606.17199 and 2603.25562; a figure without
a source is our choice.
"""

from __future__ import annotations

from statistics import median

from opdcore.monitor.signs import Setting, Sign, told
from opdcore.monitor.windows import LEVEL_STEPS, SIGMA, Windows

# Student's entropy below this share of the teacher's is far below, where the teacher has any.
FAR_BELOW = 0.5
SOME_ENTROPY = 0.05
# Standard deviations from the window's median that make a spike, and how many make it unstable.
SPIKE = 6.0
SPIKES = 2
# Log-ratios of -19 and -59 nats at single tokens are reported in 2603.25562.
HUGE_REWARD = 10.0
TAIL_SHARE = 0.5
# Rollouts of which at least this share is wrong are worth learning from.
OFTEN_WRONG = 0.3


def entropy_collapse(windows: Windows, _setting: Setting) -> Sign | None:
    """Student's entropy falls far below the teacher's, overlap falls, mass rises (5.2)."""
    student, teacher = windows.now("student_entropy"), windows.now("teacher_entropy")
    if student is None or teacher is None or teacher < SOME_ENTROPY:
        return None
    sinks = windows.fell("student_entropy", 0) and windows.trend("student_entropy") <= 0
    signature = windows.fell("overlap_ratio", 0.01) and windows.change("overlap_mass_student") >= 0
    if student > FAR_BELOW * teacher or not (sinks and signature):
        return None
    return Sign(
        ("student_entropy", "teacher_entropy", "overlap_ratio", "overlap_mass_student"),
        f"The student's entropy fell to {told(student)} nats where the teacher's is {told(teacher)}, "
        "and overlap falls with it.",
        "Mix in prompts from outside, add forward KL where the teacher is uncertain, or raise the "
        "temperature.",
    )


def agreement_trap(windows: Windows, setting: Setting) -> Sign | None:
    """Divergence on wrong rollouts stays low, so they are not corrected (2606.09471)."""
    values, accuracy = windows.values("incorrect_reverse_kl"), windows.now("rollout_accuracy")
    if len(values) < windows.size or accuracy is None or accuracy > 1 - OFTEN_WRONG:
        return None
    if max(values) > setting.limits.tiny_kl or windows.rose("rollout_accuracy", 0.02):
        return None
    return Sign(
        ("incorrect_reverse_kl", "rollout_accuracy"),
        f"On wrong rollouts the divergence is {told(median(values))} nats, while only "
        f"{told(accuracy)} of the rollouts are right.",
        "The teacher agrees with the mistakes; end or mask rollouts after them, or change the teacher.",
    )


def top1_instability(windows: Windows, setting: Setting) -> Sign | None:
    """With k = 1, sudden spikes of overlap, entropy or gradient norm (6.3)."""
    if not setting.top1:
        return None
    keys = ("grad_norm", "student_entropy", "overlap_ratio")
    spiky = [key for key in keys if _spikes(windows.values(key)) >= SPIKES]
    if not spiky:
        return None
    return Sign(
        tuple(spiky),
        f"With k = 1, {', '.join(key.replace('_', ' ') for key in spiky)} jumped "
        f"{_spikes(windows.values(spiky[0]))} times within {len(windows.values(spiky[0]))} steps.",
        "Raise k to at least 4, or choose form sampled.",
    )


def heavy_tail(windows: Windows, _setting: Setting) -> Sign | None:
    """One token in a thousand holds most of the reward, with huge log-ratios (2606.17199)."""
    share, largest = windows.now("reward_tail_share"), windows.now("reward_largest")
    if share is None or largest is None or share < TAIL_SHARE or largest < HUGE_REWARD:
        return None
    return Sign(
        ("reward_tail_share", "reward_largest", "token_reward", "grad_norm"),
        f"One token in a thousand holds {told(share)} of the reward, up to {told(largest)} nats.",
        "Set reward_clamp, mask special tokens, or choose a top-k form.",
    )


def _spikes(values: list[float]) -> int:
    """Values far from the window's median, in its own deviations."""
    if len(values) < 2 * LEVEL_STEPS:
        return 0
    middle = median(values)
    spread = SIGMA * median(abs(value - middle) for value in values)
    return sum(abs(value - middle) > SPIKE * spread for value in values) if spread else 0
