"""What each rollout is worth beside its siblings: from a verifier's grades to the policy gradient's weights.

Plain arithmetic on one step's rollouts, whose groups lie one after the other. It knows no tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, pstdev

from opdcore.contract.reinforce import Advantage, ReinforceStage
from opdcore.rollouts import Rollout
from opdcore.verifiers.grading import Grade

# None where a rollout is left out of its group and of the loss.
Rewards = Sequence[float | None]


@dataclass(frozen=True)
class Weighed:
    """One step's rewards and advantages, by rollout; the advantage of one that is left out is 0."""

    rewards: Rewards
    advantages: Sequence[float]
    groups_alike: float

    @property
    def mean_reward(self) -> float | None:
        """Over the rollouts that are learned from; None where there are none."""
        given = [reward for reward in self.rewards if reward is not None]
        return fmean(given) if given else None

    def tokens(self, rollouts: Sequence[Rollout]) -> int:
        """Tokens of the rollouts that are not left out."""
        pairs = zip(rollouts, self.rewards, strict=True)
        return sum(len(rollout.ids) for rollout, reward in pairs if reward is not None)


def weigh(stage: ReinforceStage, rollouts: Sequence[Rollout], grades: Sequence[Grade]) -> Weighed:
    """The step's advantages; what the verifier could not grade is left out."""
    rewards = [_reward(stage, *one) for one in zip(rollouts, grades, strict=True)]
    groups = list(_groups(rewards, stage.rollouts_per_prompt))
    alike = fmean(len(set(group) - {None}) < 2 for group in groups)
    advantages = chain.from_iterable(advantages_of(group, stage.advantage) for group in groups)
    return Weighed(rewards, list(advantages), alike)


def advantages_of(group: Rewards, kind: Advantage) -> list[float]:
    """A = r - mean(r) over the group, divided by its standard deviation where that is asked for.

    A group whose rewards are all alike has no standard deviation to divide by, and teaches nothing.
    """
    given = [reward for reward in group if reward is not None]
    if len(set(given)) < 2:
        return [0.0] * len(group)
    mean, unit = fmean(given), pstdev(given) if kind == "group_normalised" else 1.0
    return [0.0 if reward is None else (reward - mean) / unit for reward in group]


def _reward(stage: ReinforceStage, rollout: Rollout, grade: Grade) -> float | None:
    if not rollout.stopped and stage.truncated == "left_out":
        return None
    if grade.correct is None:
        return None
    return float(grade.correct and rollout.stopped)


def _groups(rewards: Rewards, size: int) -> Iterator[Rewards]:
    for start in range(0, len(rewards), size):
        yield rewards[start : start + size]
