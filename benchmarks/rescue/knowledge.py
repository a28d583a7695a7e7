"""Teachers with nothing new: what is planned for their runs, and what a reinforced teacher does instead.

The student of each seed is reinforced with the verifier on its own prompts; the result is offered to
the untouched student as its teacher. It knows no other cause.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import opdcore
from benchmarks.calibration import pairs, runs
from benchmarks.calibration.triples import Triple
from benchmarks.records import Row
from benchmarks.rescue import arms
from benchmarks.rescue.cases import SCORED_ON, SEEDS
from benchmarks.rescue.pairs import plain
from opdcore.contract.reinforce import ReinforceStage
from opdcore.contract.rescue import RescuePlan

VERSION = "knowledge-1"
PART = "nothing_new"


def rows() -> list[Row]:
    """A row for each seed; what was not run yet is run now."""
    return [described(seed, measured(seed)) for seed in SEEDS]


def file_of(seed: int) -> Path:
    """Where a seed's measurements are kept."""
    return arms.KEPT / VERSION / f"{seed}.json"


def measured(seed: int) -> dict[str, Any]:
    """A seed's runs, from what was kept or made now."""
    return arms.kept(file_of(seed), lambda: _measure(seed))


def described(seed: int, told: dict[str, Any]) -> Row:
    """Both teachers' runs side by side, and what the plan for the first one was."""
    planned = RescuePlan.model_validate(told["plan"])
    first, second = told["nothing_new"], told["reinforced"]
    return {
        "seed": seed,
        "verdict": planned.verdict.code,
        "planned_stages": [one.kind for one in planned.recipe.stages] if planned.recipe else [],
        "offers": [offer.kind for offer in planned.offers],
        "before": arms.mean(first["scores"]["before"]),
        "teacher": arms.mean(first["scores"]["teacher"]),
        "after": arms.mean(first["scores"]["after"]),
        "outcome": first["outcome"]["code"],
        "reinforced_teacher": arms.mean(second["scores"]["teacher"]),
        "after_reinforced": arms.mean(second["scores"]["after"]),
        "outcome_reinforced": second["outcome"]["code"],
        "cpu_seconds": told["cpu_seconds"],
    }


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """How often a cold start was planned, and how often the reinforced teacher succeeded."""
    return {
        "seeds": len(rows),
        "cold_starts_planned": sum("cold_start" in row["planned_stages"] for row in rows),
        "offered_reinforce": sum("reinforce" in row["offers"] for row in rows),
        "succeeded_before": sum(row["outcome"] == "success" for row in rows),
        "succeeded_with_reinforced": sum(row["outcome_reinforced"] == "success" for row in rows),
    }


def _measure(seed: int) -> dict[str, Any]:
    triple = Triple(SCORED_ON, "nothing_new", 3 * seed, seed, 0.5)
    home = arms.KEPT / "models-1" / f"{SCORED_ON}-nothing-new-{seed}"
    pair = pairs.made(triple, home)
    with tempfile.TemporaryDirectory() as folder:
        poor = runs.job(triple, pair, (plain(),))
        told = {"nothing_new": arms.run(poor, Path(folder) / "poor")}
        planned = arms.planned_for(poor, told["nothing_new"], triple, Path(folder))
        better = replace(pair, teacher=_reinforced(triple, pair, home / "reinforced"))
        rich = runs.job(triple, better, (plain(),))
        told["reinforced"] = arms.run(rich, Path(folder) / "rich")
    return told | {"plan": planned.model_dump(mode="json")}


def _reinforced(triple: Triple, pair: pairs.Made, folder: Path) -> Path:
    """The student after learning from the verifier alone."""
    if not folder.exists():
        job = runs.job(triple, pair, (_reinforce(),))
        with tempfile.TemporaryDirectory() as run_dir:
            for _ in opdcore.run(job, Path(run_dir)):
                pass
            shutil.copytree(Path(run_dir) / "output", folder)
    return folder


def _reinforce() -> ReinforceStage:
    return ReinforceStage(
        steps=80,
        prompts_per_step=8,
        rollouts_per_prompt=8,
        learning_rate=4e-4,
        warmup_steps=5,
        weight_decay=0.0,
        max_prompt_tokens=runs.LONGEST,
        max_response_tokens=runs.LONGEST,
        evaluate_steps=0,
        checkpoint_steps=1000,
    )
