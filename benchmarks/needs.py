"""Predicted beside measured: memory, disk and seconds of recipes on a CPU, each in a fresh process.

A prediction is the one that a launch shows, without an earlier run of the pair. It knows recipes' knobs
and what a run tells of itself, nothing inside either.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import cells, pairs
from benchmarks.pairs import Pair, Shape
from benchmarks.records import Row, Rows
from opdcore.contract.job import Job
from opdcore.contract.prompt import Prompt
from opdcore.contract.recipe import Recipe
from opdcore.contract.rendering import Rendering
from opdcore.inspection import inspect
from opdcore.lab import record
from opdcore.planning import Setting, forecast
from opdcore.rendering import Renderer

LOOK_SECONDS = 0.02
THREADS = 1
STEPS = 3
COMPARED = ("memory_bytes", "disk_bytes", "seconds")
# Weights of 17 and 38 million parameters, so that they and not the program are most of the memory.
MIDDLE = Pair(Shape(384, 6, 6, 6, 1536, 8000), Shape(512, 8, 8, 8, 2048, 8000))


@dataclass(frozen=True)
class Case:
    """A recipe's knobs on the laboratory's pair or on a made one."""

    pair: Pair | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)


LONG = {"max_response_tokens": 512}
SMALL_BATCH = {"prompts_per_step": 8}
# Responses of made pairs are as long as they may be; the laboratory's and the short ones end by themselves.
CASES = {
    "laboratory": Case(),
    "laboratory_lora": Case(knobs={"tuning": "lora"}),
    "laboratory_large_batch": Case(knobs={"prompts_per_step": 512}),
    "long_responses": Case(pairs.small(1024), LONG),
    "large_vocabulary": Case(pairs.small(32_000), SMALL_BATCH),
    "middle": Case(MIDDLE, SMALL_BATCH),
    "middle_lora": Case(MIDDLE, SMALL_BATCH | {"tuning": "lora"}),
    "middle_wide_passes": Case(MIDDLE, {"prompts_per_step": 32}),
    "short_responses": Case(pairs.small(1024, hazard=1 / 64), LONG),
}


def _recipe(case: Case) -> Recipe:
    stage = {
        "kind": "distill",
        "steps": STEPS,
        "prompts_per_step": 64,
        "max_prompt_tokens": 128,
        "max_response_tokens": 128,
        "learning_rate": 1e-4,
        "checkpoint_steps": 1,
        **case.knobs,
    }
    evaluation = {"verifier": "laboratory" if case.pair is None else "none", "prompts": 32}
    evaluation |= {"max_response_tokens": 128, "samples_per_prompt": 1}
    document = {"version": 1, "name": "needs", "evaluation": evaluation, "stages": [stage]}
    return Recipe.model_validate(document)


def measure(name: str) -> list[Row]:
    """One recipe, predicted and run."""
    case = CASES[name]
    laboratory = record.shipped("sums") if case.pair is None else pairs.make(case.pair).folder
    prompts = laboratory / ("train.jsonl" if case.pair is None else "prompts.jsonl")
    held_out = laboratory / "held_out.jsonl" if case.pair is None else None
    job = _job(laboratory, prompts, held_out, _recipe(case))
    return [{"predicted": _predicted(job, laboratory, prompts), "measured": _run(job)}]


def _job(folder: Path, train: Path, held_out: Path | None, recipe: Recipe) -> Job:
    sets = {"train": {"path": str(train)}}
    sets |= {"held_out": {"path": str(held_out)}} if held_out else {}
    return Job.model_validate(
        {
            "run_id": "needs",
            "student": {"model": {"kind": "local", "path": str(folder / "student")}},
            "teachers": [{"model": {"kind": "local", "path": str(folder / "teacher")}}],
            "prompt_sets": sets,
            "recipe": recipe.model_dump(mode="json"),
            "resources": {"train": {"devices": ["cpu"], "threads": THREADS}},
        }
    )


def _predicted(job: Job, folder: Path, prompts: Path) -> Row:
    student, teacher = inspect(folder / "student"), inspect(folder / "teacher")
    renderer = Renderer.from_folder(folder / "student", Rendering())
    lines = prompts.read_text(encoding="utf-8").splitlines()
    rendered = renderer.render_many([Prompt.model_validate_json(line) for line in lines])
    longest = max(len(one.ids) for one in rendered)
    shared = min(student.vocabulary, teacher.vocabulary)
    found = forecast(job.recipe, Setting(student, [teacher], shared, longest_prompt=longest))
    assert found is not None
    return {
        "memory_bytes": found.memory.peak_memory_bytes,
        "disk_bytes": found.disk.disk_bytes,
        "seconds": round(found.seconds, 2),
        "memory": {row.label: round(row.amount) for row in found.memory.memory},
        "disk": {row.label: round(row.amount) for row in found.disk.disk},
    }


def _run(job: Job) -> Row:
    """The run's own word on its memory; its folder and the clock, looked at from outside."""
    with tempfile.TemporaryDirectory() as folder:
        path, run_dir = Path(folder, "job.json"), Path(folder, "run")
        path.write_text(job.model_dump_json(), encoding="utf-8")
        command = [str(cells.OURS), "-m", "opdcore", "run", str(path), "--run-dir", str(run_dir)]
        began, disk = time.monotonic(), 0
        with (Path(folder) / "events").open("w+", encoding="utf-8") as told:
            child = subprocess.Popen(command, stdout=told, env=_environment())
            while child.poll() is None:
                disk = max(disk, _size(run_dir))
                time.sleep(LOOK_SECONDS)
            seconds = time.monotonic() - began
            told.seek(0)
            events = [json.loads(line) for line in told]
    if child.returncode:
        raise RuntimeError(f"the run ended with {child.returncode}: {events[-1]}")
    values = [event["payload"]["values"] for event in events if event["kind"] == "metrics"]
    return {
        "memory_bytes": round(max(one["peak_memory_bytes"] for one in values)),
        "disk_bytes": disk,
        "seconds": round(seconds, 2),
        "response_tokens_mean": round(sum(v["response_tokens_mean"] for v in values) / len(values)),
    }


def _size(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for file in files:
            try:
                total += (Path(root) / file).stat().st_size
            except FileNotFoundError:  # written aside, and in place by now
                continue
    return total


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}


PARTS = {name: partial(measure, name) for name in CASES}


def summarise(rows: Rows) -> dict[str, Any]:
    """Measured divided by predicted, by recipe, and how far memory is off at most."""
    ratios = [{"recipe": name, **_ratios(found[0])} for name, found in rows.items()]
    off = [abs(one["memory_bytes"] - 1) for one in ratios]
    return {
        "measured_by_predicted": ratios,
        "memory_off_at_most": round(max(off), 3) if off else None,
        "gpu": "not run",
    }


def _ratios(row: Row) -> dict[str, float]:
    predicted, measured = row["predicted"], row["measured"]
    return {key: round(measured[key] / predicted[key], 3) for key in COMPARED}
