"""What a probe may cost: its tokens against those that the planned distillation would generate.

Plain arithmetic on numbers of rollouts and tokens; it samples nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opdcore.contract.distill import DistillStage
from opdcore.contract.probe import DiagnoseStage
from opdcore.diagnosis.hand_off import SHARES

FEWEST_PROMPTS = 8


@dataclass(frozen=True)
class Cost:
    """Whole responses that one prompt makes each side write in each tier; a half is half a response.

    Two models read each response of the scored tier, and one goes back through it.
    """

    scored_student: float
    scored_teacher: float
    hand_off: float  # of either side

    @property
    def responses(self) -> float:
        return self.scored_student + self.scored_teacher + 2 * self.hand_off


@dataclass(frozen=True)
class Budget:
    """How many prompts the planned run's tokens pay for; without a plan or a share, all of them."""

    share: float | None
    planned: Sequence[DistillStage]

    def prompts(self, *, response_tokens: float, tokens_per_prompt: float) -> int | None:
        """None where nothing limits them; never below FEWEST_PROMPTS."""
        if self.share is None or not self.planned or not tokens_per_prompt:
            return None
        allowed = self.share * sum(_tokens(stage, response_tokens) for stage in self.planned)
        return max(FEWEST_PROMPTS, int(allowed / tokens_per_prompt))


def cost(stage: DiagnoseStage, *, graded: bool, given: bool) -> Cost:
    """What one prompt costs: `graded` with a verifier, `given` where rollouts need no sampling."""
    n = stage.rollouts_per_prompt
    scored, handed = "scored" in stage.tiers, "hand_off" in stage.tiers and graded
    depths = [1 - share for share in SHARES] + [
        max(0.0, 1 - depth / stage.max_response_tokens) for depth in set(stage.hand_off_tokens)
    ]
    return Cost(
        scored_student=float(n) if (scored or handed) and not given else 0.0,
        scored_teacher=float(n) if scored else 0.0,
        hand_off=n * sum(depths) if handed else 0.0,
    )


def _tokens(stage: DistillStage, response_tokens: float) -> float:
    """Tokens that a stage generates where a response has so many."""
    each = min(response_tokens, stage.max_response_tokens)
    return stage.steps * stage.prompts_per_step * stage.rollouts_per_prompt * each
