"""The student's own responses to a step's prompts, by the knobs of sampling. It knows no objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from opdcore.contract.distill import SamplingKnobs
from opdcore.rollouts import Rollout, Sampling
from opdcore.workspace import Workspace


def write(
    knobs: SamplingKnobs, work: Workspace, rows: Sequence[int], *, longest: int, seed: int
) -> list[Rollout]:
    """One rollout of each row, of at most `longest` tokens that the pair shares.

    `seed` differs from step to step, and so names the weights that a server is given.
    """
    prompts = [work.prompt_ids[row][0] for row in rows]
    sampling = Sampling(
        max_tokens=longest,
        temperature=knobs.temperature,
        top_p=knobs.sampling_top_p,
        vocabulary=work.vocabulary,
        stop_ids=frozenset(work.student.renderer.stop_ids),
        precision=knobs.sampling_precision,
        stop_repeating=knobs.stop_repeating,
    )
    if work.sampler is not None:
        version = f"{work.job.run_id}-{work.job.attempt}-{seed}"
        return work.sampler.sample(
            work.student, prompts, sampling=sampling, seed=seed, version=version
        )
    generator = torch.Generator().manual_seed(seed)
    return work.processes.sample(work.student, prompts, sampling=sampling, generator=generator)


def sampler_alarm(work: Workspace, values: Mapping[str, float | None]) -> str | None:
    """What is wrong where the server that sampled did not have the weights that are trained."""
    difference = values["sampler_logprob_difference"]
    if work.sampler is None or difference is None or difference <= work.sampler.tolerated:
        return None
    return (
        f"The server that samples and the trainer differ by {difference:.4f} nats a token, above "
        f"{work.sampler.tolerated:g}: the rollouts are not quite the student's own."
    )
