"""Factories of diagnoses: small jobs with a diagnose stage on shipped pairs, or on made folders."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from opdcore.contract.job import Job
from opdcore.contract.probe import Diagnosis
from opdcore.lab.record import shipped
from tests.opdcore.jobs import by_kind, events_of

SUMS = shipped("sums")
KNOBS = {
    "kind": "diagnose", "prompts": 24, "rollouts_per_prompt": 2, "max_prompt_tokens": 128,
    "max_response_tokens": 96,
}  # fmt: skip


def make_job(
    teacher: str | Path = "teacher",
    *,
    student: str | Path = "student",
    verifier: str = "laboratory",
    stages: tuple[dict[str, Any], ...] = (),
    train: Path = SUMS / "train.jsonl",
    held_out: Path | None = None,
    **knobs: Any,
) -> Job:
    """A job that diagnoses a pair, and then does the other stages if there are any."""
    sets = {"train": {"path": str(train)}}
    if held_out is not None:
        sets["held_out"] = {"path": str(held_out)}
    evaluation = {
        "verifier": verifier, "prompts": 16, "samples_per_prompt": 1, "max_response_tokens": 96,
    }  # fmt: skip
    return Job.model_validate(
        {
            "run_id": "diagnosed",
            "student": {"model": {"kind": "local", "path": str(SUMS / student)}},
            "teachers": [{"model": {"kind": "local", "path": str(SUMS / teacher)}}],
            "prompt_sets": sets,
            "recipe": {
                "name": "diagnosis",
                "evaluation": evaluation,
                "stages": [KNOBS | knobs, *stages],
            },
            "resources": {"train": {"devices": ["cpu"], "threads": 1}},
        }
    )


def diagnosis_of(job: Job, run_dir: Path) -> Diagnosis:
    """The diagnosis with which the job's first stage ends."""
    return by_kind(events_of(job, run_dir), "diagnosis")[0].payload


@cache
def shipped_diagnosis(teacher: str) -> Diagnosis:
    """That of the shipped student under a shipped teacher; it writes no file."""
    return diagnosis_of(make_job(teacher), SUMS)
