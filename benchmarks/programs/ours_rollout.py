"""`opdcore.rollouts.sample`: a lap is one call that answers the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.programs import gauge
from benchmarks.programs.peer_rollout import batch_of
from opdcore import device, models
from opdcore.contract.participant import LocalModel, Participant
from opdcore.contract.prompt import Prompt
from opdcore.rollouts import Sampling, sample


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Warm-up calls and measured calls on the same prompts, each with random draws of its own."""
    torch.set_num_threads(spec["threads"])
    where = device.named(spec["device"], field="device")
    source = LocalModel(path=str(Path(spec["pair"], "student")))
    model = models.load(Participant(model=source), device=where, field="student")
    prompts = [Prompt(prompt=text) for text in batch_of(spec)]
    ids = [rendered.ids for rendered in model.renderer.render_many(prompts)]
    sampling = Sampling(
        max_tokens=spec["max_tokens"],
        temperature=1.0,
        top_p=1.0,
        vocabulary=model.card.vocabulary,
        stop_ids=frozenset(model.renderer.stop_ids),
    )
    marks, tokens = gauge.Gauge(spec["device"]), []
    marks.loaded()
    for call in range(spec["warmup"] + spec["measured"]):
        generator = torch.Generator().manual_seed(call)
        rollouts = sample(model, ids, sampling=sampling, generator=generator)
        marks.lap()
        tokens.append(sum(len(rollout.ids) for rollout in rollouts))
    return marks.figures(tokens, warmup=spec["warmup"])


if __name__ == "__main__":
    gauge.main(measure)
