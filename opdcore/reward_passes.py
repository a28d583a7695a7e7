"""One reinforce step's forward and backward passes: the student over its own rollouts, weighed.

What is learned leaves its gradient in the student's weights here. It knows nothing of sampling, of
verifiers, of optimizers, or of the steps before and after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdcore import policy_gradient
from opdcore.advantages import Weighed
from opdcore.batches import Batch, cut, response_hidden
from opdcore.contract.reinforce import ReinforceStage
from opdcore.policy_gradient import Policy, Told
from opdcore.rollouts import Rollout
from opdcore.sides import Side
from opdcore.workspace import Workspace


@dataclass(frozen=True)
class Learned:
    """What the passes saw of all rollouts; `loss` is the surrogate whose gradient is followed."""

    loss: float
    initial_kl: float | None
    trained_share: float
    entropy: float
    logprob: float
    sampler_difference: float

    def told(self) -> dict[str, float | None]:
        """Metrics of the step, by key of the metric table."""
        return {
            "loss": self.loss,
            "initial_kl": self.initial_kl,
            "trained_share": self.trained_share,
            "student_entropy": self.entropy,
            "student_logprob": self.logprob,
            "sampler_logprob_difference": self.sampler_difference,
        }


# What was seen of a batch's tokens, how much each weighs in the loss, and whether they were learned.
_Seen = tuple[Told, Tensor, bool]


@dataclass(frozen=True)
class _Passed:
    """One micro-batch: what was seen of its tokens, and how much each weighs in the loss."""

    batch: Batch
    told: Told
    weights: Tensor  # (N,) advantage over the step's tokens
    pushed: bool


def learn(
    stage: ReinforceStage,
    work: Workspace,
    rows: Sequence[int],
    rollouts: Sequence[Rollout],
    weighed: Weighed,
) -> Learned:
    """Back-propagates the step's loss; what cannot have a gradient is read without one."""
    tokens = max(1, weighed.tokens(rollouts))
    pushed = [
        reward is not None and (stage.needs_initial or advantage != 0)
        for reward, advantage in zip(weighed.rewards, weighed.advantages, strict=True)
    ]
    passed = []
    for push in (True, False):
        places = [place for place, one in enumerate(pushed) if one is push]
        passes = [
            _Pass(stage, batch, [weighed.advantages[places[i]] for i in batch.rollouts], tokens)
            for batch in _batches(stage, work, [(rows[i], rollouts[i]) for i in places])
        ]
        told = work.processes.divide(
            work,
            _push if push else _read,
            passes,
            sizes=[one.batch.size for one in passes],
            trains=push,
        )
        passed += [_Passed(one.batch, *seen) for one, seen in zip(passes, told, strict=True)]
    return _learned(stage, passed, tokens)


def _batches(
    stage: ReinforceStage, work: Workspace, written: Sequence[tuple[int, Rollout]]
) -> Iterator[Batch]:
    prompts = [work.prompt_ids[row][0] for row, _ in written]
    rollouts = [rollout for _, rollout in written]
    parts = work.processes.count
    return cut(rollouts, [prompts], tokens=stage.micro_batch_tokens, parts=parts)


@dataclass(frozen=True)
class _Pass:
    """One micro-batch's pass: each rollout's advantage, and the tokens of the step."""

    stage: ReinforceStage
    batch: Batch
    advantages: Sequence[float]
    tokens: int


def _push(work: Workspace, asked: _Pass) -> _Seen:
    stage, batch, tokens = asked.stage, asked.batch, asked.tokens
    student, device = work.trained, work.student.device
    again = stage.recomputes(batch.longest)
    hidden = response_hidden(student, batch, side=0, precision=stage.precision, recompute=again)
    lengths = torch.tensor(batch.lengths)
    weights = (torch.tensor(asked.advantages) / tokens).repeat_interleave(lengths).to(device)
    told = policy_gradient.push(
        Side(hidden, student.project),
        batch.sampled_ids.to(device),
        policy=_policy(stage, work),
        weights=weights,
        kl_scale=stage.initial_kl_weight / tokens,
        initial=_initial(stage, work, batch),
    )
    return told, weights, True


@torch.no_grad()
def _read(work: Workspace, asked: _Pass) -> _Seen:
    stage, batch = asked.stage, asked.batch
    student, device = work.student, work.student.device
    hidden = response_hidden(student, batch, side=0, precision=stage.precision)
    told = policy_gradient.read(
        Side(hidden, student.project), batch.sampled_ids.to(device), policy=_policy(stage, work)
    )
    return told, torch.zeros_like(told.logprobs), False


@torch.no_grad()
def _initial(stage: ReinforceStage, work: Workspace, batch: Batch) -> Side | None:
    """The student as it was at the stage's start, over the same tokens; None where it has no part."""
    if work.initial is None or not stage.needs_initial:
        return None
    hidden = response_hidden(work.initial, batch, side=0, precision=stage.precision)
    return Side(hidden, work.initial.project)


def _policy(stage: ReinforceStage, work: Workspace) -> Policy:
    return Policy(work.vocabulary, stage.temperature)


def _learned(stage: ReinforceStage, passed: Sequence[_Passed], tokens: int) -> Learned:
    told = policy_gradient.joined([one.told for one in passed])
    weights = torch.cat([one.weights for one in passed])
    sampled = torch.cat([one.batch.logprobs for one in passed])
    pushed = sum(len(one.weights) for one in passed if one.pushed)
    kl = told.initial_kl.sum(dtype=torch.float64).item()
    surrogate = -(weights * told.logprobs).sum(dtype=torch.float64).item()
    return Learned(
        loss=surrogate + stage.initial_kl_weight * kl / tokens,
        initial_kl=kl / max(1, pushed) if stage.needs_initial else None,
        trained_share=pushed / len(weights),
        entropy=told.entropies.mean().item(),
        logprob=told.logprobs.mean().item(),
        sampler_difference=(sampled - told.logprobs.cpu()).abs().mean().item(),
    )
