"""Reinforcement from verified answers: the student writes, the verifier grades, what is right is learned.

A step samples a group of rollouts from each prompt, weighs each rollout by how it did beside its
siblings (GRPO, 2402.03300), back-propagates the policy gradient and updates the weights. On purpose:

- strictly on-policy: one update for each batch of rollouts, so no importance weights, no clipping;
- every token of the step weighs the same, as in 2503.14476, so that long responses are no excuse;
- the teacher has no part in it; its weights lie idle until it is evaluated;
- everything random is seeded by (seed, stage, step), so a resumed run needs no generator's state.
"""

from __future__ import annotations

from collections.abc import Iterator

from opdcore import advantages, step_report
from opdcore.checkpoints import Saved
from opdcore.contract.events import Logged, metrics
from opdcore.contract.reinforce import ReinforceStage
from opdcore.device import peak_memory_bytes
from opdcore.evaluation import grade
from opdcore.gauges import Clock
from opdcore.order import draw, seed_of
from opdcore.reward_passes import learn
from opdcore.stages import saving, training
from opdcore.stages.anchoring import anchor
from opdcore.stages.measuring import measure
from opdcore.stages.writing import write
from opdcore.workspace import Line, Workspace


def reinforce(
    stage: ReinforceStage, work: Workspace, *, stage_index: int, resume: Saved | None
) -> Iterator[Line]:
    """Trains the workspace's student for the stage's steps, going on from `resume` if given."""
    seed = work.job.recipe.seed
    anchor(stage, work, stage_index, resume)
    tuning = training.begin(work, stage, seed=seed_of(seed, stage_index), resume=resume)
    saved_step = resume.step if resume is not None else 0

    for step in range(saved_step + 1, stage.steps + 1):
        if work.stop():
            if step - 1 > saved_step:
                yield from saving.checkpoint(work, tuning, stage_index, step - 1)
            raise work.cancelled()
        clock = Clock(work.student.device)
        rows = draw(len(work.train), stage, seed=seed, stage_index=stage_index, step=step)
        rollouts = write(
            stage,
            work,
            rows,
            longest=stage.max_response_tokens,
            seed=seed_of(seed, stage_index, step),
        )
        clock.lap("sample_seconds")
        grades = grade(
            work.verifier, work.student.renderer, rollouts, [work.train[row] for row in rows]
        )
        clock.lap("grade_seconds")

        tuning.optimizer.forget_gradients()
        weighed = advantages.weigh(stage, rollouts, grades)
        learned = learn(stage, work, rows, rollouts, weighed)
        clock.lap("train_seconds")
        update = training.update(work, step, learned.loss)
        clock.lap("update_seconds")

        written = step_report.written(rollouts, grades, work.student.renderer)
        values = written | learned.told() | clock.seconds
        values |= {
            "reward_mean": weighed.mean_reward,
            "zero_variance_groups": weighed.groups_alike,
            **update.told(),
            "tokens_per_second": sum(len(r.ids) for r in rollouts) / clock.seconds["step_seconds"],
            "peak_memory_bytes": float(peak_memory_bytes(work.student.device)),
        }
        yield Line(metrics(values), step)
        if not update.made:
            raise update.refusal(learned.loss, step)
        if alarm := tuning.alarm():
            yield Line(Logged(level="warning", message=alarm), step)
        for payload in measure(stage, work, stage_index, step):
            yield Line(payload, step)
        if step % stage.checkpoint_steps == 0 or step == stage.steps:
            yield from saving.checkpoint(work, tuning, stage_index, step)
            saved_step = step
    training.finish(work)
