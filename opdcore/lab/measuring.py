"""What a laboratory's model can do: sampled accuracy and the style its responses open in.

A model is measured from its folder, through the engine's own loader and sampler, so that what is
recorded is what a run will find. It knows no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from opdcore import models
from opdcore.contract.participant import LocalModel, Participant
from opdcore.contract.prompt import Prompt
from opdcore.lab.solutions import check
from opdcore.models import LoadedModel
from opdcore.rollouts import Sampling, sample

MAX_NEW_TOKENS = 96  # the longest right solution has 66 tokens, its end token included


def open_model(folder: Path) -> LoadedModel:
    """Load a model's folder on the CPU."""
    participant = Participant(model=LocalModel(path=str(folder)))
    return models.load(participant, device=torch.device("cpu"), field="model")


def judge(model: LoadedModel, prompts: Sequence[Prompt], *, seed: int) -> list[bool]:
    """Sample one response to each prompt at temperature 1 and say which are right."""
    sampling = Sampling(
        max_tokens=MAX_NEW_TOKENS,
        temperature=1.0,
        top_p=1.0,
        vocabulary=model.card.vocabulary,
        stop_ids=frozenset(model.renderer.stop_ids),
    )
    generator = torch.Generator().manual_seed(seed)
    ids = [rendered.ids for rendered in model.renderer.render_many(prompts)]
    rollouts = sample(model, ids, sampling=sampling, generator=generator)
    return [
        check(prompt.answer or "", model.renderer.decode(rollout.text_ids)) is True
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]


@torch.inference_mode()
def opening_mass(model: LoadedModel, prompts: Sequence[Prompt], *, openers: Sequence[str]) -> float:
    """Return the mean probability that a response begins with one of the opening words."""
    ids = [rendered.ids for rendered in model.renderer.render_many(prompts)]
    last = [len(row) - 1 for row in ids]
    width = max(last) + 1
    # Causal attention never looks at the padding on the right.
    padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids])
    hidden = model.hidden(padded)[range(len(last)), last]
    words = [Prompt(prompt=f" {word}") for word in openers]
    opening = [rendered.ids[0] for rendered in model.renderer.render_many(words)]
    return float(model.project(hidden).softmax(-1)[:, opening].sum(-1).mean())
