"""The watch on real runs of the laboratory: a mismatch pauses or stops one, and resuming goes on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import opdcore
from opdcore import checkpoints
from opdcore.contract.errors import EngineFailure, Paused, StillroomError
from opdcore.contract.job import Job
from opdcore.lab.record import TRAIN_FILE, shipped
from opdcore.monitor import is_failing
from tests.opdcore.jobs import by_kind

STEPS = 15


def lab_job(on_failing: str, *, teacher: str = "teacher_other_style", steps: int = STEPS) -> Job:
    """Few prompts a step, and no evaluation, so that a run takes seconds."""
    lab = shipped("sums")
    stage = {
        "kind": "distill", "steps": steps, "prompts_per_step": 16, "rollouts_per_prompt": 1,
        "max_prompt_tokens": 128, "max_response_tokens": 64, "learning_rate": 1e-3,
        "warmup_steps": 5, "weight_decay": 0, "checkpoint_steps": 100, "trace_steps": 100,
        "trace_rollouts": 1, "on_failing": on_failing,
    }  # fmt: skip
    return Job.model_validate(
        {
            "run_id": "watched",
            "student": {"model": {"kind": "local", "path": str(lab / "student")}},
            "teachers": [{"model": {"kind": "local", "path": str(lab / teacher)}}],
            "prompt_sets": {"train": {"path": str(lab / TRAIN_FILE)}},
            "recipe": {
                "name": "watched", "stages": [stage], "evaluation": {"verifier": "laboratory"}
            },
            "resources": {"train": {"devices": ["cpu"], "threads": 1}},
        }
    )  # fmt: skip


def until_it_ends(job: Job, run_dir: Path) -> tuple[list, StillroomError | None]:
    """All events, and the error that was raised after the last one."""
    events = []
    with suppress(StopIteration):
        run = opdcore.run(job, run_dir)
        while True:
            try:
                events.append(next(run))
            except StillroomError as error:
                return events, error
    return events, None


def test_a_mismatch_pauses_the_run_with_a_checkpoint_and_resuming_goes_on_in_spite_of_it(tmp_path):
    job = lab_job("pause")
    events, error = until_it_ends(job, tmp_path / "run")
    assert (type(error), error.exit_code) == (Paused, 6)
    health = by_kind(events, "health")
    assert [event.payload.verdict.code for event in health] == ["HEALTHY", "STALLED_MISMATCH"]
    assert events[-1].payload.status == "paused"
    assert events[-1].payload.error.code == "run.paused"
    at = health[-1].step
    saved = checkpoints.newest(
        tmp_path / "run" / "checkpoints", recipe_sha256=checkpoints.recipe_sha256(job.recipe)
    )
    assert (saved.step, by_kind(events, "metrics")[-1].step) == (at, at)

    again = list(opdcore.run(job.model_copy(update={"attempt": 2}), tmp_path / "run"))
    assert again[-1].payload.status == "succeeded"
    assert [event.step for event in by_kind(again, "metrics")] == list(range(at + 1, STEPS + 1))
    held = by_kind(again, "health")[0]
    assert (held.step, held.payload.verdict) == (at, health[-1].payload.verdict)


def test_a_mismatch_stops_the_run_as_failed_with_a_reason_and_a_remedy(tmp_path):
    events, error = until_it_ends(lab_job("stop"), tmp_path / "run")
    assert isinstance(error, EngineFailure)
    ended = events[-1].payload
    assert (ended.status, ended.error.code) == ("failed", "run.failing")
    assert "STALLED_MISMATCH" in ended.error.message
    assert "resume this run" in ended.error.remedy


def test_a_success_is_healthy_to_its_end(tmp_path):
    events, error = until_it_ends(lab_job("stop", teacher="teacher", steps=12), tmp_path / "run")
    assert error is None
    assert [event.payload.verdict.code for event in by_kind(events, "health")] == ["HEALTHY"]


def test_a_run_that_fails_at_its_last_step_is_left_to_end(tmp_path):
    events, error = until_it_ends(lab_job("stop", steps=13), tmp_path / "run")
    assert error is None
    assert is_failing(by_kind(events, "health")[-1].payload.verdict)
    assert events[-1].payload.status == "succeeded"
