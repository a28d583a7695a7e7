"""Probes and runs a triple, each by a job; keeps all that verdicts are drawn from.

What is kept are measurements. Verdicts are drawn from them anew whenever the study is summarised, so a
threshold can be changed without a run.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import opdcore
from benchmarks.calibration import pairs
from benchmarks.calibration.pairs import Made
from benchmarks.calibration.triples import RELATIONS, Triple
from benchmarks.records import ROOT
from opdcore.contract.distill import DistillStage
from opdcore.contract.events import AnyEvent
from opdcore.contract.job import Job
from opdcore.contract.probe import DiagnoseStage
from opdcore.contract.recipe import Stage

KEPT = ROOT / "state" / "calibration"
# Raise one when what it names changes: what was kept of it is then made anew.
MODELS, PROBE, RUN = "models-1", "probes-2", "runs-2"
STEPS = 150
LONGEST = 96


def measured(triple: Triple) -> dict[str, Any]:
    """A triple's probe and run, from what was kept or made now."""
    probe, run = _kept(triple, PROBE), _kept(triple, RUN)
    return {**run, **probe, "cpu_seconds": run["cpu_seconds"] + probe["cpu_seconds"]}


def ran(triple: Triple) -> dict[str, Any]:
    """A triple's run alone, from what was kept or made now."""
    return _kept(triple, RUN)


def is_kept(triple: Triple, *, probed: bool = True) -> bool:
    """Whether the triple was run before, and probed too."""
    return _file(triple, RUN).exists() and (not probed or _file(triple, PROBE).exists())


def _kept(triple: Triple, what: str) -> dict[str, Any]:
    file = _file(triple, what)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".part")
        aside.write_text(json.dumps(_measure(triple, what)), encoding="utf-8")
        aside.rename(file)
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _file(triple: Triple, what: str) -> Path:
    return KEPT / f"{what}-of-{MODELS}" / f"{triple.name}.json"


def _measure(triple: Triple, what: str) -> dict[str, Any]:
    """What a job says: all of its run, or until its diagnosis, whose budget the run decides."""
    began = time.process_time()
    made = pairs.made(triple, KEPT / MODELS / triple.name)
    stages = (diagnose_stage(triple), distill_stage()) if what == PROBE else (distill_stage(),)
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(opdcore.run(job(triple, made, stages), Path(folder))) as events,
    ):
        last = "diagnosis" if what == PROBE else "job_finished"
        told = _told(events, last=last)
    return {**told, "cpu_seconds": round(time.process_time() - began, 1)}


def _told(events: Iterable[AnyEvent], *, last: str) -> dict[str, Any]:
    """What a job said: its diagnosis, or series, position chunks, evaluations and the outcome."""
    told: dict[str, Any] = {}
    series: dict[str, list[float | None]] = defaultdict(list)
    for event in events:
        match event.kind:
            case "diagnosis":
                told["diagnosis"] = event.payload.model_dump(mode="json")
            case "metrics":
                for key, value in event.payload.values.items():
                    series[key].append(None if value is None else float(f"{value:.5g}"))
            case "positions":
                told.setdefault("positions", []).append(event.payload.model_dump(mode="json"))
            case "evaluation":
                values = {"step": event.step, "role": event.payload.role, **event.payload.values}
                told.setdefault("evaluations", []).append(values)
            case "job_finished":
                if event.payload.outcome is not None:
                    told["outcome"] = event.payload.outcome.model_dump(mode="json")
        if event.kind == last:
            break
    return {**told, "series": series} if series else told


def distill_stage() -> DistillStage:
    """The laboratory's own settings, for longer, with half the rollouts and half the rate.

    At the whole rate a cups student that had learnt began to write without end after 50 steps.
    """
    return DistillStage(
        steps=STEPS,
        prompts_per_step=32,
        rollouts_per_prompt=1,
        form="top_k",
        k=16,
        learning_rate=5e-4,
        warmup_steps=5,
        weight_decay=0.0,
        max_prompt_tokens=LONGEST,
        max_response_tokens=LONGEST,
        evaluate_steps=STEPS // 6,
        checkpoint_steps=STEPS,
        trace_steps=STEPS,
    )


def diagnose_stage(triple: Triple) -> DiagnoseStage:
    """A diagnosis within the share of the run's tokens that a recipe's diagnosis takes by default."""
    return DiagnoseStage(
        rollouts_per_prompt=1,
        relation=RELATIONS[triple.kind],
        max_prompt_tokens=LONGEST,
        max_response_tokens=LONGEST,
    )


def job(triple: Triple, made: Made, stages: Sequence[Stage]) -> Job:
    """The stages on the triple's models and prompts."""
    evaluation = {
        "verifier": "laboratory", "prompts": 288, "samples_per_prompt": 1, "temperature": 1.0,
        "sampling_top_p": 1.0, "max_response_tokens": LONGEST,
    }  # fmt: skip
    model = {"kind": "local"}
    return Job.model_validate(
        {
            "run_id": triple.name,
            "student": {"model": model | {"path": str(made.student)}},
            "teachers": [{"model": model | {"path": str(made.teacher)}}],
            "prompt_sets": {
                "train": {"path": str(made.train)},
                "held_out": {"path": str(made.held_out)},
            },
            "recipe": {
                "name": "calibration",
                "evaluation": evaluation,
                "stages": [stage.model_dump() for stage in stages],
                "seed": triple.number,
            },
            "resources": {"train": {"threads": 1}},
        }
    )
