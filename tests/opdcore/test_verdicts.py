"""Verdicts before a run, from the laboratory's figures and from both sides of each cut-off."""

from __future__ import annotations

import random

import pytest

from opdcore.calibration import laboratory
from opdcore.contract.distill import DistillStage
from opdcore.contract.evaluation import Goal
from opdcore.contract.positions import Positions
from opdcore.contract.probe import PROBE_METRICS, Finding, Probe
from opdcore.contract.verdicts import BEFORE
from opdcore.verdicts import judge
from opdcore.verdicts.judgement import TESTS
from opdcore.verdicts.readings import side
from tests.opdcore.probes import (
    MISMATCH,
    NOTHING_NEW,
    RESCUED,
    REVERSE,
    SUCCESS,
    around,
    depth,
    judged,
    make_probe,
    refusal,
)

UNNORMALISED = DistillStage(normalisation="unnormalised")


def told(probe: Probe, **options) -> tuple[str, str, str]:
    verdict = judged(probe, **options)
    return verdict.code, verdict.go, verdict.confidence


def test_the_tests_come_in_the_order_of_the_table_of_verdicts():
    assert (*TESTS, "GO") == tuple(BEFORE)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (SUCCESS, ("GO", "go", "high")),
        (MISMATCH, ("PATTERN_MISMATCH", "no_go", "high")),
        (NOTHING_NEW, ("NO_NEW_KNOWLEDGE", "no_go", "high")),
        (REVERSE, ("REGRESSION_RISK", "no_go", "high")),
        (RESCUED, ("GO", "go", "medium")),
    ],
)
def test_the_laboratorys_controls_get_the_verdict_of_their_outcome(values, expected):
    assert told(make_probe(values)) == expected


def test_a_mild_mismatch_that_learned_is_let_go():
    values = SUCCESS | {"effective_overlap": 0.67, "top1_agreement": 0.7, "reverse_kl": 2.0,
                        "overlap_mass_student": 0.78, "overlap_mass_teacher": 0.78}  # fmt: skip
    assert told(make_probe(values))[:2] == ("GO", "go")


def test_each_test_that_speaks_first_hides_those_after_it():
    broken = MISMATCH | {"repetition_rate": 0.4, "accuracy_gap": -0.4}
    findings = (refusal("setup.privileged_per_prompt"), refusal())
    codes = [
        judged(make_probe(broken, findings=findings), objective=UNNORMALISED).code,
        judged(make_probe(broken, findings=findings[:1]), objective=UNNORMALISED).code,
        judged(make_probe(broken), objective=UNNORMALISED).code,
        judged(make_probe(broken, repetition_rate=0.0), objective=UNNORMALISED).code,
        judged(make_probe(MISMATCH, teacher_on_failed=0.1), objective=UNNORMALISED).code,
        judged(make_probe(NOTHING_NEW, hand_off=FADING), objective=UNNORMALISED).code,
        judged(make_probe(hand_off=FADING), objective=UNNORMALISED).code,
        judged(make_probe(), objective=UNNORMALISED).code,
        judged(make_probe()).code,
    ]
    assert codes == list(BEFORE)


def test_a_refusal_of_the_set_up_is_certain_and_needs_no_rollouts():
    verdict = judged(make_probe({}, prompts=0, verifier="none", findings=(refusal(),)))
    assert (verdict.code, verdict.confidence) == ("INVALID_SETUP", "high")
    assert "Id 7 is 'a' and 'b'" in verdict.explanation
    assert "Choose another." in verdict.explanation


def test_a_warning_of_the_set_up_is_no_verdict_but_lowers_confidence():
    warning = Finding(code="setup.stop_ids_differ", severity="warning", message="m.", remedy="r.")
    assert told(make_probe(findings=(warning,))) == ("GO", "go", "medium")


@pytest.mark.parametrize(
    ("metric", "fine", "broken"),
    [("repetition_rate", 0.05, 0.15), ("truncation_rate", 0.9, 0.96)],
)
def test_rollouts_are_malformed_where_the_whole_interval_is_above_the_cut_off(metric, fine, broken):
    assert judged(make_probe(**{metric: around(fine, 0.05)})).code == "GO"
    assert judged(make_probe(**{metric: around(broken, 0.05)})).code == "STUDENT_MALFORMED"


def test_long_thinking_that_is_often_cut_is_not_malformed():
    assert judged(make_probe(truncation_rate=0.6)).code == "GO"


def test_repetition_is_surer_than_truncation():
    assert judged(make_probe(repetition_rate=0.4)).confidence == "high"
    assert judged(make_probe(truncation_rate=0.99)).confidence == "medium"


def test_a_student_apart_and_unsure_of_its_own_words_is_garbled():
    apart = {"effective_overlap": 0.24, "top1_agreement": 0.35, "reverse_kl": 5.6,
             "overlap_mass_student": 0.83, "overlap_mass_teacher": 0.95, "teacher_entropy": 0.5}  # fmt: skip
    garbled = make_probe(SUCCESS | apart | {"student_entropy": 1.2})
    assert told(garbled) == ("STUDENT_MALFORMED", "undecided", "low")
    surer = make_probe(SUCCESS | apart | {"student_entropy": 0.3})
    assert judged(surer).code != "STUDENT_MALFORMED"


def test_an_ancestor_is_a_risk_for_acquiring_and_fine_for_recovering():
    better = make_probe(relation="ancestor")
    assert told(better) == ("REGRESSION_RISK", "no_go", "low")
    assert told(better, goal="recover") == ("GO", "go", "high")


def test_a_teacher_that_is_clearly_worse_restores_nothing():
    assert judged(make_probe(REVERSE), goal="recover").code == "REGRESSION_RISK"


def test_an_ancestor_that_is_worse_is_surer_than_one_by_word_alone():
    unknown = {key: value for key, value in SUCCESS.items() if key != "accuracy_gap"}
    lineage = make_probe(unknown, relation="ancestor")
    stated = make_probe(unknown, relation="ancestor", stated=True)
    assert judged(make_probe(REVERSE, relation="ancestor")).confidence == "high"
    assert judged(lineage).confidence == "medium"
    assert judged(stated).confidence == "low"


def test_a_lower_score_alone_is_of_medium_confidence():
    probe = make_probe(REVERSE, hand_off_25=0.0, hand_off_50=0.0, hand_off_75=0.0, hand_off_min=0.0)
    assert told(probe) == ("REGRESSION_RISK", "no_go", "medium")


def test_fewer_tokens_may_be_learned_from_a_teacher_that_is_less_often_right():
    goal = Goal(kind="compress", target_metric="response_tokens_mean")
    guarded = goal.model_copy(update={"guard_metrics": ("accuracy",)})
    options = {"objective": None, "calibration": laboratory()}
    assert judge(make_probe(REVERSE), goal=goal, **options).code != "REGRESSION_RISK"
    assert judge(make_probe(REVERSE), goal=guarded, **options).code == "REGRESSION_RISK"


def test_no_single_metric_makes_a_mismatch():
    for metric in ("effective_overlap", "top1_agreement", "overlap_mass_student", "overlap_ratio",
                   "style_mass", "hand_off_min"):  # fmt: skip
        verdict = judged(make_probe(**{metric: MISMATCH[metric]}))
        assert (verdict.code, verdict.go) != ("PATTERN_MISMATCH", "no_go"), metric


def test_a_teacher_at_home_in_the_students_text_outweighs_low_overlap():
    home = {"hand_off_25": 0.2, "hand_off_50": 0.1, "hand_off_75": 0.0, "hand_off_min": 0.0}
    assert judged(make_probe(MISMATCH, **home)).code == "GO"


@pytest.mark.parametrize(
    ("hand_off", "go", "confidence"),
    [(-0.5, "no_go", "high"), (-0.25, "no_go", "high"), (-0.05, "go", "medium")],
)
def test_the_hand_off_decides_between_its_two_cut_offs(hand_off, go, confidence):
    verdict = judged(make_probe(MISMATCH, hand_off_min=hand_off))
    assert (verdict.go, verdict.confidence) == (go, confidence)


def test_low_overlap_alone_is_of_medium_confidence():
    values = {key: value for key, value in MISMATCH.items() if key != "style_mass"}
    assert told(make_probe(values, hand_off_min=-0.25)) == ("PATTERN_MISMATCH", "no_go", "medium")


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        (0.44, ("PATTERN_MISMATCH", "no_go")),
        (0.55, ("PATTERN_MISMATCH", "undecided")),
        (0.66, ("GO", "go")),
    ],
)
def test_overlap_has_a_grey_zone_between_its_cut_offs(overlap, expected):
    probe = make_probe(
        MISMATCH, effective_overlap=overlap, top1_agreement=overlap, hand_off_min=-0.25
    )
    assert told(probe)[:2] == expected


def test_an_interval_across_a_cut_off_decides_nothing():
    apart = {"top1_agreement": 0.62, "hand_off_min": -0.25}
    sure = make_probe(MISMATCH, **apart, effective_overlap=around(0.46, 0.03))
    unsure = make_probe(MISMATCH, **apart, effective_overlap=around(0.46, 0.06))
    assert told(sure)[1] == "no_go"
    assert told(unsure)[1:] == ("undecided", "low")


def test_a_hand_off_clearly_lost_in_the_grey_zone_is_a_no_of_low_confidence():
    probe = make_probe(MISMATCH, effective_overlap=0.55, top1_agreement=0.58)
    assert told(probe) == ("PATTERN_MISMATCH", "no_go", "low")


def test_nearly_all_mass_on_common_tokens_is_no_mismatch_but_open():
    probe = make_probe(
        MISMATCH, overlap_mass_student=0.98, overlap_mass_teacher=0.98, hand_off_min=-0.25
    )
    assert told(probe) == ("PATTERN_MISMATCH", "undecided", "low")


@pytest.mark.parametrize(
    ("mass", "expected"), [(0.12, ("undecided", "low")), (0.03, ("no_go", "high"))]
)
def test_a_student_that_writes_the_teachers_style_now_and_then_may_heal_itself(mass, expected):
    probe = make_probe(MISMATCH, style_mass=around(mass, 0.02))
    assert told(probe)[1:] == expected


def test_an_independent_sign_and_an_interval_away_from_the_control_make_it_sure():
    loose = make_probe(MISMATCH, effective_overlap=around(0.3, 0.1), style_mass=around(0.02, 0.02))
    assert told(loose) == ("PATTERN_MISMATCH", "no_go", "high")
    assert told(make_probe(MISMATCH, prompts=16)) == ("PATTERN_MISMATCH", "no_go", "low")


@pytest.mark.parametrize(("solved", "expected"), [(0.3, "no_go"), (0.5, "undecided"), (0.7, "go")])
def test_what_the_teacher_solves_where_the_student_failed_is_news_above_its_cut_off(
    solved, expected
):
    probe = make_probe(
        accuracy_gap=around(0.05, 0.2), teacher_on_failed=solved, hand_off_25=0.06,
        hand_off_50=around(0.06, 0.07), hand_off_75=around(0.06, 0.07),
    )  # fmt: skip
    probe = probe.model_copy(
        update={"measures": probe.measures | {"hand_off_25": around(0.06, 0.07)}}
    )
    assert told(probe)[1] == expected


def test_a_gap_within_noise_needs_more_prompts_where_nothing_else_speaks():
    values = {key: value for key, value in SUCCESS.items() if not key.startswith("hand_off")}
    del values["teacher_on_failed"]
    assert told(make_probe(values, accuracy_gap=around(0.08, 0.12))) == (
        "NO_NEW_KNOWLEDGE", "undecided", "low"
    )  # fmt: skip
    assert told(make_probe(values, accuracy_gap=around(0.02, 0.05))) == (
        "NO_NEW_KNOWLEDGE", "no_go", "medium"
    )  # fmt: skip
    assert told(make_probe(values, accuracy_gap=around(0.2, 0.1)))[1] == "go"


def test_a_teacher_of_the_same_pipeline_that_scores_higher_gets_low_confidence_at_most():
    higher = make_probe(relation="same_pipeline")
    silent = make_probe(NOTHING_NEW, relation="same_pipeline", accuracy_gap=0.2)
    assert told(higher) == ("NO_NEW_KNOWLEDGE", "undecided", "low")
    assert told(silent) == ("NO_NEW_KNOWLEDGE", "no_go", "low")
    assert told(make_probe(NOTHING_NEW, relation="same_pipeline"))[2] == "high"
    unsure = make_probe(NOTHING_NEW, relation="same_pipeline", accuracy_gap=around(0.07, 0.2))
    assert told(unsure) == ("NO_NEW_KNOWLEDGE", "no_go", "low")
    assert "none could be built" in judged(unsure).explanation


def test_the_student_as_its_own_teacher_has_nothing_new():
    identical = make_probe(
        NOTHING_NEW, relation="identical", reverse_kl=around(0, 0), effective_overlap=around(1, 0)
    )
    assert told(identical) == ("NO_NEW_KNOWLEDGE", "no_go", "high")


def test_another_manner_is_enough_where_the_goal_is_not_to_acquire():
    same_skill = SUCCESS | {"accuracy_gap": 0.0, "teacher_on_failed": 0.2}
    assert judged(make_probe(same_skill), goal="compress").code == "GO"
    assert judged(make_probe(NOTHING_NEW), goal="compress").code == "NO_NEW_KNOWLEDGE"


FADING = (
    depth(around(0.37, 0.05), tokens=1000),
    depth(around(0.27, 0.05), tokens=4000),
    depth(around(0.02, 0.05), tokens=16000),
)


def test_help_that_falls_to_nothing_with_depth_is_a_horizon_risk():
    verdict = judged(make_probe(hand_off=FADING))
    assert (verdict.code, verdict.go, verdict.confidence) == ("HORIZON_RISK", "undecided", "medium")
    assert "0.37 at token 1000 to 0.02 at token 16000" in verdict.explanation
    assert [row.value for row in verdict.evidence] == [0.37, 0.02]


def test_help_that_is_still_there_at_the_end_is_none():
    shares = (depth(around(0.2, 0.05), share=0.25), depth(around(0.1, 0.05), share=0.75))
    noisy = (depth(around(0.2, 0.05), share=0.25), depth(around(0.02, 0.2), share=0.75))
    assert judged(make_probe(hand_off=FADING[:2])).code == "GO"
    assert judged(make_probe(hand_off=shares)).code == "GO"
    assert judged(make_probe(hand_off=noisy)).code == "GO"


@pytest.mark.parametrize(
    ("top1", "divergence", "code"),
    [
        ((0.85, 0.5), (0.3, 4.4), "HORIZON_RISK"),
        ((0.45, 0.3), (2.0, 9.0), "PATTERN_MISMATCH"),
        ((0.85, 0.5), (0.3, 0.9), "PATTERN_MISMATCH"),
        ((0.85, 0.5), (1.5, 4.4), "PATTERN_MISMATCH"),
    ],
)
def test_patterns_that_part_within_a_response_are_a_matter_of_depth(top1, divergence, code):
    values = {"top1_agreement": top1, "reverse_kl": divergence, "teacher_entropy": (0.4, 0.6)}
    chunks = Positions(edges=(0, 50, 100), positions=(10, 10), values=values)
    verdict = judged(make_probe(MISMATCH, chunks=chunks))
    assert (verdict.code, verdict.go) == (code, "no_go")
    if code == "HORIZON_RISK":
        assert verdict.confidence == "medium"
        assert "from 0.30 to 4.40 nats" in verdict.explanation


def test_a_few_rollouts_that_wandered_off_do_not_part_the_patterns():
    values = {"top1_agreement": (0.9, 0.8, 0.6), "reverse_kl": (0.2, 0.3, 4.0)}
    for late, code in ((400, "HORIZON_RISK"), (30, "GO")):
        chunks = Positions(edges=(0, 50, 100, 150), positions=(400, 400, late), values=values)
        assert judged(make_probe(chunks=chunks)).code == code


@pytest.mark.parametrize(
    ("gains", "divergence", "told_of"),
    [
        ((0.2, -0.3), (0.15, 0.8), ("HORIZON_RISK", "no_go", "medium")),
        ((0.2, -0.3), (0.15, 0.2), ("HORIZON_RISK", "undecided", "medium")),
        ((0.2, 0.1), (0.15, 0.8), ("GO", "go", "medium")),
    ],
)
def test_help_that_turns_to_harm_late_is_a_horizon_risk(gains, divergence, told_of):
    hand_off = tuple(
        depth(around(gain, 0.1), share=share)
        for gain, share in zip(gains, (0.25, 0.75), strict=True)
    )
    chunks = Positions(edges=(0, 50, 100), positions=(10, 10), values={"reverse_kl": divergence})
    found = make_probe(
        hand_off=hand_off, chunks=chunks, hand_off_75=gains[1], hand_off_min=gains[1]
    )
    assert told(found)[:2] == told_of[:2]
    if told_of[0] == "HORIZON_RISK":
        assert told(found)[2] == told_of[2]


def test_a_teacher_that_grows_lost_by_position_is_a_horizon_risk_of_low_confidence():
    def chunks(entropy: tuple[float, float], top1: tuple[float, float]) -> Positions:
        values = {"teacher_entropy": entropy, "top1_agreement": top1}
        return Positions(edges=(0, 50, 100), positions=(10, 10), values=values)

    lost = make_probe(chunks=chunks((0.2, 0.9), (0.89, 0.59)))
    assert told(lost) == ("HORIZON_RISK", "undecided", "low")
    assert judged(make_probe(chunks=chunks((0.2, 0.9), (0.89, 0.8)))).code == "GO"
    assert judged(make_probe(chunks=chunks((0.2, 0.35), (0.89, 0.59)))).code == "GO"


@pytest.mark.parametrize(
    ("objective", "code"),
    [
        (UNNORMALISED, "BAD_OBJECTIVE"),
        (DistillStage(k=1), "BAD_OBJECTIVE"),
        (DistillStage(k=4), "GO"),
        (DistillStage(form="sampled", k=1), "GO"),
        (DistillStage(normalisation="unnormalised", divergence="forward"), "GO"),
        (DistillStage(), "GO"),
    ],
)
def test_objectives_that_collapse_are_named(objective, code):
    assert judged(make_probe(), objective=objective).code == code


def test_without_a_verifier_the_explanation_says_which_verdicts_remain():
    for values in (SUCCESS, MISMATCH, NOTHING_NEW):
        verdict = judged(make_probe(values, verifier="none"), family="laboratory")
        assert "Without a verifier only" in verdict.explanation
    assert told(make_probe(verifier="none"), family="laboratory") == ("GO", "go", "low")
    assert told(make_probe(MISMATCH, verifier="none"), family="laboratory")[:2] == (
        "PATTERN_MISMATCH", "no_go"
    )  # fmt: skip
    assert told(make_probe(NOTHING_NEW, verifier="none"), family="laboratory")[:2] == (
        "NO_NEW_KNOWLEDGE", "no_go"
    )  # fmt: skip


def test_outside_the_calibrated_family_confidence_is_medium_at_most():
    for values in (SUCCESS, MISMATCH, NOTHING_NEW, REVERSE):
        assert judged(make_probe(values, verifier="math")).confidence in ("low", "medium")
    assert told(make_probe(MISMATCH, verifier="none")) == ("PATTERN_MISMATCH", "undecided", "low")
    assert told(make_probe(NOTHING_NEW, verifier="none")) == (
        "NO_NEW_KNOWLEDGE", "undecided", "low"
    )  # fmt: skip


def test_folders_alone_leave_it_undecided():
    probe = make_probe({}, prompts=0, verifier="none")
    assert told(probe) == ("GO", "undecided", "low")
    assert "No rollout was sampled" in judged(probe).explanation


def test_reward_on_special_tokens_lowers_the_confidence_of_a_go():
    assert told(make_probe(special_reward_share=0.8)) == ("GO", "go", "low")
    assert told(make_probe(special_reward_share=0.3)) == ("GO", "go", "high")


def test_evidence_stands_beside_the_control_and_carries_its_interval():
    rows = {row.metric: row for row in judged(make_probe(MISMATCH)).evidence}
    assert (rows["effective_overlap"].value, rows["effective_overlap"].reference) == (0.11, 0.945)
    assert (rows["hand_off_min"].low, rows["hand_off_min"].high) == (-0.55, -0.45)
    for values in (SUCCESS, MISMATCH, NOTHING_NEW, REVERSE):
        assert all(row.metric in PROBE_METRICS for row in judged(make_probe(values)).evidence)


def test_every_explanation_is_two_sentences_with_figures():
    for values in (SUCCESS, MISMATCH, NOTHING_NEW, REVERSE, RESCUED):
        said = judged(make_probe(values)).explanation
        assert said.endswith(".")
        assert said.count(". ") == 1
        assert any(character.isdigit() for character in said)


def test_a_bound_on_the_cut_off_is_on_neither_side():
    assert side(around(0.5, 0.1), 0.4) == "across"
    assert side(around(0.5, 0.05), 0.4) == "above"
    assert side(around(0.3, 0.05), 0.4) == "below"
    assert side(None, 0.4) == "unknown"


def test_noise_of_the_size_of_the_intervals_does_not_change_the_direction():
    draw = random.Random(0)
    for values, go in ((SUCCESS, "go"), (MISMATCH, "no_go"), (REVERSE, "no_go")):
        for _ in range(100):
            noisy = {key: value + draw.gauss(0, 0.02) for key, value in values.items()}
            noisy |= {"reverse_kl": max(0.0, noisy["reverse_kl"]), "repetition_rate": 0.0}
            assert judged(make_probe(noisy)).go == go
