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
from opdcore.contract.job import Job
from opdcore.contract.recipe import Recipe
from opdcore.contract.reinforce import ReinforceStage
from opdcore.lab import record
from opdcore.policy_gradient import Policy
from opdcore.rollouts import Rollout
from opdcore.sides import Side
from opdcore.verifiers.grading import Grade
from tests.opdcore.jobs import QUESTIONS, by_kind, events_of, make_job, make_recipe

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


def laboratory_job(*, prompts=8, **knobs):
    """The laboratory's own student is right often enough to be rewarded."""
    folder = record.shipped("sums")
    stage = SMALL | {
        "max_prompt_tokens": 128, "max_response_tokens": 128, "evaluate_steps": 0,
        "checkpoint_steps": 100, "weight_decay": 0.0,
    } | knobs  # fmt: skip
    graded = {
        "verifier": "laboratory", "prompts": prompts, "samples_per_prompt": 1, "temperature": 1.0,
        "sampling_top_p": 1.0, "max_response_tokens": 128, "teacher": False,
    }  # fmt: skip
    sets = {"train": "train.jsonl", "held_out": "held_out.jsonl"}
    return Job.model_validate(
        {
            "run_id": "tested",
            "student": {"model": {"kind": "local", "path": str(folder / "student")}},
            "teachers": [{"model": {"kind": "local", "path": str(folder / "teacher")}}],
            "prompt_sets": {name: {"path": str(folder / file)} for name, file in sets.items()},
            "recipe": recipe_of(stage, **graded).model_dump(),
            "resources": {"train": {"devices": ["cpu"], "threads": 1}},
        }
    )


def output_of(run_dir):
    return load_file(run_dir / "output" / "model.safetensors")


def test_a_halted_run_goes_on_bit_for_bit(tmp_path):
    job = laboratory_job(checkpoint_steps=2)
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    first = by_kind(events_of(job, whole), "metrics")[0].payload.values
    assert first["grad_norm"] > 0
    running = opdcore.run(job, halted)
    for event in running:
        if event.kind == "artifact" and event.payload.artifact_kind == "checkpoint":
            break
    running.close()
    again = events_of(job, halted)
    assert [event.step for event in by_kind(again, "metrics")] == [3, 4]
    one, other = output_of(whole), output_of(halted)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_result_does_not_depend_on_how_a_step_is_cut(tmp_path):
    told = []
    for tokens in (16, 100_000):
        events = events_of(
            laboratory_job(micro_batch_tokens=tokens, steps=1), tmp_path / f"{tokens}"
        )
        told.append(by_kind(events, "metrics")[0].payload.values)
    for key in ("loss", "grad_norm", "student_entropy", "student_logprob", "reward_mean"):
        assert told[0][key] not in (None, 0)
        assert told[0][key] == pytest.approx(told[1][key], rel=1e-4, abs=1e-7)


def test_a_recipe_without_a_verifier_is_refused_before_the_run(tmp_path):
    job = make_job(tmp_path, recipe=recipe_of(SMALL, verifier="none"))
    with pytest.raises(BadInput) as raised:
        events_of(job, tmp_path / "run")
    assert raised.value.info.field == "recipe.evaluation.verifier"
    assert not (tmp_path / "run" / "output").exists()


def test_prompts_without_answers_are_refused_before_the_run(tmp_path):
    rows = [{"prompt": row["prompt"]} for row in QUESTIONS]
    job = make_job(tmp_path, recipe=recipe_of(SMALL), rows=rows)
    with pytest.raises(BadInput) as raised:
        events_of(job, tmp_path / "run")
    assert raised.value.info.field == "prompt_sets.train"


def test_groups_of_one_are_refused():
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        ReinforceStage(rollouts_per_prompt=1)


def test_the_kl_to_the_start_is_nothing_at_each_stages_first_step_and_then_something(tmp_path):
    job = laboratory_job(initial_kl_weight=0.1, learning_rate=1e-3)
    twice = job.recipe.model_copy(update={"stages": job.recipe.stages * 2})
    events = events_of(job.model_copy(update={"recipe": twice}), tmp_path / "run")
    told = [event.payload.values["initial_kl"] for event in by_kind(events, "metrics")]
    assert [told[0], told[4]] == pytest.approx([0, 0], abs=1e-6)
    assert told[-1] > 1e-5


def test_the_laboratorys_student_becomes_more_often_right_by_its_rewards_alone(tmp_path):
    job = laboratory_job(
        prompts=128,
        steps=30,
        prompts_per_step=8,
        rollouts_per_prompt=8,
        learning_rate=4e-4,
        warmup_steps=3,
    )
    events = events_of(job, tmp_path / "run")
    outcome = events[-1].payload.outcome
    assert outcome.gain_low > 0
    told = [event.payload.values for event in by_kind(events, "metrics")]
    assert fmean(one["reward_mean"] for one in told[-10:]) > fmean(
        one["reward_mean"] for one in told[:10]
    )
    assert all(0 < one["trained_share"] <= 1 for one in told)
