"""Responses of a model, wherever its weights are: by torch in this process, or by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opdcore.models import LoadedModel
from opdcore.rollouts import torch_sampler
from opdcore.rollouts.rollout import Rollout
from opdcore.rollouts.sampling import Responder, Sampling


def sample(
    model: LoadedModel | Responder,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    generator: torch.Generator,
) -> list[Rollout]:
    """One rollout of each prompt's ids, in the prompts' order; `prompt_index` is the row.

    `logprobs` are under the tempered distribution, before the nucleus is cut. `generator` is on the CPU,
    whatever the model's device.
    """
    if isinstance(model, LoadedModel):
        return torch_sampler.sample(model, prompts, sampling=sampling, generator=generator)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return model.respond(prompts, sampling=sampling, seed=seed)
