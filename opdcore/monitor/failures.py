"""Detectors of runs that fail: one function for each code, from windows to a sign or none.

Signatures are those of 2604.13016 (4.1, 5.1, 6.1, B.2), 2604.08527 and 2605.11182; a figure without
a source is our choice, tried on the laboratory's runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from opdcore.monitor.signs import Setting, Sign, told
from opdcore.monitor.windows import Windows

# Falls and rises that count, beyond noise.
ACCURACY_FALL = 0.15
MASS_FALL = 0.1
OVERLAP_FALL = 0.05
ENTROPY_RISE = 0.25
# A control token in 500 is one that was not there before.
CONTROL_SHARE = 0.002
# From 2604.08527: truncation jumps from .2-.5 towards 1 while repetition leaves 0.
TRUNCATION_JUMP = 0.2
TRUNCATED = 0.9
# Loss and divergence in nats above which a mismatch is large; the laboratory's were 6 to 9.
LARGE_KL = 0.5
# What is left of the first divergence in a run that learns nothing from it.
STILL = 0.7


def stalled_no_signal(windows: Windows, setting: Setting) -> Sign | None:
    """Divergence small from the start (4.1, B.2), and rollouts no better for it.

    Where nothing grades them, the divergence and overlap must stand still besides.
    """
    start, now = windows.start("reverse_kl"), windows.now("reverse_kl")
    if start is None or now is None or not _settled(windows):
        return None
    graded = windows.start("rollout_accuracy") is not None
    if start > setting.limits.tiny_kl or _learns(windows) or not (graded or _still(windows)):
        return None
    kept = "the rollouts are right no more often" if graded else "neither it nor overlap moves"
    return Sign(
        ("reverse_kl", "loss", "grad_norm", "rollout_accuracy", "overlap_ratio", "entropy_gap"),
        f"The divergence was {told(start)} nats at the start and is {told(now)}, and {kept}.",
        "The teacher says nothing that the student does not; choose one that was trained further.",
        "high" if graded else "medium",
    )


def stalled_mismatch(windows: Windows, setting: Setting) -> Sign | None:
    """Overlap and masses low, entropy gap and loss large, from the start on (5.1, C.2)."""
    # Where accuracy falls besides, there is nothing to wait for.
    due = _settled(windows) or windows.fell("rollout_accuracy", ACCURACY_FALL)
    if not due or not _apart(windows, setting) or _learns(windows):
        return None
    overlap, divergence = windows.now("effective_overlap"), windows.now("reverse_kl")
    return Sign(
        ("effective_overlap", "top1_agreement", "overlap_mass_student", "reverse_kl", "loss",
         "entropy_gap", "rollout_accuracy"),
        f"Effective overlap began at {told(windows.start('effective_overlap'))} and is "
        f"{told(overlap)}, with a divergence of {told(divergence)} nats.",
        "Teacher and student think in different ways; stop, and begin with a cold start on the "
        "teacher's responses.",
        "high" if windows.start("rollout_accuracy") is not None else "medium",
    )  # fmt: skip


def overwrite(windows: Windows, setting: Setting) -> Sign | None:
    """Accuracy falls, held out or on the run's own prompts, while alignment improves (3.3)."""
    best, last, held_out = windows.best, windows.latest, windows.lost_accuracy()
    rollouts = windows.fell("rollout_accuracy", ACCURACY_FALL)
    if not (held_out or rollouts) or not _aligns(windows) or _apart(windows, setting):
        return None
    began, is_now = windows.start("rollout_accuracy"), windows.now("rollout_accuracy")
    if held_out and best is not None and last is not None:
        began, is_now = best.value, last.value
    where = "Held-out accuracy" if held_out else "The rollouts' accuracy"
    return Sign(
        ("accuracy" if held_out else "rollout_accuracy", "reverse_kl", "effective_overlap"),
        f"{where} fell from {told(began)} to {told(is_now)} while student and teacher agree more.",
        "The student is taught to be wrong; go back to a checkpoint before the fall, and choose a "
        "teacher that has what the student has.",
        "high" if held_out else "medium",
    )


def depth_collapse(windows: Windows, _setting: Setting) -> Sign | None:
    """Entropy rises in the last chunk first, the front moves forward, overlap drops there (6.1)."""
    start = windows.start_chunk("student_entropy")
    rises = _rises(start, windows.now_chunk("student_entropy"))
    if len(rises) < 2 or not _from_behind(rises):
        return None
    front = _front(rises)
    before = _front(_rises(start, windows.older_chunk("student_entropy")))
    drops = _overlap_drop(windows) > OVERLAP_FALL
    if not (front < before or front < len(rises) - 1) or not drops:
        return None
    return Sign(
        ("student_entropy", "overlap_ratio", "grad_norm"),
        f"In the last positions the student's entropy rose by {told(rises[-1])} nats, in the first "
        f"ones by {told(rises[0])}, and overlap fell there.",
        "Late tokens are taught by noise; go back to a checkpoint before it, and cap "
        "max_response_tokens before the front.",
    )


def repetition_collapse(windows: Windows, setting: Setting) -> Sign | None:
    """Truncation jumps, repetition leaves 0, and neither comes back by itself (2604.08527)."""
    truncated, repeats = windows.now("truncation_rate"), windows.now("repetition_rate")
    if truncated is None or repeats is None:
        return None
    limit = setting.limits.malformed_repetition
    loops = repeats >= limit and windows.rose("repetition_rate", limit / 2)
    jumped = windows.rose("truncation_rate", TRUNCATION_JUMP)
    endless = jumped and truncated >= TRUNCATED
    if not (endless or (loops and jumped) or (loops and repeats >= 4 * limit)):
        return None
    return Sign(
        ("truncation_rate", "repetition_rate", "response_tokens_mean", "overlap_ratio"),
        f"A share of {told(truncated)} of the rollouts is cut, {told(windows.start('truncation_rate'))} "
        f"at the start, and {told(repeats)} repeats itself.",
        "No run has come back from that by itself; go back to a checkpoint before it, add "
        "demonstrations and hold the student near its start.",
        "high" if loops and jumped else "medium",
    )


def biased_topk(windows: Windows, setting: Setting) -> Sign | None:
    """The un-normalised top-k loss drives probability out of the support (2605.11182)."""
    if not setting.unnormalised:
        return None
    peak, now = windows.highest.get("overlap_mass_student"), windows.now("overlap_mass_student")
    falls = peak is not None and now is not None and peak - now > MASS_FALL
    spreads = windows.rose("student_entropy", ENTROPY_RISE)
    if not (falls or (spreads and windows.fell("overlap_mass_student", MASS_FALL / 2))):
        return None
    return Sign(
        ("overlap_mass_student", "student_entropy", "effective_overlap", "truncation_rate"),
        f"The student's probability on the common tokens fell from {told(peak)} to {told(now)} under "
        "a truncated loss that is not normalised.",
        "Go back to the start with normalisation stop_gradient or renormalised.",
        "high",
    )


def mode_hacking(windows: Windows, _setting: Setting) -> Sign | None:
    """Control tokens that the student did not write before (2605.11182)."""
    start, now = windows.start("control_token_share"), windows.now("control_token_share")
    if start is None or now is None or now < CONTROL_SHARE or now < 4 * start:
        return None
    if not windows.rose("control_token_share", CONTROL_SHARE / 2):
        return None
    return Sign(
        ("control_token_share", "response_tokens_mean"),
        f"Control tokens are a share of {told(now)} of what the student writes, {told(start)} at the "
        "start.",
        "It imitates the teacher's mode; give both sides the same thinking mode, or mask special "
        "tokens.",
    )


def _settled(windows: Windows) -> bool:
    """Late enough to speak of a stall: a window's length past the start, an eighth of the stage."""
    return windows.seen >= windows.size + 3 and windows.step >= windows.steps / 8


def _still(windows: Windows) -> bool:
    """Neither the divergence nor overlap has moved beyond noise since the start."""
    start, now = windows.start("reverse_kl") or 0.0, windows.now("reverse_kl") or 0.0
    moves = windows.rose("effective_overlap", 0.02) or windows.rose("top1_agreement", 0.01)
    return now >= STILL * start - windows.noise("reverse_kl") and not moves


def _apart(windows: Windows, setting: Setting) -> bool:
    """Patterns were different at the start, and neither overlap nor divergence has come right."""
    limits = setting.limits
    starts = [windows.start(key) for key in ("effective_overlap", "top1_agreement")]
    mass = windows.start("overlap_mass_student")
    began = any(one is not None and one < limits.incompatible_overlap for one in starts)
    if not began or (mass is not None and mass > limits.overlap_mass):
        return False
    overlap, divergence = windows.now("effective_overlap"), windows.now("reverse_kl")
    stays = overlap is not None and overlap < limits.compatible_overlap
    return stays and divergence is not None and divergence > LARGE_KL


def _learns(windows: Windows) -> bool:
    """Rollouts become more often right, beyond noise."""
    return windows.rose("rollout_accuracy", 0.05)


def _aligns(windows: Windows) -> bool:
    """Student and teacher agree more than at the start, or as nearly as can be."""
    start, now = windows.start("reverse_kl"), windows.now("reverse_kl")
    if start is None or now is None:
        return windows.change("overlap_ratio") > 0
    return now < start or windows.rose("effective_overlap", 0.02)


def _rises(start: Sequence[float | None], now: Sequence[float | None]) -> list[float]:
    """By chunk, how far it is above its start; chunks without both are left out."""
    pairs = zip(start, now, strict=False)
    return [later - first for first, later in pairs if first is not None and later is not None]


def _from_behind(rises: Sequence[float]) -> bool:
    """The last chunk rose, and the first much less."""
    return rises[-1] > ENTROPY_RISE and rises[0] < rises[-1] / 2


def _front(rises: Sequence[float]) -> int:
    """The foremost chunk that rose by half of what counts; beyond the end where none did."""
    risen = [index for index, rise in enumerate(rises) if rise > ENTROPY_RISE / 2]
    return risen[0] if risen else len(rises)


def _overlap_drop(windows: Windows) -> float:
    """How far overlap fell in the last chunk."""
    falls = _rises(windows.start_chunk("overlap_ratio"), windows.now_chunk("overlap_ratio"))
    return -falls[-1] if falls else 0.0
