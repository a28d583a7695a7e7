"""The monitor: each code from a series with a known slope and onset, and peace where all is well."""

from __future__ import annotations

import json
import random

import pytest

from opdcore.contract.distill import DistillStage
from opdcore.contract.metrics import METRICS
from opdcore.contract.verdicts import DURING
from opdcore.monitor import Monitor, is_failing
from opdcore.monitor.health import DETECTORS, END_STEPS, START_STEPS
from opdcore.monitor.windows import KEYS, Windows, theil_sen
from tests.opdcore.series import (
    HEALTHY,
    MISMATCH,
    NOISE,
    NOTHING_NEW,
    QUIET,
    REVERSE,
    codes,
    first,
    flat,
    jump,
    line,
    noisy,
    towards,
    watched,
)

ONSET = 80
COLLAPSE_STEPS = 15
NOISELESS: dict[str, float] = {}


def test_there_is_a_detector_for_every_code_that_is_not_healthy():
    assert set(DETECTORS) | {"HEALTHY"} == set(DURING)


def test_the_monitor_reads_metrics_that_there_are():
    assert set(KEYS) <= METRICS.keys()


@pytest.mark.parametrize(("steps", "runs"), [(40, 12), (150, 8), (400, 2)])
def test_healthy_noisy_runs_are_never_called_failing(steps, runs):
    for seed in range(runs):
        told = watched(HEALTHY, steps=steps, seed=seed)
        assert codes(told) == ["HEALTHY"], seed


def test_runs_that_hardly_move_by_noise_alone_are_never_called_failing():
    plateau = {key: flat(curve(10_000)) for key, curve in HEALTHY.items()}
    plateau |= {"reverse_kl": flat(0.05), "incorrect_reverse_kl": flat(0.08)}
    for seed in range(4):
        assert codes(watched(plateau, seed=seed)) == ["HEALTHY"], seed


def test_a_healthy_verdict_waits_for_the_windows_to_fill():
    assert first(watched(HEALTHY, steps=40), "HEALTHY") == 10
    assert first(watched(HEALTHY, steps=150), "HEALTHY") == 15
    assert first(watched(HEALTHY, steps=400), "HEALTHY") == 20


def test_health_is_surer_where_more_of_the_alignment_improves():
    improving = watched(HEALTHY, noise=NOISELESS)
    still = watched({key: flat(0.5) for key in HEALTHY}, noise=NOISELESS)
    assert next(iter(improving.values())).confidence == "high"
    assert next(iter(still.values())).confidence == "low"


def test_a_teacher_that_says_nothing_is_named_by_a_fifth_of_the_run():
    for seed in range(3):
        told = watched(NOTHING_NEW, seed=seed, noise=QUIET)
        assert first(told, "STALLED_NO_SIGNAL") <= 30, seed
        assert is_failing(told[first(told, "STALLED_NO_SIGNAL")])


@pytest.mark.parametrize(("divergence", "stalls"), [(0.012, True), (0.03, False)])
def test_divergence_is_small_below_its_cut_off_only(divergence, stalls):
    told = watched(NOTHING_NEW | {"reverse_kl": flat(divergence)}, noise=QUIET)
    assert ("STALLED_NO_SIGNAL" in codes(told)) == stalls


def test_a_small_divergence_that_is_learned_from_is_no_stall():
    learning = NOTHING_NEW | {"rollout_accuracy": towards(0.5, 0.9, steps=10)}
    assert "STALLED_NO_SIGNAL" not in codes(watched(learning, noise=QUIET))


def test_a_divergence_that_became_small_is_success_and_no_stall():
    told = watched(HEALTHY | {"reverse_kl": towards(0.1, 0.002, steps=4)}, noise=QUIET)
    assert codes(told) == ["HEALTHY"]


def test_a_mismatch_is_named_by_a_fifth_of_the_run():
    for seed in range(3):
        told = watched(MISMATCH, seed=seed)
        assert first(told, "STALLED_MISMATCH") <= 30, seed


def test_a_mismatch_that_heals_is_taken_back():
    healing = MISMATCH | {
        "effective_overlap": jump(0.1, 0.9, at=60, over=20),
        "top1_agreement": jump(0.13, 0.95, at=60, over=20),
        "reverse_kl": jump(8.5, 0.1, at=60, over=20),
        "rollout_accuracy": jump(0.4, 0.95, at=60, over=20),
    }
    assert codes(watched(healing, noise=NOISELESS)) == ["HEALTHY", "STALLED_MISMATCH", "HEALTHY"]


@pytest.mark.parametrize(("overlap", "named"), [(0.45, True), (0.55, False)])
def test_a_mismatch_begins_below_the_lower_cut_off(overlap, named):
    start = MISMATCH | {"effective_overlap": flat(overlap), "top1_agreement": flat(overlap)}
    start |= {"rollout_accuracy": flat(0.5), "overlap_mass_student": flat(0.6)}
    assert ("STALLED_MISMATCH" in codes(watched(start, noise=NOISELESS))) == named


def test_accuracy_that_falls_while_alignment_improves_is_an_overwrite():
    for seed in range(3):
        told = watched(REVERSE, seed=seed)
        assert first(told, "OVERWRITE") <= 30, seed


@pytest.mark.parametrize(("low", "named"), [(0.85, False), (0.75, True)])
def test_a_fall_of_rollouts_accuracy_counts_beyond_its_size(low, named):
    falling = HEALTHY | {"rollout_accuracy": jump(0.95, low, at=40, over=10)}
    assert ("OVERWRITE" in codes(watched(falling))) == named


def test_an_evaluation_clearly_below_the_best_one_is_an_overwrite_at_once():
    monitor, draw = Monitor(DistillStage(steps=150)), random.Random(0)
    steady = HEALTHY | {"rollout_accuracy": flat(0.5)}
    assert monitor.accuracy(0, 0.5, 0.45, 0.55) is None
    for step in range(1, 41):
        monitor.observe(step, noisy(steady, step, draw, NOISE))
    assert monitor.accuracy(20, 0.46, 0.41, 0.51) is None
    verdict = monitor.accuracy(40, 0.3, 0.25, 0.35)
    assert (verdict.code, verdict.confidence) == ("OVERWRITE", "high")
    assert verdict.evidence[0].model_dump() == {
        "metric": "accuracy", "value": 0.3, "reference": 0.5, "low": 0.25, "high": 0.35, "step": 40
    }  # fmt: skip


@pytest.mark.parametrize(("later", "named"), [(0.95, False), (0.78, True)])
def test_a_dip_of_what_was_learned_counts_if_it_stays(later, named):
    monitor, draw = Monitor(DistillStage(steps=150)), random.Random(0)
    for step in range(1, 31):
        monitor.observe(step, noisy(HEALTHY, step, draw, NOISE))
    for step, value in ((0, 0.3), (10, 0.95), (20, 0.78), (30, later)):
        verdict = monitor.accuracy(step, value, value - 0.05, value + 0.05)
    assert (monitor.verdict.code == "OVERWRITE") == (verdict is not None) == named


def late(rise: float, first_rise: float = 0.0, drop: float = 0.15):
    """Entropies that rise from the last chunk forwards, and overlap that falls there."""
    entropies = tuple(
        jump(0.2, 0.2 + size, at=ONSET + wait, over=5)
        for size, wait in ((first_rise, 20), (first_rise, 15), (rise * 0.7, 8), (rise, 0))
    )
    overlaps = (flat(0.8), flat(0.8), flat(0.8), jump(0.8, 0.8 - drop, at=ONSET, over=5))
    return {"student_entropy": entropies, "overlap_ratio": overlaps}


def test_a_front_of_entropy_from_behind_is_a_depth_collapse_within_fifteen_steps():
    for seed in range(3):
        told = watched(HEALTHY, seed=seed, by_chunk=late(0.8))
        assert ONSET < first(told, "DEPTH_COLLAPSE") <= ONSET + COLLAPSE_STEPS, seed


def at_once(rise: float):
    """Entropies that rise in all chunks alike, and overlap that falls."""
    return late(rise) | {"student_entropy": (jump(0.2, 0.2 + rise, at=ONSET, over=5),) * 4}


@pytest.mark.parametrize(
    "columns",
    [late(0.15), late(0.8, drop=0.0), at_once(0.8)],
    ids=["a small rise", "overlap that stays", "a rise everywhere"],
)
def test_other_courses_of_entropy_are_no_depth_collapse(columns):
    assert "DEPTH_COLLAPSE" not in codes(watched(HEALTHY, by_chunk=columns))


@pytest.mark.parametrize(("last", "named"), [(40, True), (15, False)])
def test_a_rollout_that_wanders_off_alone_is_no_depth_collapse(last, named):
    rises = (0.0, 0.0, 0.15, 0.8)
    behind = {"student_entropy": tuple(jump(0.2, 0.2 + rise, at=ONSET, over=5) for rise in rises)}
    told = watched(HEALTHY, by_chunk=late(0.8) | behind, last=last)
    assert ("DEPTH_COLLAPSE" in codes(told)) == named


def test_truncation_that_jumps_with_repetition_is_named_within_fifteen_steps():
    broken = HEALTHY | {
        "truncation_rate": jump(0.1, 0.95, at=ONSET, over=10),
        "repetition_rate": jump(0.0, 0.45, at=ONSET, over=10),
    }
    for seed in range(3):
        told = watched(broken, seed=seed)
        assert ONSET < first(told, "REPETITION_COLLAPSE") <= ONSET + COLLAPSE_STEPS, seed


@pytest.mark.parametrize(
    ("truncation", "repetition", "named"),
    [(0.6, 0.1, True), (0.6, 0.01, False), (0.95, 0.0, True), (0.1, 0.03, False)],
)
def test_a_collapse_needs_repetition_or_nearly_all_rollouts_cut(truncation, repetition, named):
    series = HEALTHY | {
        "truncation_rate": jump(0.1, truncation, at=ONSET, over=5),
        "repetition_rate": jump(0.0, repetition, at=ONSET, over=5),
    }
    assert ("REPETITION_COLLAPSE" in codes(watched(series))) == named


def test_long_thinking_that_was_cut_from_the_start_is_no_collapse():
    assert codes(watched(HEALTHY | {"truncation_rate": flat(0.6)})) == ["HEALTHY"]


def test_mass_that_leaves_the_support_is_biased_only_without_normalisation():
    leaking = HEALTHY | {
        "overlap_mass_student": jump(0.98, 0.7, at=ONSET, over=10),
        "student_entropy": jump(0.2, 1.5, at=ONSET, over=10),
    }
    biased = DistillStage(steps=150, normalisation="unnormalised")
    told = watched(leaking, stage=biased)
    assert ONSET < first(told, "BIASED_TOPK") <= ONSET + COLLAPSE_STEPS
    assert "BIASED_TOPK" not in codes(watched(leaking))
    assert codes(watched(HEALTHY, stage=biased)) == ["HEALTHY"]


def test_certainty_far_beyond_the_teachers_with_falling_overlap_is_a_risk():
    sinking = HEALTHY | {
        "student_entropy": line(0.6, -0.005, low=0.05),
        "teacher_entropy": flat(0.6),
        "overlap_ratio": line(0.84, -0.001),
        "overlap_mass_student": line(0.95, 0.0003),
    }
    told = watched(sinking)
    verdict = told[first(told, "ENTROPY_COLLAPSE_RISK")]
    assert not is_failing(verdict)
    assert first(told, "ENTROPY_COLLAPSE_RISK") >= 60
    rising = sinking | {"overlap_ratio": line(0.8, 0.0002)}
    assert "ENTROPY_COLLAPSE_RISK" not in codes(watched(rising))


@pytest.mark.parametrize(
    ("divergence", "accuracy", "named"),
    [(0.004, 0.5, True), (0.1, 0.5, False), (0.004, 0.9, False)],
)
def test_a_teacher_that_agrees_with_mistakes_is_a_trap(divergence, accuracy, named):
    series = HEALTHY | {
        "incorrect_reverse_kl": flat(divergence), "rollout_accuracy": flat(accuracy)
    }  # fmt: skip
    told = watched(series, noise=NOISE | {"incorrect_reverse_kl": 0.001})
    assert ("AGREEMENT_TRAP" in codes(told)) == named


def test_spikes_are_an_instability_of_k_1_only():
    def spiky(step: int) -> float:
        return 9.0 if step % 6 == 0 else 1.0

    series = HEALTHY | {"grad_norm": spiky}
    noise = NOISE | {"grad_norm": 0.1}
    told = watched(series, stage=DistillStage(steps=150, k=1), noise=noise)
    assert "TOP1_INSTABILITY" in codes(told)
    assert codes(watched(series, noise=noise)) == ["HEALTHY"]


@pytest.mark.parametrize(
    ("before", "after", "named"), [(0.0, 0.01, True), (0.0, 0.001, False), (0.01, 0.012, False)]
)
def test_control_tokens_that_were_not_there_before_are_mode_hacking(before, after, named):
    series = HEALTHY | {"control_token_share": jump(before, after, at=ONSET, over=5)}
    assert ("MODE_HACKING" in codes(watched(series))) == named


@pytest.mark.parametrize(
    ("share", "largest", "named"), [(0.7, 30.0, True), (0.3, 30.0, False), (0.7, 5.0, False)]
)
def test_rewards_of_few_huge_tokens_have_a_heavy_tail(share, largest, named):
    series = HEALTHY | {
        "reward_tail_share": jump(0.2, share, at=ONSET), "reward_largest": flat(largest)
    }  # fmt: skip
    assert ("HEAVY_TAIL_REWARD" in codes(watched(series))) == named


def test_a_signature_must_hold_to_start_and_be_away_to_end():
    def control(step: int) -> float:
        return 0.02 if 50 < step <= 70 else 0.0

    told = watched(HEALTHY | {"control_token_share": control}, noise=NOISELESS)
    started, ended = list(told)[1:]
    assert [verdict.code for verdict in told.values()] == ["HEALTHY", "MODE_HACKING", "HEALTHY"]
    # A level changes with the third of its five steps.
    assert started == 53 + START_STEPS - 1
    assert ended == 73 + END_STEPS - 1


def test_evidence_points_at_the_step_where_the_signature_was_first_seen():
    series = HEALTHY | {"control_token_share": jump(0.0, 0.02, at=50)}
    told = watched(series, noise=NOISELESS)
    verdict = told[first(told, "MODE_HACKING")]
    assert {row.step for row in verdict.evidence} == {53}
    row = verdict.evidence[0]
    assert (row.metric, row.value, row.reference) == ("control_token_share", 0.02, 0.0)


def test_one_odd_step_changes_nothing():
    def odd(step: int) -> float:
        return 1.0 if step == 50 else 0.02

    series = HEALTHY | {"truncation_rate": odd, "repetition_rate": odd}
    assert codes(watched(series)) == ["HEALTHY"]


def test_values_that_are_missing_or_not_finite_are_left_out():
    monitor = Monitor(DistillStage(steps=150))
    draw = random.Random(0)
    for step in range(1, 151):
        values = noisy(HEALTHY, step, draw, NOISE)
        values["rollout_accuracy"] = None
        values["reverse_kl"] = float("nan") if step % 3 else values["reverse_kl"]
        monitor.observe(step, values)
    assert monitor.verdict.code == "HEALTHY"
    empty = Monitor(DistillStage(steps=150))
    for step in range(1, 151):
        empty.observe(step, {})
    assert empty.verdict.code == "HEALTHY"


def test_a_monitor_goes_on_from_its_state_as_if_it_had_never_stopped():
    draw = random.Random(3)
    rows = [noisy(REVERSE, step, draw, NOISE) for step in range(1, 61)]
    whole, resumed = Monitor(DistillStage(steps=60)), Monitor(DistillStage(steps=60))
    for step, values in enumerate(rows, start=1):
        whole.observe(step, values)
        resumed.observe(step, values)
        again = Monitor(DistillStage(steps=60))
        again.restore(json.loads(json.dumps(resumed.state())))
        resumed = again
        assert resumed.verdict == whole.verdict, step
    assert resumed.state() == json.loads(json.dumps(whole.state()))


def test_a_theil_sen_slope_is_exact_on_a_line_and_robust_to_a_third_of_outliers():
    assert theil_sen([3.0 + 0.5 * step for step in range(12)]) == pytest.approx(0.5)
    bent = [3.0 + 0.5 * step if step % 4 else 99.0 for step in range(12)]
    assert theil_sen(bent) == pytest.approx(0.5, abs=0.2)


def test_a_window_is_a_tenth_of_the_run_within_ten_and_twenty_steps():
    assert [Windows.of(steps).size for steps in (20, 150, 5000)] == [10, 15, 20]


def test_every_explanation_is_two_sentences_with_figures():
    for series, noise in (
        (HEALTHY, NOISE),
        (MISMATCH, NOISE),
        (REVERSE, NOISE),
        (NOTHING_NEW, QUIET),
    ):
        for verdict in watched(series, noise=noise).values():
            assert verdict.explanation.count(". ") == 1
            assert any(character.isdigit() for character in verdict.explanation)
