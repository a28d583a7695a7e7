"""Executes a job: prepares, goes through its stages, judges the outcome, and says all of it in events.

Running the same job in the same folder again goes on from the newest whole checkpoint. It touches no
broker, no database and no global.
"""

from __future__ import annotations

import errno
import os
import platform
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError

from opdcore import checkpoints
from opdcore.checkpoints import Saved
from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.distill import DistillStage
from opdcore.contract.errors import BadInput, Cancelled, EngineFailure, Paused, StillroomError
from opdcore.contract.events import (
    AnyEvent,
    ArtifactWritten,
    FinalStatus,
    JobFinished,
    JobStarted,
    Logged,
    StageFinished,
    StageStarted,
    shape,
)
from opdcore.contract.job import Job
from opdcore.contract.outcome import Outcome
from opdcore.contract.probe import DiagnoseStage
from opdcore.contract.recipe import EvaluateStage, Recipe, Stage, TrainingStage
from opdcore.contract.reinforce import ReinforceStage
from opdcore.contract.select_prompts import SelectPromptsStage
from opdcore.device import describe, is_out_of_memory
from opdcore.stages import keeping
from opdcore.stages.cold_start import cold_start
from opdcore.stages.diagnose import diagnose
from opdcore.stages.distill import distill
from opdcore.stages.evaluate import evaluate
from opdcore.stages.reinforce import reinforce
from opdcore.stages.select_prompts import select_prompts
from opdcore.workspace import (
    Line,
    Stop,
    Workspace,
    only_diagnoses,
    pick_device,
    prepare,
    train_devices,
)

OUTPUT = "output"
# How a run ends that an error ended; any other has failed.
ENDINGS: dict[type[StillroomError], FinalStatus] = {Cancelled: "cancelled", Paused: "paused"}
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
SOFTWARE = ("torch", "transformers", "safetensors", "tokenizers", "numpy")


def execute(
    job: Job, run_dir: Path, *, stop: Stop = lambda: False
) -> Generator[AnyEvent, None, None]:
    """Runs the job and yields its events; the last is always `job_finished`.

    Errors that have a code end the run as that event, and are then raised again for the caller; so
    do running out of memory and running out of disk. Anything else is a fault of ours and passes
    through as it is.
    """
    numbering = _Numbering(job.attempt)
    try:
        with ExitStack() as stack:
            outcome = yield from _execute(job, run_dir, stop, stack, numbering)
    except StillroomError as error:
        status = ENDINGS.get(type(error), "failed")
        yield numbering.event(Line(JobFinished(status=status, error=error.info)))
        raise
    except (MemoryError, OSError, RuntimeError, SafetensorError) as error:
        failure = _failure(error)
        if failure is None:
            raise
        yield numbering.event(Line(JobFinished(status="failed", error=failure.info)))
        raise failure from error
    yield numbering.event(Line(JobFinished(status="succeeded", outcome=outcome)))


class _Numbering:
    """Counts lines and remembers the stage, so that nobody else shapes events."""

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.line = 0
        self.stage_index: int | None = None

    def event(self, line: Line) -> AnyEvent:
        self.line += 1
        return shape(
            line.payload,
            attempt=self.attempt,
            line=self.line,
            stage_index=self.stage_index,
            step=line.step,
        )


def _execute(
    job: Job, run_dir: Path, stop: Stop, stack: ExitStack, numbering: _Numbering
) -> Generator[AnyEvent, None, Outcome]:
    _make(run_dir)
    yield numbering.event(Line(_started(job)))
    recipe_sha256 = checkpoints.recipe_sha256(job.recipe)
    resume = checkpoints.newest(run_dir / checkpoints.FOLDER, recipe_sha256=recipe_sha256)
    for item in prepare(job, run_dir, stop=stop, stack=stack, resumed=resume is not None):
        if isinstance(item, Workspace):
            work = item
        else:
            yield numbering.event(Line(item))
    work.processes.meet(work)
    for line in _untold(work):
        yield numbering.event(line)

    for index in range(resume.stage_index if resume else 0, len(job.recipe.stages)):
        numbering.stage_index = index
        stage = job.recipe.stages[index]
        from_here = resume if resume and resume.stage_index == index else None
        started = time.perf_counter()
        yield numbering.event(Line(_stage_started(stage, from_here)))
        lines = _run_stage(stage, work, index, from_here)
        for line in work.servers.telling(lines, Line):
            yield numbering.event(line)
            for notice in keeping.notices(work):
                yield numbering.event(Line(notice))
        yield numbering.event(Line(StageFinished(seconds=time.perf_counter() - started)))

    numbering.stage_index = None
    for payload in keeping.told(work):
        yield numbering.event(Line(payload))
    if not only_diagnoses(job.recipe):
        yield numbering.event(Line(_output(work)))
    return _outcome(work)


def _run_stage(stage: Stage, work: Workspace, index: int, resume: Saved | None) -> Iterator[Line]:
    if work.evaluator is not None and _needs_baseline(work.job.recipe, index):
        for payload in work.heeding_stop(work.evaluator.baseline(work.student)):
            yield Line(payload, 0)
    if isinstance(stage, DistillStage):
        yield from distill(stage, work, stage_index=index, resume=resume)
    elif isinstance(stage, ColdStartStage):
        yield from cold_start(stage, work, stage_index=index, resume=resume)
    elif isinstance(stage, ReinforceStage):
        yield from reinforce(stage, work, stage_index=index, resume=resume)
    elif isinstance(stage, DiagnoseStage):
        yield from diagnose(stage, work, stage_index=index)
    elif isinstance(stage, SelectPromptsStage):
        yield from select_prompts(stage, work, stage_index=index)
    else:
        yield from evaluate(work, stage_index=index)


def _needs_baseline(recipe: Recipe, index: int) -> bool:
    """Before the first stage that does more than diagnose; an evaluation that is the very first is it."""
    first = next(i for i, one in enumerate(recipe.stages) if not isinstance(one, DiagnoseStage))
    return index == first and (index > 0 or not isinstance(recipe.stages[0], EvaluateStage))


def _started(job: Job) -> JobStarted:
    return JobStarted(
        device=_device(job),
        versions={name: version(name) for name in SOFTWARE} | {"python": platform.python_version()},
        steps_by_stage=job.recipe.steps_by_stage,
        lab_version=job.lab_version,
    )


def _device(job: Job) -> str:
    """The device for people; where several train, how many."""
    name, count = describe(pick_device(job)), len(train_devices(job))
    return name if count == 1 else f"{count} x {name}"


def _stage_started(stage: Stage, resume: Saved | None) -> StageStarted:
    steps = stage.steps if isinstance(stage, TrainingStage) else 0
    resumed = resume.step if resume else None
    return StageStarted(stage_kind=stage.kind, steps=steps, resumed_from_step=resumed)


def _untold(work: Workspace) -> Iterator[Line]:
    """What this run cannot tell, said once at its beginning."""
    if work.evaluator is None and not only_diagnoses(work.job.recipe):
        reason = "no held-out prompts" if work.job.prompt_sets.held_out is None else "no verifier"
        yield Line(
            Logged(
                level="warning",
                message=f"There is {reason}, so accuracy, gap recovery and the outcome stay "
                "unknown; alignment, reward and entropy are measured as always.",
            )
        )


def _output(work: Workspace) -> ArtifactWritten:
    written = checkpoints.save_output(
        work.run_dir / OUTPUT, work.student.network, work.student.folder
    )
    return ArtifactWritten(
        artifact_kind="output", key=OUTPUT, sha256=written.sha256, size_bytes=written.size_bytes
    )


def _outcome(work: Workspace) -> Outcome:
    recipe = work.job.recipe
    if only_diagnoses(recipe):
        why = "The recipe only diagnoses, so there is no gain to judge; its verdict is the result."
        return Outcome(code="unmeasured", explanation=why)
    if work.evaluator is None:
        return _unmeasured(work.job)
    outcome = work.evaluator.outcome(recipe.goal)
    if any(recipe.steps_by_stage):
        return outcome
    why = "The recipe trains nothing, so there is no gain to judge."
    return Outcome(
        code="unmeasured",
        explanation=why,
        before=outcome.before,
        teacher=outcome.teacher,
        prompts=outcome.prompts,
    )


def _unmeasured(job: Job) -> Outcome:
    missing = "held-out prompts" if job.prompt_sets.held_out is None else "a verifier"
    return Outcome(
        code="unmeasured", explanation=f"Without {missing} nothing says whether it got better."
    )


def _make(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        raise BadInput(
            "run.folder",
            f"{run_dir} cannot be the run's folder: {error.strerror}.",
            remedy="Name a folder that can be made and written to.",
            field="run-dir",
        ) from error


def _failure(error: Exception) -> EngineFailure | None:
    """What a full memory or a full disk is called; None for anything else."""
    if is_out_of_memory(error):
        return EngineFailure(
            "run.out_of_memory",
            f"Memory ran out: {error}.",
            remedy="Resume where more memory is free, or start a new run with lower "
            "micro_batch_tokens, max_response_tokens or rollouts_per_prompt.",
        )
    # safetensors writes in Rust, and its error carries the system's words but no number.
    words = isinstance(error, SafetensorError) and os.strerror(errno.ENOSPC) in str(error)
    if words or (isinstance(error, OSError) and error.errno in NO_SPACE):
        return EngineFailure(
            "run.disk_full",
            f"The disk ran out: {error}.",
            remedy="Free space where the run's folder is, then resume it.",
        )
    return None
