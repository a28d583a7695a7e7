"""What diagnosis costs: the command on the laboratory's pairs; the monitor and the traces beside a step.

It knows the command line, the contract's documents and the events of a job.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import yaml

import opdcore
from benchmarks.records import ROOT, Row, Rows
from opdcore.contract.distill import DistillStage
from opdcore.contract.events import AnyEvent
from opdcore.contract.job import Job
from opdcore.contract.positions import Positions
from opdcore.lab import record
from opdcore.monitor import Monitor

FAMILY = "sums"
RECIPE = ROOT / "recipes" / "laboratory-sums.yaml"
TEACHERS = {"success": "teacher", "mismatch": "teacher_other_style"}
REPEATS = 3
# Every other step is traced, so that each has a neighbour that is not.
TRACED_EVERY = 2
STEPS = 60
# The first steps come from a cold process.
SKIPPED = 4


def command() -> list[Row]:
    """`opdcore diagnose` on the pair that succeeds and on the one whose patterns differ."""
    return [_diagnosed(pair) for _ in range(REPEATS) for pair in TEACHERS]


def _diagnosed(pair: str) -> Row:
    folder = record.shipped(FAMILY)
    options = {
        "student": folder / "student", "teacher": folder / TEACHERS[pair],
        "prompts": folder / record.TRAIN_FILE, "recipe": RECIPE, "verifier": "laboratory",
    }  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    before, began = _children_seconds(), time.perf_counter()
    told = subprocess.run(
        [sys.executable, "-m", "opdcore", "diagnose", *words, "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    seconds = time.perf_counter() - began
    verdict = json.loads(told.stdout)["verdict"]
    return {
        "pair": pair,
        "verdict": verdict["code"],
        "go": verdict["go"],
        "confidence": verdict["confidence"],
        "exit_code": told.returncode,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(_children_seconds() - before, 2),
    }


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def watching() -> list[Row]:
    """CPU seconds of each step of a run, every other one traced, and of the monitor's look at it."""
    stage = DistillStage.model_validate(_recipe()["stages"][0])
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(opdcore.run(_job(), Path(folder))) as events,
    ):
        told = list(_timed(events))
    seconds = _step_seconds(told)
    monitored = _monitor_seconds(stage, [event for event, _ in told])
    return [
        {
            "step": step,
            "traced": step % TRACED_EVERY == 0,
            "cpu_seconds": round(seconds[step], 5),
            "monitor_seconds": round(monitored[step], 6),
        }
        for step in range(1 + SKIPPED, STEPS)
    ]


def _timed(events: Iterator[AnyEvent]) -> Iterator[tuple[AnyEvent, float]]:
    for event in events:
        yield event, time.process_time()


def _step_seconds(told: Sequence[tuple[AnyEvent, float]]) -> dict[int, float]:
    """From the last event of the step before to a step's own last event, traces among them."""
    last = {event.step: at for event, at in told if event.step is not None}
    return {step: at - last[step - 1] for step, at in last.items() if step - 1 in last}


def _monitor_seconds(stage: DistillStage, events: Sequence[AnyEvent]) -> dict[int, float]:
    """The run's monitor once more over what was told, timed alone."""
    monitor, seconds = Monitor(stage), {}
    positions = {event.step: event.payload for event in events if event.kind == "positions"}
    for event in events:
        if event.kind == "metrics" and event.step is not None:
            chunks = Positions.model_validate(positions[event.step].model_dump())
            began = time.process_time()
            monitor.observe(event.step, event.payload.values, chunks)
            seconds[event.step] = time.process_time() - began
    return seconds


def _recipe() -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load(RECIPE.read_text("utf-8"))
    cadence = {"evaluate_steps": 0, "checkpoint_steps": STEPS, "trace_steps": TRACED_EVERY}
    recipe["stages"][0].update(steps=STEPS, **cadence)
    return recipe


def _job() -> Job:
    folder = record.shipped(FAMILY)
    local = {"kind": "local"}
    return Job.model_validate(
        {
            "run_id": "watching",
            "student": {"model": local | {"path": str(folder / "student")}},
            "teachers": [{"model": local | {"path": str(folder / "teacher")}}],
            "prompt_sets": {"train": {"path": str(folder / record.TRAIN_FILE)}},
            "recipe": _recipe(),
            "resources": {"train": {"threads": 1}},
        }
    )


def summarise(rows: Rows) -> dict[str, Any]:
    """The command's medians by pair, and shares of a step that watching takes."""
    asked, steps = rows.get("command", ()), rows.get("watching", ())
    found: dict[str, Any] = {
        "pairs": [_pair([row for row in asked if row["pair"] == pair]) for pair in TEACHERS]
        if asked
        else []
    }
    if steps:
        plain = median(row["cpu_seconds"] for row in steps if not row["traced"])
        traced = median(row["cpu_seconds"] for row in steps if row["traced"])
        monitor = median(row["monitor_seconds"] for row in steps)
        every = DistillStage().trace_steps
        found |= {
            "step_cpu_seconds": round(plain, 4),
            "monitor_share": round(monitor / plain, 4),
            "traced_step_share": round(traced / plain - 1, 4),
            "trace_share": round((traced / plain - 1) / every, 4),
        }
    return found


def _pair(rows: Sequence[Row]) -> dict[str, Any]:
    same = ("pair", "verdict", "go", "confidence", "exit_code")
    return {key: rows[0][key] for key in same} | {
        key: median(row[key] for row in rows) for key in ("seconds", "cpu_seconds")
    }


PARTS = {"command": command, "watching": watching}
