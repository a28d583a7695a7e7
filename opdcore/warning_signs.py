"""What a step shows of trouble to come, beside its alignment: odd tokens, odd rewards, wrong rollouts.

It measures; the monitor judges. Keys are those of the metric table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opdcore.passes import Passed
from opdcore.rendering import Renderer
from opdcore.rollouts import Rollout
from opdcore.verifiers.grading import Grade

# The tail of the reward is one token of so many.
TAIL = 1000


def measure(
    rollouts: Sequence[Rollout], grades: Sequence[Grade], passed: Passed, renderer: Renderer
) -> dict[str, float | None]:
    """The step's warning signs; null where nothing defines one."""
    return {
        "control_token_share": _control_share(rollouts, renderer),
        "incorrect_reverse_kl": _incorrect_kl(grades, passed),
        **_rewards(passed.alignment.token_reward),
    }


def _control_share(rollouts: Sequence[Rollout], renderer: Renderer) -> float:
    control = renderer.added_ids - frozenset(renderer.stop_ids)
    # Few rollouts hold one at all, and asking that of a whole rollout is cheap.
    held = [rollout.ids for rollout in rollouts if not control.isdisjoint(rollout.ids)]
    found = sum(token in control for ids in held for token in ids)
    return found / max(1, sum(len(rollout.ids) for rollout in rollouts))


def _incorrect_kl(grades: Sequence[Grade], passed: Passed) -> float | None:
    """Over the tokens of rollouts that were graded as wrong; None without one."""
    wrong = torch.tensor(
        [grades[index].correct is False for batch in passed.batches for index in batch.rollouts]
    )
    if not wrong.any():
        return None
    lengths = torch.tensor([length for batch in passed.batches for length in batch.lengths])
    column = passed.alignment.reverse_kl
    return column[wrong.repeat_interleave(lengths).to(column.device)].mean().item()


def _rewards(rewards: Tensor) -> dict[str, float | None]:
    """The largest token reward, and what share of all the largest thousandth has, at least one."""
    sizes = rewards.abs()
    largest = sizes.topk(max(1, len(sizes) // TAIL)).values
    total = sizes.sum().item()
    share = largest.sum().item() / total if total > 0 else 0.0
    return {"reward_largest": largest[0].item(), "reward_tail_share": share}
