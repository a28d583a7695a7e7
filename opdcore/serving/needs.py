"""What a recipe asks of a server: how long a text may become, and how many logprobs are told of a token.

A teacher's server is sized in powers of two, so that runs of like recipes can share one. It loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from opdcore.contract.distill import DistillStage
from opdcore.contract.recipe import EvaluateStage, Recipe
from opdcore.inspection import ModelCard

# What vLLM tells at most unless it is told otherwise.
USUAL_LOGPROBS = 20


def longest_text(recipe: Recipe, card: ModelCard) -> int:
    """Tokens of the longest prompt and response together, within the model's context."""
    stages = [stage for stage in recipe.stages if not isinstance(stage, EvaluateStage)]
    prompt = max((stage.max_prompt_tokens for stage in stages), default=0)
    response = max((stage.max_response_tokens for stage in stages), default=0)
    # One more is drawn whenever a text is scored.
    longest = prompt + max(response, recipe.evaluation.max_response_tokens) + 1
    return min(longest, card.context_length) if card.context_length else longest


def most_logprobs(recipe: Recipe) -> int:
    """The largest support of any stage."""
    wanted = [stage.k for stage in recipe.stages if isinstance(stage, DistillStage)]
    return max(USUAL_LOGPROBS, *wanted) if wanted else USUAL_LOGPROBS


@dataclass(frozen=True)
class Size:
    """What a teacher's server is started for."""

    longest: int
    most_logprobs: int


def teacher_size(recipe: Recipe, card: ModelCard) -> Size:
    """The least powers of two that suffice, within the model's context."""
    longest = _power_of_two(longest_text(recipe, card))
    most = most_logprobs(recipe)
    return Size(
        min(longest, card.context_length) if card.context_length else longest,
        most if most == USUAL_LOGPROBS else _power_of_two(most),
    )


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
