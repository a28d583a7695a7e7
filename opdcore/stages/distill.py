"""On-policy distillation: the student writes, the teacher scores every token, the student learns.

A step samples rollouts from the student, runs both models over them once, back-propagates the
objective at every response position, and updates the weights. Simplifications, on purpose:

- strictly on-policy: one update for each batch of rollouts, so no importance weights, no clipping;
- one student and its teachers, whole on each device, without dropout, their weights in float32;
- the loss is a sum over positions divided by their weight in the whole step, so how a step is cut into
  micro-batches changes nothing;
- everything random is seeded by (seed, stage, step), so a resumed run needs no generator's state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opdcore import checkpoints, step_report, tracing
from opdcore.checkpoints import Saved
from opdcore.contract.distill import DistillStage
from opdcore.contract.events import Logged, metrics
from opdcore.device import peak_memory_bytes
from opdcore.drawing import Drawing
from opdcore.evaluation import grade
from opdcore.gauges import Clock
from opdcore.horizon import Horizon
from opdcore.order import seed_of
from opdcore.passes import back_propagate
from opdcore.stages import saving, training
from opdcore.stages.anchoring import anchor
from opdcore.stages.measuring import measure
from opdcore.stages.writing import sampler_alarm, write
from opdcore.step_report import ScoredStep
from opdcore.teachers.recorded import at_step
from opdcore.watch import Watch
from opdcore.workspace import Line, Workspace


def distill(
    stage: DistillStage, work: Workspace, *, stage_index: int, resume: Saved | None
) -> Iterator[Line]:
    """Trains the workspace's student for the stage's steps, going on from `resume` if given."""
    drawing = Drawing(stage, work, stage_index=stage_index)
    work, seed = drawing.work, work.job.recipe.seed
    anchor(stage, work, stage_index, resume)
    tuning = training.begin(work, stage, seed=seed_of(seed, stage_index), resume=resume)
    saved_step = resume.step if resume is not None else 0
    watch, horizon = (
        Watch(stage, work, stage_index=stage_index, resume=resume),
        _horizon(stage, resume),
    )
    yield from watch.restored(saved_step)

    for step in range(saved_step + 1, stage.steps + 1):
        yield from drawing.refresh(step)
        if work.stop():
            if step - 1 > saved_step:
                yield from saving.checkpoint(
                    work,
                    tuning,
                    stage_index,
                    step - 1,
                    _followed(watch, horizon),
                    sound_until=watch.sound_until,
                )
            raise work.cancelled()
        clock = Clock(work.student.device)
        rows = drawing.rows(step)
        rollouts = write(
            stage, work, rows, longest=horizon.longest, seed=seed_of(seed, stage_index, step)
        )
        clock.lap("sample_seconds")
        grades = grade(
            work.verifier, work.student.renderer, rollouts, [work.pool[row] for row in rows]
        )
        clock.lap("grade_seconds")

        tuning.optimizer.forget_gradients()
        traced = tracing.size(stage, step)
        with at_step(step):
            passed = back_propagate(stage, work, rows, rollouts, horizon=horizon, traced=traced)
            again = (
                tracing.read_again(stage, work, stage_index=stage_index, step=step)
                if traced
                else None
            )
        clock.lap("train_seconds")
        update = training.update(work, step, passed.loss)
        training.follow(work)
        clock.lap("update_seconds")

        scored = ScoredStep(rows, rollouts, grades, passed)
        values = step_report.scalars(scored, work.student.renderer) | clock.seconds
        values |= {
            **update.told(),
            "tokens_per_second": scored.tokens / clock.seconds["step_seconds"],
            "peak_memory_bytes": float(peak_memory_bytes(work.student.device)),
            **horizon.told(),
        }
        yield Line(metrics(values), step)
        positions = step_report.positions(scored, stage)
        yield Line(positions, step)
        horizon.observe(positions)
        if not update.made:
            raise update.refusal(passed.loss, step)
        for alarm in filter(None, (tuning.alarm(), sampler_alarm(work, values))):
            yield Line(Logged(level="warning", message=alarm), step)
        yield from watch.observe(step, values, positions)

        if traced:
            for payload in tracing.write(work, scored, again, stage_index=stage_index, step=step):
                yield Line(payload, step)
        for payload in measure(stage, work, stage_index, step):
            yield Line(payload, step)
            yield from watch.evaluated(payload, step)
        halts = watch.halts(step)
        if halts or step % stage.checkpoint_steps == 0 or step == stage.steps:
            yield from saving.checkpoint(
                work,
                tuning,
                stage_index,
                step,
                _followed(watch, horizon),
                sound_until=watch.sound_until,
            )
            saved_step = step
        if halts:
            raise watch.ending(step)
    training.finish(work)


def _horizon(stage: DistillStage, resume: Saved | None) -> Horizon:
    """The stage's horizon, as the checkpoint left it."""
    horizon = Horizon(stage)
    if resume is not None and (state := checkpoints.followed(resume)):
        horizon.restore(state["horizon"])
    return horizon


def _followed(watch: Watch, horizon: Horizon) -> dict[str, Any]:
    """What a checkpoint keeps besides weights and optimizer."""
    return watch.state() | {"horizon": horizon.state()}
