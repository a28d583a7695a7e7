"""The cold start: the student learns responses that somebody else wrote, by their own tokens.

Plain supervised fine-tuning, before distillation: it brings the student to its teacher's way of
thinking (2604.13016, 5.1) and leaves the knowledge to what comes after. Every token weighs the same
within a step, the prompt's are not learned, and everything random is seeded by (seed, stage, step).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from statistics import fmean

import torch

from opdcore import supervision
from opdcore.batches import response_hidden
from opdcore.checkpoints import Saved
from opdcore.collection import Collected, collect
from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.errors import EngineFailure
from opdcore.contract.events import Logged, metrics
from opdcore.device import peak_memory_bytes
from opdcore.gauges import Clock
from opdcore.order import seed_of, take
from opdcore.scoring import surprise
from opdcore.stages import saving, training
from opdcore.workspace import Line, Workspace

Responses = Mapping[int, Sequence[int]]


def cold_start(
    stage: ColdStartStage, work: Workspace, *, stage_index: int, resume: Saved | None
) -> Iterator[Line]:
    """Trains the workspace's student for the stage's steps, going on from `resume` if given."""
    collected = yield from _collected(stage, work, stage_index)
    learned, held_out = _split(stage, collected)
    seed = work.job.recipe.seed
    tuning = training.begin(work, stage, seed=seed_of(seed, stage_index), resume=resume)
    saved_step = resume.step if resume is not None else 0

    for step in range(saved_step + 1, stage.steps + 1):
        if work.stop():
            if step - 1 > saved_step:
                yield from saving.checkpoint(work, tuning, stage_index, step - 1)
            raise work.cancelled()
        before = _nll(stage, work, held_out) if step == 1 else None
        clock = Clock(work.student.device)
        rows = _drawn(stage, learned, seed=seed, stage_index=stage_index, step=step)
        tuning.optimizer.forget_gradients()
        loss = _learn(stage, work, rows, learned)
        clock.lap("train_seconds")
        update = training.update(work, step, loss)
        clock.lap("update_seconds")

        after = _nll(stage, work, held_out) if step == stage.steps else None
        values = clock.seconds | {
            "loss": loss,
            "held_out_nll": after if before is None else before,
            "response_tokens_mean": fmean(len(learned[row]) for row in rows),
            **update.told(),
            "peak_memory_bytes": float(peak_memory_bytes(work.student.device)),
        }
        yield Line(metrics(values), step)
        if not update.made:
            raise update.refusal(loss, step)
        if alarm := tuning.alarm():
            yield Line(Logged(level="warning", message=alarm), step)
        if step == stage.steps and work.evaluator is not None:
            for payload in work.evaluator.teacher(work.teachers):
                yield Line(payload, step)
            for payload in work.evaluator.student(work.student, stage_index=stage_index, step=step):
                yield Line(payload, step)
        if step % stage.checkpoint_steps == 0 or step == stage.steps:
            yield from saving.checkpoint(work, tuning, stage_index, step)
            saved_step = step
    training.finish(work)


def _collected(
    stage: ColdStartStage, work: Workspace, stage_index: int
) -> Generator[Line, None, Collected]:
    """Tells how far collecting is, and what was dropped; a wish to stop is heeded in between."""
    for item in collect(stage, work, stage_index=stage_index):
        if isinstance(item, Collected):
            yield Line(Logged(level="info", message=item.told()))
            return item
        if work.stop():
            raise work.cancelled()
        yield Line(item)
    raise AssertionError("Collecting ends with what was collected.")


def _split(stage: ColdStartStage, collected: Collected) -> tuple[Responses, Responses]:
    """What is learned, and the last of them that are not; raises where nothing is left to learn."""
    rows = list(collected.responses)
    kept_back = min(stage.held_out_prompts, len(rows) // 2)
    learned = rows[: len(rows) - kept_back]
    if not learned:
        raise EngineFailure(
            "cold_start.no_responses",
            f"There is no response to learn from: {collected.told()}",
            remedy="Raise max_response_tokens or retries, look at what the teacher writes, or let "
            "only_correct be off.",
        )
    return (
        {row: collected.responses[row] for row in learned},
        {row: collected.responses[row] for row in rows[len(learned) :]},
    )


def _drawn(
    stage: ColdStartStage, learned: Responses, *, seed: int, stage_index: int, step: int
) -> list[int]:
    rows = list(learned)
    size = min(stage.responses_per_step, len(rows))
    places = take(len(rows), size, seed=seed, stage_index=stage_index, step=step)
    return [rows[place] for place in places]


def _learn(
    stage: ColdStartStage, work: Workspace, rows: Sequence[int], responses: Responses
) -> float:
    """Back-propagates the mean negative log-likelihood of the responses' tokens, and returns it."""
    return supervision.learn(stage, work, {row: responses[row] for row in rows}, weight=1.0)


@torch.no_grad()
def _nll(stage: ColdStartStage, work: Workspace, responses: Responses) -> float | None:
    """The same of responses that are not learned; None where there are none."""
    if not responses:
        return None
    student = work.student
    summed = sum(
        surprise(
            response_hidden(student, batch, side=0, precision=stage.precision),
            student.project,
            batch.sampled_ids.to(student.device),
            vocabulary=work.vocabulary,
        )
        for batch in supervision.batches(stage, work, responses)
    )
    return summed / sum(len(ids) for ids in responses.values())
