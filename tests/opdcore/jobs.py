"""Factories of small, real jobs on the model folders of `model_folders`."""

import json
from pathlib import Path

import opdcore
from opdcore.contract.job import Job
from opdcore.contract.recipe import Recipe
from tests.opdcore.model_folders import make_pair

QUESTIONS = [
    {
        "prompt": f"Tom has {a} pens and buys {a % 5 + 1} more. How many has he?",
        "answer": str(a + a % 5 + 1),
    }
    for a in range(2, 42)
]


def write_prompts(path: Path, rows=QUESTIONS) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def make_recipe(evaluation=None, **knobs) -> Recipe:
    stage = {
        "kind": "distill", "steps": 4, "prompts_per_step": 4, "rollouts_per_prompt": 2,
        "max_response_tokens": 16, "learning_rate": 1e-2, "evaluate_steps": 2,
        "checkpoint_steps": 2, "trace_steps": 2,
    } | knobs  # fmt: skip
    told = {"verifier": "numeric", "prompts": 6, "samples_per_prompt": 2, "max_response_tokens": 16}
    return Recipe.model_validate(
        {"name": "small", "evaluation": told | (evaluation or {}), "stages": [stage]}
    )


def make_job(
    folder: Path, *, pair=None, recipe=None, rows=QUESTIONS, held_out=True, **fields
) -> Job:
    student, teacher = pair or make_pair(folder)
    prompts = write_prompts(folder / "prompts.jsonl", rows)
    sets = {"train": {"path": prompts}} | ({"held_out": {"path": prompts}} if held_out else {})
    return Job.model_validate(
        {
            "run_id": "tested",
            "student": {"model": {"kind": "local", "path": str(student)}},
            "teachers": [{"model": {"kind": "local", "path": str(teacher)}}],
            "prompt_sets": sets,
            "recipe": (recipe or make_recipe()).model_dump(),
            "resources": {"train": {"devices": ["cpu"], "threads": 1}},
        }
        | fields
    )


def events_of(job: Job, run_dir: Path, **options) -> list:
    return list(opdcore.run(job, run_dir, **options))


def by_kind(events, kind: str) -> list:
    return [event for event in events if event.kind == kind]
