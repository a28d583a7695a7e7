"""Intervals by prompt."""

from random import Random

import pytest

from opdcore.contract.outcome import mean_interval
from opdcore.diagnosis import intervals


def test_an_interval_is_that_of_the_outcome_s_bootstrap():
    rng = Random(0)
    values = [rng.gauss(1, 2) for _ in range(100)]
    found, reference = intervals.mean(values), mean_interval(values)
    assert found.value == pytest.approx(reference.value)
    assert found.low == pytest.approx(reference.low, abs=0.05)
    assert found.high == pytest.approx(reference.high, abs=0.05)


def test_undefined_values_are_left_out():
    assert intervals.mean([1.0, None, 3.0]).value == 2
    assert intervals.mean([1.0, None, 3.0]).prompts == 2
    assert intervals.mean([None]).value is None


def test_a_higher_level_gives_a_wider_interval():
    rng = Random(1)
    values = [rng.random() for _ in range(50)]
    plain, corrected = intervals.mean(values), intervals.mean(values, level=0.99)
    assert corrected.low < plain.low < plain.high < corrected.high


def test_equal_prompts_do_not_prove_a_rate():
    found = intervals.mean([1.0] * 20, span=(0.0, 1.0))
    # P(20 of 20) is 2.5 % at a rate of 0.83.
    assert found.high == 1
    assert found.low == pytest.approx(0.83, abs=0.02)


def test_a_rate_that_varies_is_not_widened():
    values = [0.0, 1.0] * 20
    assert intervals.mean(values, span=(0.0, 1.0)) == intervals.mean(values)


def naive_auroc(pairs: list[tuple[float, bool]]) -> float:
    right = [score for score, correct in pairs if correct]
    wrong = [score for score, correct in pairs if not correct]
    won = [(a > b) + 0.5 * (a == b) for a in right for b in wrong]
    return sum(won) / len(won)


def test_auroc_is_the_share_of_pairs_that_the_correct_one_wins():
    rng = Random(2)
    scores = {
        row: [(round(rng.random(), 1), rng.random() < 0.4) for _ in range(3)] for row in range(30)
    }
    found = intervals.auroc(scores)
    assert found.value == pytest.approx(
        naive_auroc([pair for row in scores.values() for pair in row])
    )
    assert found.low < found.value < found.high


def test_auroc_is_undefined_where_all_are_right():
    assert intervals.auroc({0: [(1.0, True)], 1: [(0.5, True)]}).value is None
    assert intervals.auroc({}).value is None
