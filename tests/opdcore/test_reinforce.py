"""Reinforcement: what a group teaches, that the gradient is the written one, and that accuracy climbs."""

from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import opdcore
from opdcore import policy_gradient
from opdcore.advantages import advantages_of, weigh
from opdcore.contract.errors import BadInput
from opdcore.contract.recipe import Recipe
from opdcore.contract.reinforce import ReinforceStage
from opdcore.lab import record
from opdcore.policy_gradient import Policy
from opdcore.rollouts import Rollout
from opdcore.scoring import Side
from opdcore.verifiers.grading import Grade
from tests.opdcore.jobs import by_kind, events_of, make_job, make_recipe
from tests.opdcore.model_folders import make_pair

SMALL = {
    "kind": "reinforce", "steps": 4, "prompts_per_step": 4, "rollouts_per_prompt": 4,
    "max_response_tokens": 16, "learning_rate": 1e-2, "checkpoint_steps": 2, "evaluate_steps": 2,
}  # fmt: skip
VOCABULARY, WIDE, ROWS = 13, 16, 300


def recipe_of(*stages, **evaluation):
    told = make_recipe(evaluation=evaluation).model_dump() | {"stages": [*stages]}
    return Recipe.model_validate(told)


def rollouts_of(lengths, *, cut=()):
    return [
        Rollout(i, (1,) * length, (0.0,) * length, stopped=i not in cut)
        for i, length in enumerate(lengths)
    ]


def grades_of(*correct):
    return [Grade(one, None) for one in correct]


@pytest.mark.parametrize("kind", ["group_mean", "group_normalised"])
@pytest.mark.parametrize("group", [(1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, None, 0.0, 0.0)])
def test_the_advantages_of_a_group_sum_to_zero(group, kind):
    assert sum(advantages_of(group, kind)) == pytest.approx(0, abs=1e-12)


def test_an_advantage_is_the_reward_less_the_groups_mean():
    assert advantages_of((1.0, 0.0, 0.0, 0.0), "group_mean") == [0.75, -0.25, -0.25, -0.25]


@pytest.mark.parametrize("group", [(1.0, 0.0, 0.0, 0.0), (1.0, None, 0.0, 0.0)])
def test_a_normalised_group_has_unit_variance(group):
    values = [
        advantage
        for reward, advantage in zip(group, advantages_of(group, "group_normalised"), strict=True)
        if reward is not None
    ]
    assert fmean(value**2 for value in values) == pytest.approx(1)


def test_what_is_left_out_or_alike_teaches_nothing():
    assert advantages_of((1.0, 1.0, None), "group_normalised") == [0.0, 0.0, 0.0]
    assert advantages_of((1.0, None, 0.0), "group_mean") == [0.5, 0.0, -0.5]
    stage = ReinforceStage(rollouts_per_prompt=2)
    weighed = weigh(stage, rollouts_of([1] * 6), grades_of(True, True, True, False, False, None))
    assert weighed.groups_alike == pytest.approx(2 / 3)
    assert weighed.rewards == [1, 1, 1, 0, 0, None]
    assert weighed.mean_reward == pytest.approx(3 / 5)


def test_a_cut_response_counts_as_wrong_or_is_left_out():
    rollouts, grades = rollouts_of([2, 3], cut=[1]), grades_of(True, True)
    wrong = weigh(ReinforceStage(rollouts_per_prompt=2), rollouts, grades)
    assert (wrong.rewards, wrong.tokens(rollouts)) == ([1.0, 0.0], 5)
    out = weigh(ReinforceStage(rollouts_per_prompt=2, truncated="left_out"), rollouts, grades)
    assert (out.rewards, out.tokens(rollouts)) == ([1.0, None], 2)


def sides():
    torch.manual_seed(0)
    body, head, start = nn.Linear(5, 6), nn.Linear(6, WIDE), nn.Linear(6, WIDE)
    return body, head, start.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("kl_scale", [0.0, 0.3])
def test_the_gradient_is_that_of_the_written_loss(kl_scale):
    inputs, ids = torch.randn(ROWS, 5), torch.randint(VOCABULARY, (ROWS,))
    weights, temperature = torch.randn(ROWS) / ROWS, 0.7
    body, head, start = sides()
    hidden = body(inputs)
    told = policy_gradient.push(
        Side(hidden, head), ids, policy=Policy(VOCABULARY, temperature), weights=weights,
        kl_scale=kl_scale, initial=Side(hidden.detach(), start) if kl_scale else None,
    )  # fmt: skip
    same_body, same_head, _ = sides()
    hidden = same_body(inputs)
    p = (same_head(hidden)[:, :VOCABULARY] / temperature).log_softmax(-1)
    q = (start(hidden.detach())[:, :VOCABULARY] / temperature).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    chosen = p.gather(1, ids[:, None]).squeeze(1)
    (-(weights * chosen).sum() + kl_scale * kl.sum()).backward()
    torch.testing.assert_close(told.logprobs, chosen.detach())
    torch.testing.assert_close(told.entropies, -(p.exp() * p).sum(-1).detach())
    torch.testing.assert_close(told.initial_kl, kl.detach() if kl_scale else torch.zeros(ROWS))
    for ours, theirs in zip((body, head), (same_body, same_head), strict=True):
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, atol=1e-6, rtol=1e-4)


def test_reading_sees_what_pushing_sees_and_leaves_no_gradient():
    inputs, ids = torch.randn(ROWS, 5), torch.randint(VOCABULARY, (ROWS,))
    body, head, _ = sides()
    policy = Policy(VOCABULARY, 1.0)
    read = policy_gradient.read(Side(body(inputs), head), ids, policy=policy)
    assert head.weight.grad is None
    pushed = policy_gradient.push(
        Side(body(inputs), head), ids, policy=policy, weights=torch.ones(ROWS)
    )
    torch.testing.assert_close(read.logprobs, pushed.logprobs)
    torch.testing.assert_close(read.entropies, pushed.entropies)
