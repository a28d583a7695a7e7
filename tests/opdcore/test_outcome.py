"""The outcome function: each code from numbers that leave no doubt."""

import pytest

from opdcore.contract.outcome import judge, mean_interval

RIGHT, WRONG = [1.0] * 200, [0.0] * 200
HALF = [1.0, 0.0] * 100
MOST = [1.0] * 180 + [0.0] * 20


def test_success_needs_a_gain_beyond_chance_and_half_of_the_gap():
    outcome = judge(HALF, MOST, RIGHT)
    assert outcome.code == "success"
    assert outcome.gain == pytest.approx(0.4)
    assert outcome.recovery == pytest.approx(0.8)
    assert outcome.gain_low < 0.4 < outcome.gain_high
    assert outcome.recovery_low < 0.8 < outcome.recovery_high


def test_a_small_part_of_the_gap_is_partial():
    third = [1.0] * 60 + [0.0] * 140
    assert judge(WRONG, third, RIGHT).code == "partial"


def test_recovery_is_null_where_the_gap_includes_zero():
    outcome = judge(HALF, MOST, HALF)
    assert (outcome.code, outcome.recovery) == ("partial", None)


def test_without_a_teacher_a_gain_is_partial_and_recovery_null():
    outcome = judge(HALF, MOST)
    assert (outcome.code, outcome.recovery, outcome.teacher) == ("partial", None, None)


def test_a_loss_beyond_chance_is_a_regression():
    assert judge(MOST, HALF, RIGHT).code == "regressed"


def test_no_gain_is_claimed_only_where_one_would_have_been_seen():
    assert judge(HALF, HALF, RIGHT).code == "no_gain"
    noisy = judge([0.0, 1.0] * 4, [1.0, 0.0] * 4, [1.0] * 8)
    assert noisy.code == "inconclusive"
    assert noisy.smallest_detectable_gain > 0.25


def test_a_teacher_below_the_student_leaves_nothing_to_recover():
    assert judge(MOST, MOST, HALF).code == "no_gain"


def test_fewer_tokens_are_a_gain_where_down_is_better():
    outcome = judge([100.0, 120.0] * 50, [50.0, 60.0] * 50, [40.0, 50.0] * 50, better="down")
    assert outcome.code == "success"
    assert (outcome.before, outcome.after, outcome.gain) == (110.0, 55.0, 55.0)


def test_a_guard_that_fell_overrules_the_success():
    outcome = judge(HALF, MOST, RIGHT, guards={"accuracy": (RIGHT, HALF)})
    assert (outcome.code, "accuracy" in outcome.explanation) == ("regressed", True)


def test_abstained_prompts_are_left_out_in_pairs():
    outcome = judge([None, *HALF], [1.0, *MOST], [1.0, *RIGHT])
    assert outcome.prompts == 200
    assert judge([None], [1.0], [1.0]).code == "unmeasured"


def test_unpaired_scores_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        judge([1.0], [1.0, 0.0])


def test_an_interval_holds_its_mean_and_is_null_without_scores():
    interval = mean_interval(HALF)
    assert interval.low < interval.value == 0.5 < interval.high
    assert mean_interval([None]) is None
