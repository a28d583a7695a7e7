"""Strategies of selection beside random prompts, at equal tokens of distillation.

Every arm distils the same learnable pair with as many prompts a step for as many steps; what choosing
costs is told beside it. For the teacher's template the teacher is first taught to answer in one. It
knows no cause of failure.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import opdcore
from benchmarks.calibration import pairs, runs
from benchmarks.calibration.pairs import Made
from benchmarks.calibration.triples import Triple
from benchmarks.records import Row
from benchmarks.rescue import arms
from benchmarks.rescue.cases import SCORED_ON, SEEDS
from benchmarks.rescue.pairs import plain
from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.job import Job, PromptFile
from opdcore.contract.select_prompts import SelectPromptsStage, Strategy
from opdcore.lab.cups import NEW_SKILL

VERSION = "selections-1"
PART = "selections"
STEPS = 24
# How the teacher reads a prompt once it has been taught to.
TEMPLATE = "{% for message in messages %}Cups: {{ message['content'] }}{% endfor %}"


def rows() -> list[Row]:
    """A row for each seed and strategy; what was not run yet is run now."""
    return [
        described(seed, strategy, measured(seed, strategy))
        for seed in SEEDS
        for strategy in get_args(Strategy)
    ]


def file_of(seed: int, strategy: Strategy) -> Path:
    """Where an arm's measurements are kept."""
    return arms.KEPT / VERSION / f"{seed}-{strategy}.json"


def measured(seed: int, strategy: Strategy) -> dict[str, Any]:
    """An arm, from what was kept or made now; with a template, random prompts without it too."""
    return arms.kept(file_of(seed, strategy), lambda: _measure(seed, strategy))


def described(seed: int, strategy: Strategy, told: dict[str, Any]) -> Row:
    """An arm's row, with the random arm of the same pair beside it where it is another pair."""
    beside = told.get("untemplated")
    return {
        "seed": seed,
        "strategy": strategy,
        **{key: arms.mean(told["scores"][key]) for key in ("before", "after", "teacher")},
        "tokens": round(told["tokens"]),
        "after_random": arms.mean(beside["scores"]["after"]) if beside else None,
        "cpu_seconds": told["cpu_seconds"],
    }


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """By strategy: accuracy after, and its difference to random prompts, each with its seeds."""
    random = {row["seed"]: row["after"] for row in rows if row["strategy"] == "random"}
    return [_strategy(strategy, rows, random) for strategy in get_args(Strategy)]


def _strategy(strategy: str, rows: Sequence[Row], random: dict[int, float]) -> dict[str, Any]:
    own = [row for row in rows if row["strategy"] == strategy]
    beside = [row["after_random"] or random[row["seed"]] for row in own if row["seed"] in random]
    differences = [row["after"] - other for row, other in zip(own, beside, strict=False)]
    return {
        "strategy": strategy,
        "after": [row["after"] for row in own],
        "against_random": _spread(differences),
        "tokens": round(sum(row["tokens"] for row in own) / max(1, len(own))),
    }


def _spread(values: Sequence[float]) -> dict[str, float | int] | None:
    """Mean, lowest and highest of a few seeds."""
    if not values:
        return None
    told = {"mean": fmean(values), "lowest": min(values), "highest": max(values)}
    return {key: round(value, 3) for key, value in told.items()} | {"n": len(values)}


def _measure(seed: int, strategy: Strategy) -> dict[str, Any]:
    triple = Triple(SCORED_ON, "learnable", seed, seed, 0.1)
    home = arms.KEPT / "models-1" / f"{SCORED_ON}-selections-{seed}"
    pair = pairs.made(triple, home)
    with tempfile.TemporaryDirectory() as folder:
        if strategy != "teacher_template":
            return arms.run(_job(triple, pair, strategy, home), Path(folder) / "run")
        templated = replace(pair, teacher=_templated(triple, pair, home))
        told = arms.run(_job(triple, templated, strategy, home), Path(folder) / "run")
        beside = _job(triple, templated, "random", home, share=1.0)
        return told | {"untemplated": arms.run(beside, Path(folder) / "beside")}


def _job(triple: Triple, pair: Made, strategy: Strategy, home: Path, *, share: float = 0.25) -> Job:
    stage = SelectPromptsStage(
        strategy=strategy,
        candidates=512,
        share=share,
        refresh_steps=STEPS // 3,
        expand=0.25,
        samples_per_prompt=4,
        max_prompt_tokens=runs.LONGEST,
        max_response_tokens=runs.LONGEST,
    )
    distill = plain().model_copy(update={"steps": STEPS, "evaluate_steps": 0})
    job = runs.job(triple, pair, (stage, distill))
    if strategy != "teacher_content":
        return job
    content, outside = _by_skill(pair.train, home)
    return job.model_copy(
        update={
            "prompt_sets": job.prompt_sets.model_copy(
                update={"teacher_content": content, "outside": outside}
            )
        }
    )


def _by_skill(train: Path, home: Path) -> tuple[PromptFile, PromptFile]:
    """The prompts with the skill that the teacher was trained further on, and the others."""
    lines = train.read_text(encoding="utf-8").splitlines()
    files = []
    for name, wanted in (("content", True), ("outside", False)):
        kept = [line for line in lines if (NEW_SKILL in json.loads(line)["prompt"]) == wanted]
        file = home / f"{name}.jsonl"
        file.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        files.append(PromptFile(path=str(file)))
    return files[0], files[1]


def _templated(triple: Triple, pair: Made, home: Path) -> Path:
    """The teacher after learning its own answers once more, behind a template of its own."""
    folder = home / "templated"
    if folder.exists():
        return folder
    stage = ColdStartStage(
        prompts=1024,
        held_out_prompts=16,
        steps=192,
        learning_rate=1e-3,
        max_prompt_tokens=runs.LONGEST,
        max_response_tokens=runs.LONGEST,
    )
    with tempfile.TemporaryDirectory() as aside:
        copy = Path(aside) / "teacher"
        shutil.copytree(pair.teacher, copy)
        (copy / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        job = runs.job(triple, replace(pair, student=copy), (stage,))
        for _ in opdcore.run(job, Path(aside) / "run"):
            pass
        shutil.copytree(Path(aside) / "run" / "output", folder)
    return folder
