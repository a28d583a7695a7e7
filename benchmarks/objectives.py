"""Truncated objectives on the laboratory: which one collapses, and which do not (arXiv 2605.11182).

The same pair, prompts, rate and steps; only the objective and the seed differ. A collapse is called by a
rule that was fixed before any run was made. It knows the command line and the contract's documents.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml

from benchmarks.records import ROOT, Row, Rows, circumstances
from opdcore.contract.job import Job
from opdcore.lab import record

SEEDS = range(8)
STEPS = 60
PROMPTS = 32
K = 4
OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "unnormalised": {"form": "top_k", "normalisation": "unnormalised", "k": K},
    "stop_gradient": {"form": "top_k", "normalisation": "stop_gradient", "k": K},
    "renormalised": {"form": "top_k", "normalisation": "renormalised", "k": K},
    "sampled": {"form": "sampled", "k": K},
}
# The rule: at the end most rollouts never stop, or the student is half as often right as it was.
LAST_STEPS = 5
TRUNCATED = 0.5
FORGOTTEN = 0.5
KEPT = ROOT / "state" / "bench" / "objectives"


def collapse() -> list[Row]:
    """A row for each objective and seed; runs made before at the same commit are not made again."""
    KEPT.mkdir(parents=True, exist_ok=True)
    return [_row(name, seed) for seed in SEEDS for name in OBJECTIVES]


def _row(name: str, seed: int) -> Row:
    job = _job(OBJECTIVES[name], seed)
    told = job.model_dump_json() + circumstances()["commit"]
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    kept = KEPT / f"{name}-{seed}-{digest}.json"
    if not kept.exists():
        kept.write_text(json.dumps(_measured(job)), encoding="utf-8")
    measured: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return {"objective": name, "seed": seed, **measured, "collapsed": _collapsed(measured)}


def _measured(job: Job) -> dict[str, float]:
    """Accuracy before and after, and what the last steps were like."""
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder, "job.json")
        document.write_text(job.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "opdcore", "run", str(document)]
        lines = subprocess.run(
            [*command, "--run-dir", str(Path(folder, "run"))],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
    events = [json.loads(line) for line in lines]
    steps = [event["payload"]["values"] for event in events if event["kind"] == "metrics"]
    outcome = events[-1]["payload"]["outcome"]
    keys = ("truncation_rate", "response_tokens_mean", "overlap_mass_student", "student_entropy")
    last = {key: fmean(values[key] for values in steps[-LAST_STEPS:]) for key in keys}
    return {key: outcome[key] for key in ("before", "after")} | last


def _collapsed(measured: Mapping[str, float]) -> bool:
    forgotten = measured["after"] < FORGOTTEN * measured["before"]
    return measured["truncation_rate"] > TRUNCATED or forgotten


def _job(objective: Mapping[str, Any], seed: int) -> Job:
    folder = record.shipped("sums")
    recipe = yaml.safe_load((ROOT / "recipes" / "laboratory-sums.yaml").read_text("utf-8"))
    recipe["seed"] = seed
    recipe["evaluation"]["teacher"] = False
    cadence = {"evaluate_steps": 0, "checkpoint_steps": STEPS, "trace_steps": STEPS}
    recipe["stages"][0].update(objective, steps=STEPS, prompts_per_step=PROMPTS, **cadence)
    return Job.model_validate(
        {
            "run_id": f"objective-{seed}",
            "student": {"model": {"kind": "local", "path": str(folder / "student")}},
            "teachers": [{"model": {"kind": "local", "path": str(folder / "teacher")}}],
            "prompt_sets": {
                "train": {"path": str(folder / "train.jsonl")},
                "held_out": {"path": str(folder / "held_out.jsonl")},
            },
            "recipe": recipe,
            "resources": {"train": {"threads": 1}},
            "lab_version": record.read(folder).lab_version,
        }
    )


def summarise(rows: Rows) -> dict[str, Any]:
    """How many seeds of each objective collapsed, and the medians."""
    by_objective = {
        name: [row for row in rows.get("collapse", ()) if row["objective"] == name]
        for name in OBJECTIVES
    }
    return {"objectives": [_summary(name, found) for name, found in by_objective.items() if found]}


def _summary(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    keys = ("before", "after", "truncation_rate", "response_tokens_mean", "overlap_mass_student")
    return {
        "objective": name,
        "runs": len(rows),
        "collapsed": sum(row["collapsed"] for row in rows),
        **{f"median_{key}": round(median(row[key] for row in rows), 4) for key in keys},
    }


PARTS = {"collapse": collapse}
