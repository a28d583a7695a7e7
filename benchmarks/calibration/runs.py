"""Runs a triple: a diagnosis, then distillation, in one job; keeps all that verdicts are drawn from.

What is kept are measurements. Verdicts are drawn from them anew whenever the study is summarised, so a
threshold can be changed without a run.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import opdcore
from benchmarks.calibration import pairs
from benchmarks.calibration.pairs import Made
from benchmarks.calibration.triples import RELATIONS, Triple
from benchmarks.records import ROOT
from opdcore.contract.events import AnyEvent
from opdcore.contract.job import Job
from opdcore.contract.probe import DiagnoseStage
from opdcore.contract.recipe import DistillStage

KEPT = ROOT / "state" / "calibration"
# Raise it when the making of triples, the probe or the runs change: what was kept is then run anew.
DEFINITION = 1
STEPS = 150
LONGEST = 96


def measured(triple: Triple) -> dict[str, Any]:
    """A triple's measurements, from what was kept or by running it now."""
    kept = KEPT / f"{triple.name}-{DEFINITION}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside = kept.with_suffix(".part")
        aside.write_text(json.dumps(_measure(triple)), encoding="utf-8")
        aside.rename(kept)
    content: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return content


def is_kept(triple: Triple) -> bool:
    """Whether the triple was run before."""
    return (KEPT / f"{triple.name}-{DEFINITION}.json").exists()


def _measure(triple: Triple) -> dict[str, Any]:
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        made = pairs.make(triple, Path(folder, "models"))
        with closing(opdcore.run(job(triple, made), Path(folder, "run"))) as events:
            told = _told(events)
    return {**told, "cpu_seconds": round(time.process_time() - began, 1)}


def _told(events: Iterable[AnyEvent]) -> dict[str, Any]:
    """The diagnosis, series by step, position chunks by step, evaluations and the outcome."""
    told: dict[str, Any] = {"evaluations": [], "positions": []}
    series: dict[str, list[float | None]] = defaultdict(list)
    for event in events:
        match event.kind:
            case "diagnosis":
                told["diagnosis"] = event.payload.model_dump(mode="json")
            case "metrics":
                for key, value in event.payload.values.items():
                    series[key].append(None if value is None else float(f"{value:.5g}"))
            case "positions":
                told["positions"].append(event.payload.model_dump(mode="json"))
            case "evaluation":
                values = {"step": event.step, "role": event.payload.role, **event.payload.values}
                told["evaluations"].append(values)
            case "job_finished":
                outcome = event.payload.outcome
                told["outcome"] = outcome.model_dump(mode="json") if outcome else None
    return {**told, "series": series}


def distill_stage() -> DistillStage:
    """The laboratory's own settings, for longer and with half the rollouts."""
    return DistillStage(
        steps=STEPS,
        prompts_per_step=32,
        rollouts_per_prompt=1,
        form="top_k",
        k=16,
        learning_rate=1e-3,
        warmup_steps=5,
        weight_decay=0.0,
        max_prompt_tokens=LONGEST,
        max_response_tokens=LONGEST,
        evaluate_steps=STEPS // 6,
        checkpoint_steps=STEPS,
        trace_steps=STEPS,
    )


def job(triple: Triple, made: Made) -> Job:
    """The laboratory's recipe with a diagnosis before it."""
    diagnose = DiagnoseStage(
        rollouts_per_prompt=2,
        relation=RELATIONS[triple.kind],
        max_prompt_tokens=LONGEST,
        max_response_tokens=LONGEST,
    )
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
                "stages": [diagnose.model_dump(), distill_stage().model_dump()],
                "seed": triple.number,
            },
            "resources": {"train": {"threads": 1}},
        }
    )
