"""Warning signs of a step: odd tokens, odd rewards, and what the teacher says of wrong rollouts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from opdcore import warning_signs
from opdcore.rollouts import Rollout
from opdcore.verifiers.grading import Grade

# Batches take rollouts in an order of their own: the longer one comes first.
ROLLOUTS = [Rollout(0, (5, 1), (0.0, 0.0), True), Rollout(1, (5, 6, 9, 1), (0.0,) * 4, True)]
BATCH = SimpleNamespace(rollouts=(1, 0), lengths=(4, 2))
RENDERER = SimpleNamespace(added_ids=frozenset({1, 9}), stop_ids=(1,))


def measured(*correct: bool | None) -> dict[str, float | None]:
    alignment = SimpleNamespace(
        reverse_kl=torch.tensor([1.0, 1.0, 1.0, 5.0, 0.25, 0.75]),
        token_reward=torch.tensor([-1.0, 1.0, 0.0, -7.0, 0.5, 0.5]),
    )
    grades = [Grade(one, None) for one in correct]
    passed = SimpleNamespace(alignment=alignment, batches=[BATCH])
    return warning_signs.measure(ROLLOUTS, grades, passed, RENDERER)


def test_control_tokens_are_added_ones_that_do_not_stop():
    assert measured(True, True)["control_token_share"] == pytest.approx(1 / 6)


def test_wrong_rollouts_are_found_wherever_their_batch_put_them():
    assert measured(False, True)["incorrect_reverse_kl"] == pytest.approx(0.5)
    assert measured(True, False)["incorrect_reverse_kl"] == pytest.approx(2.0)
    assert measured(False, None)["incorrect_reverse_kl"] == pytest.approx(0.5)
    assert measured(True, None)["incorrect_reverse_kl"] is None


def test_the_tail_of_the_reward_is_the_largest_of_a_thousand():
    assert measured(True, True)["reward_largest"] == 7.0
    assert measured(True, True)["reward_tail_share"] == pytest.approx(0.7)
