"""Arms, rows and summary: does what two teachers know add up, and what does a self-teacher teach?

Before any run was made it was fixed what shows what. Two teachers beat each alone where, seed by seed, the
student of both is right on more held-out prompts than the better of the two other students, and the
95 % interval of the mean difference over seeds lies above 0. A self-teacher works where the outcome is a
success, and fails where the share of the gap that is closed is below a half.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.calibration import runs
from benchmarks.records import Row, Rows
from benchmarks.rescue import arms
from benchmarks.teachers import made
from benchmarks.teachers.exercises import RULE, SKILLS
from opdcore.contract.distill import DistillStage
from opdcore.contract.job import Job

SEEDS = range(5)
STEPS = 100
# Raise it when what is measured changes: all of it is then made anew.
VERSION = "runs-1"
# The two-sided 95 % quantile of Student's t with four degrees of freedom.
T_OF_FIVE = 2.776

Document = dict[str, Any]


def operations() -> list[Row]:
    """Two teachers by tag, both on every prompt, and each alone."""
    return [_row(seed, arm, teachers) for seed in SEEDS for arm, teachers in _panels(seed).items()]


def privileged() -> list[Row]:
    """The student as its own teacher: under a rule in three ways of following, and under the answers."""
    return [_row(seed, arm, told) for seed in SEEDS for arm, told in _own(seed).items()]


def _panels(seed: int) -> dict[str, Callable[[], tuple[Path, list[Document]]]]:
    def of(*said: tuple[str, bool]) -> Callable[[], tuple[Path, list[Document]]]:
        return lambda: (
            made.student(seed),
            [
                _local(made.teacher(seed, skill)) | ({"tags": [skill]} if tagged else {})
                for skill, tagged in said
            ],
        )

    first, second = SKILLS
    return {
        "by_tag": of((first, True), (second, True)),
        "both_on_all": of((first, False), (second, False)),
        f"{first}_alone": of((first, False)),
        f"{second}_alone": of((second, False)),
    }


def _own(seed: int) -> dict[str, Callable[[], tuple[Path, list[Document]]]]:
    rule = {"source": "rule", "rule": RULE, "form": "{privileged} {prompt}"}
    answer = {"source": "prompt", "form": "{privileged} {prompt}"}

    def of(told: str, said: Document) -> Callable[[], tuple[Path, list[Document]]]:
        def pair() -> tuple[Path, list[Document]]:
            folder = made.own_teacher(seed, "rule" if told == "rule" else "answer")
            return folder, [_local(folder) | said]

        return pair

    return {
        "rule": of("rule", {"privileged": rule}),
        "rule_average": of("rule", {"privileged": rule, "follows": "average"}),
        "rule_live": of("rule", {"privileged": rule, "follows": "student"}),
        "answer": of("answer", {"privileged": answer}),
        "answer_live": of("answer", {"privileged": answer, "follows": "student"}),
    }


def _row(seed: int, arm: str, pair: Callable[[], tuple[Path, list[Document]]]) -> Row:
    file = made.KEPT / f"{VERSION}-of-{made.VERSION}" / f"{arm}-{seed}.json"
    told = arms.kept(file, lambda: _measured(seed, arm, *pair()))
    return {"seed": seed, "arm": arm, **told}


def _measured(seed: int, arm: str, student: Path, teachers: list[Document]) -> Document:
    train, held_out = made.prompt_files(seed)
    job = _job(f"{arm}-{seed}", seed, student, teachers, (train, held_out))
    with tempfile.TemporaryDirectory() as folder:
        told = arms.run(job, Path(folder) / "run")
    outcome = told["outcome"]
    keys = ("code", "before", "after", "teacher", "recovery")
    return {key: outcome[key] for key in keys} | {
        "scores": [int(score or 0) for score in told["scores"]["after"]],
    }


def _job(
    name: str, seed: int, student: Path, teachers: list[Document], prompts: Sequence[Path]
) -> Job:
    stage = runs.distill_stage().model_dump() | {
        "steps": STEPS, "evaluate_steps": STEPS, "checkpoint_steps": STEPS, "trace_steps": STEPS,
    }  # fmt: skip
    evaluation = {
        "verifier": "laboratory", "prompts": 288, "samples_per_prompt": 1, "temperature": 1.0,
        "sampling_top_p": 1.0, "max_response_tokens": runs.LONGEST,
    }  # fmt: skip
    return Job.model_validate(
        {
            "run_id": name,
            "student": _local(student),
            "teachers": teachers,
            "prompt_sets": {
                "train": {"path": str(prompts[0])},
                "held_out": {"path": str(prompts[1])},
            },
            "recipe": {
                "name": "teachers",
                "evaluation": evaluation,
                "stages": [DistillStage.model_validate(stage).model_dump()],
                "seed": seed,
            },
            "resources": {"train": {"threads": 1}},
        }
    )


def _local(folder: Path) -> Document:
    return {"model": {"kind": "local", "path": str(folder)}}


def summarise(rows: Rows) -> dict[str, Any]:
    """Accuracies and recoveries by arm, and what two teachers add to the better of them."""
    told = {
        part: [_summary(arm, found) for arm, found in _by_arm(rows[part]).items()]
        for part in PARTS
        if rows.get(part)
    }
    if rows.get("operations"):
        told["added"] = [_added(rows["operations"])]
    return told


def _by_arm(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["arm"], []).append(row)
    return found


def _summary(arm: str, rows: Sequence[Row]) -> dict[str, Any]:
    recoveries = [row["recovery"] for row in rows if row["recovery"] is not None]
    return {
        "arm": arm,
        "seeds": len(rows),
        "successes": sum(row["code"] == "success" for row in rows),
        **{
            f"mean_{key}": round(fmean(row[key] for row in rows), 3)
            for key in ("before", "after", "teacher")
        },
        "recoveries": [round(one, 2) for one in recoveries],
    }


def _added(rows: Sequence[Row]) -> dict[str, Any]:
    """The student of both teachers beside the better of the two others, seed by seed."""
    after = {(row["arm"], row["seed"]): row["after"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    differences = [
        after["by_tag", seed] - max(after[f"{skill}_alone", seed] for skill in SKILLS)
        for seed in seeds
    ]
    reach = T_OF_FIVE * stdev(differences) / len(differences) ** 0.5
    mean = fmean(differences)
    return {
        "beats_each_alone": sum(one > 0 for one in differences),
        "seeds": len(seeds),
        "mean_difference": round(mean, 3),
        "low": round(mean - reach, 3),
        "high": round(mean + reach, 3),
    }


PARTS = {"operations": operations, "privileged": privileged}
