"""A family's calibration is made of its finished runs, and moves a cut-off only where controls part."""

import pytest

from opdcore.calibration import laboratory
from opdcore.contract.probe import Measure
from opdcore.controls import FEWEST_RUNS, Finished, calibrated, control_of
from opdcore.verdicts import judge
from tests.opdcore.probes import Goal, make_probe


def finished(relation, outcome, **values):
    measures = {key: Measure(value=value, prompts=32) for key, value in values.items()}
    return Finished(relation, outcome, measures)


@pytest.mark.parametrize(
    ("relation", "outcome", "gap", "control"),
    [
        ("identical", "no_gain", 0.0, "identical"),
        ("identical", "inconclusive", 0.0, "identical"),
        ("descendant", "success", 0.4, "descendant"),
        ("unknown", "success", 0.4, "descendant"),
        ("same_pipeline", "no_gain", -0.1, "same_pipeline"),
        ("same_pipeline", "inconclusive", 0.0, "same_pipeline"),
        ("same_pipeline", "no_gain", 0.3, "same_pipeline"),
        ("same_pipeline", "inconclusive", 0.3, None),
        ("ancestor", "no_gain", -0.4, "reverse"),
        ("unknown", "no_gain", -0.01, "same_pipeline"),
        ("unrelated", "no_gain", 0.4, "other_pattern"),
        ("unrelated", "regressed", 0.4, "other_pattern"),
        ("ancestor", "regressed", -0.4, "reverse"),
        ("descendant", "partial", 0.4, None),
        ("descendant", "inconclusive", 0.4, None),
    ],
)
def test_relation_and_outcome_say_which_control_a_run_is(relation, outcome, gap, control):
    assert control_of(finished(relation, outcome, accuracy_gap=gap)) == control


def runs(relation, outcome, key, values, gap):
    return [finished(relation, outcome, accuracy_gap=gap, **{key: value}) for value in values]


def test_a_control_has_the_median_and_the_range_of_its_runs():
    own = calibrated("mine", runs("unknown", "success", "reverse_kl", (0.3, 0.1, 0.2), 0.5))
    found = own.controls["descendant"].measures["reverse_kl"]
    assert (found.value, found.low, found.high, found.prompts) == (0.2, 0.1, 0.3, 96)
    assert (own.runs, own.family) == (3, "mine")
    assert own.thresholds == laboratory().thresholds


def test_cut_offs_move_between_controls_that_are_apart():
    own = calibrated(
        "mine",
        [
            *runs("unknown", "success", "hand_off_min", (0.2, 0.1, 0.15), 0.5),
            *runs("unrelated", "regressed", "hand_off_min", (-0.2, -0.3, -0.5), 0.5),
        ],
    )
    assert own.thresholds.incompatible_hand_off == pytest.approx(-0.1)
    assert own.thresholds.compatible_hand_off == pytest.approx(0.0)
    assert own.thresholds.tiny_kl == laboratory().thresholds.tiny_kl


def test_a_tiny_divergence_is_cut_by_ratio():
    own = calibrated(
        "mine",
        [
            *runs("same_pipeline", "no_gain", "reverse_kl", (0.001, 0.002, 0.004), 0.0),
            *runs("descendant", "success", "reverse_kl", (0.25, 0.5, 0.4), 0.5),
        ],
    )
    assert own.thresholds.tiny_kl == pytest.approx((0.004 * 0.25) ** 0.5, rel=1e-3)


def test_controls_that_meet_or_are_few_leave_a_cut_off_alone():
    meeting = [
        *runs("unknown", "success", "hand_off_min", (0.2, -0.3, 0.15), 0.5),
        *runs("unrelated", "regressed", "hand_off_min", (-0.2, -0.3, -0.5), 0.5),
    ]
    few = [
        *runs("unknown", "success", "hand_off_min", (0.2,) * (FEWEST_RUNS - 1), 0.5),
        *runs("unrelated", "regressed", "hand_off_min", (-0.2,) * FEWEST_RUNS, 0.5),
    ]
    for told in (meeting, few, []):
        assert calibrated("mine", told).thresholds == laboratory().thresholds


def test_a_verdict_follows_its_family():
    """Where runs of little overlap learned, little overlap is no mismatch."""
    apart = [
        finished(
            "unrelated", "regressed", accuracy_gap=0.5, effective_overlap=0.05, top1_agreement=0.1
        )
        for _ in range(FEWEST_RUNS)
    ]
    alike = [
        finished("unknown", "success", accuracy_gap=0.5, effective_overlap=0.4, top1_agreement=0.4)
        for _ in range(FEWEST_RUNS)
    ]
    own = calibrated("mine", [*apart, *alike])
    low = {"effective_overlap": 0.35, "top1_agreement": 0.38, "overlap_mass_student": 0.6}
    probe = make_probe(**low, overlap_mass_teacher=0.6, hand_off_min=-0.5)
    codes = [
        judge(probe, goal=Goal(), objective=None, calibration=one, family=one.family).code
        for one in (laboratory(), own)
    ]
    assert codes == ["PATTERN_MISMATCH", "GO"]
