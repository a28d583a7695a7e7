"""The writer: another model whose responses a cold start learns.

It is checked before the run and loaded only while it writes. What it writes is text, which the student
learns by its own tokens. It knows no filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from opdcore import prompt_ids
from opdcore.contract import needs
from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.job import Job
from opdcore.contract.participant import Participant
from opdcore.evaluation import check_context
from opdcore.inspection import ModelCard, inspect
from opdcore.models import LoadedModel, load
from opdcore.models.loading import resolve
from opdcore.pool import Pool
from opdcore.rendering import Renderer

FIELD = "writer"


@dataclass(frozen=True)
class Writer:
    """A model that is not in memory, with the ids of its prompts by row of the train set."""

    participant: Participant
    card: ModelCard
    folder: Path
    renderer: Renderer
    prompt_ids: dict[int, tuple[int, ...]]

    def loaded(self, device: torch.device) -> LoadedModel:
        """Its weights on a device, for as long as the caller keeps them."""
        return load(self.participant, device=device, field=FIELD)


def prepare(job: Job, pool: Pool) -> Writer | None:
    """The job's writer; None where no stage learns from one.

    Raises BadInput where its folder cannot be read, or a prompt that it would answer does not fit.
    """
    stages = needs.writing(job.recipe)
    if not stages or job.writer is None:
        return None
    folder = resolve(job.writer.model, field=FIELD)
    renderer = Renderer.from_folder(folder, job.writer.rendering)
    rows = sorted(set().union(*(prompt_ids.drawn(pool, job.recipe, index) for index in stages)))
    rendered = renderer.render_many([pool[row] for row in rows])
    ids = {row: one.ids for row, one in zip(rows, rendered, strict=True)}
    writer = Writer(job.writer, inspect(folder), folder, renderer, ids)
    for index in stages:
        stage = job.recipe.stages[index]
        assert isinstance(stage, ColdStartStage)
        check_context(
            {row: len(ids[row]) for row in sorted(prompt_ids.drawn(pool, job.recipe, index))},
            writer,
            longest=stage.max_prompt_tokens,
            response=stage.max_response_tokens,
            field="prompt_sets.train",
        )
    return writer
