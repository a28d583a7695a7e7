"""What a run is made of, frozen as it is launched, and the job that its process is told from that.

It writes no row and knows no worker but the files that one has put in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdcore.contract.job import (
    Job,
    JudgeEndpoint,
    PromptFile,
    PromptSets,
    Resource,
    StartCheckpoint,
)
from webapp.models import Family, ModelEndpoint, Pair, PromptSet, Recipe, RegisteredModel, Run
from webapp.services import scores
from webapp.services.asked_parts import NOTHING_ASKED, AskedParts
from webapp.services.resources import as_job
from webapp.version import code_version


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """Where the worker has put what a job reads.

    `start` is a folder with the weights to start from; `response_cache` and `scores` are shared by runs,
    and `teacher_server` by those of one teacher, which ask its server together.
    """

    train: Path
    held_out: Path | None = None
    teacher_content: Path | None = None
    outside: Path | None = None
    start: Path | None = None
    response_cache: Path | None = None
    scores: Path | None = None
    teacher_server: Path | None = None


def job_document(
    run: Run, files: LocalFiles, *, resources: dict[str, Resource] | None = None
) -> Job:
    """The job of the run's present attempt, from its snapshot and the worker's local paths."""
    frozen = run.snapshot
    served = frozen.get("serving") or {}
    if files.teacher_server:
        served = served | {"teacher": served["teacher"] | {"shared": str(files.teacher_server)}}
    return Job.model_validate(
        {
            "run_id": run.public_id,
            "attempt": run.attempt,
            "student": frozen["student"]["participant"],
            "teachers": [
                teacher["participant"]
                | {
                    "served": served.get("teacher"),
                    "scores": scores.as_job(frozen.get("scores"), files.scores, teacher=number),
                }
                for number, teacher in enumerate(frozen["teachers"])
            ],
            "sampler": served.get("sample"),
            "writer": (frozen.get("writer") or {}).get("participant"),
            "judge": (frozen.get("judge") or {}).get("endpoint"),
            "prompt_sets": _prompt_files(files, frozen["prompt_sets"]),
            "recipe": frozen["recipe"]["document"],
            "resources": as_job(run.resources) if resources is None else resources,
            "start": _start(files.start, frozen["start"]) if files.start else None,
            "response_cache": str(files.response_cache) if files.response_cache else None,
            "lab_version": frozen["lab_version"],
            "calibration": (frozen.get("family") or {}).get("calibration"),
        }
    )


def snapshot(
    pair: Pair,
    recipe: Recipe,
    *,
    train: PromptSet,
    held_out: PromptSet | None,
    asked: AskedParts = NOTHING_ASKED,
) -> dict[str, Any]:
    """All that decides the run's numbers, as it is now."""
    return {
        "pair": {"public_id": pair.public_id, "name": pair.name},
        "student": _side(pair.student, pair.student_rendering),
        "teachers": [
            _side(one.model, one.rendering, **one.teaching.model_dump(mode="json"))
            for one in pair.teachers.all()
        ],
        "prompt_sets": {
            "train": _frozen_set(train),
            "held_out": _frozen_set(held_out) if held_out else None,
            **{role: _frozen_set(one) for role, one in asked.sets()},
        },
        "writer": _side(asked.writer, {}) if asked.writer else None,
        "judge": _frozen_judge(asked.judge) if asked.judge else None,
        "recipe": {
            "public_id": recipe.public_id,
            "version": recipe.version,
            "document": recipe.document,
        },
        "code_version": code_version(),
        "lab_version": pair.lab_version or None,
        "family": _frozen_family(pair.family) if pair.family else None,
    }


def hub_models(frozen: dict[str, Any]) -> list[str]:
    """The hub's models that a run needs, each once, as `repo@revision`; a replayed teacher may be gone."""
    teachers = [] if scores.is_replay(frozen.get("scores")) else frozen["teachers"]
    sides = [frozen["student"], *teachers, frozen.get("writer")]
    sources = [side["participant"]["model"] for side in sides if side]
    named = [f"{one['repo']}@{one['revision']}" for one in sources if one["kind"] == "hub"]
    return list(dict.fromkeys(named))


def pinned(frozen: dict[str, Any], commits: dict[str, str]) -> dict[str, Any]:
    """The snapshot with the commit that was fetched in place of every branch and tag."""
    for side in filter(None, [frozen["student"], *frozen["teachers"], frozen.get("writer")]):
        model = side["participant"]["model"]
        if model["kind"] == "hub":
            name = f"{model['repo']}@{model['revision']}"
            model["revision"] = commits.get(name, model["revision"])
    return frozen


def _frozen_judge(judge: ModelEndpoint) -> dict[str, Any]:
    """How a job reaches it; the key comes with the job's environment."""
    endpoint = JudgeEndpoint(
        base_url=f"{judge.base_url}/v1",
        model=judge.model,
        key_variable=judge.key_variable if judge.sealed_key else None,
    )
    return {
        "public_id": judge.public_id,
        "name": judge.name,
        "endpoint": endpoint.model_dump(mode="json"),
    }


def _frozen_family(family: Family) -> dict[str, Any]:
    """The calibration as it is now; without a control yet the laboratory's says more."""
    return {
        "public_id": family.public_id,
        "name": family.name,
        "calibration": family.document if family.has_controls else None,
    }


def _side(model: RegisteredModel, rendering: dict[str, Any], **knobs: object) -> dict[str, Any]:
    source = (
        {"kind": "hub", "repo": model.repo, "revision": model.revision}
        if model.source_kind == RegisteredModel.Source.HUB
        else {"kind": "local", "path": model.path}
    )
    return {
        "public_id": model.public_id,
        "name": model.name,
        "card": model.card,
        "participant": {"model": source, "rendering": rendering, **knobs},
    }


def _frozen_set(prompt_set: PromptSet) -> dict[str, Any]:
    return {
        "public_id": prompt_set.public_id,
        "name": prompt_set.name,
        "version": prompt_set.version,
        "sha256": prompt_set.sha256,
        "rows": prompt_set.rows,
        "storage_key": prompt_set.storage_key,
    }


def _prompt_files(files: LocalFiles, frozen: dict[str, Any]) -> PromptSets:
    """Every role's file that the worker has put in place, with the hash of its set."""
    local = {
        "train": files.train,
        "held_out": files.held_out,
        "teacher_content": files.teacher_content,
        "outside": files.outside,
    }
    return PromptSets(
        **{
            role: PromptFile(path=str(path), sha256=frozen[role]["sha256"])
            for role, path in local.items()
            if path is not None
        }
    )


def _start(folder: Path, frozen: dict[str, Any]) -> StartCheckpoint:
    return StartCheckpoint(path=str(folder), sha256=frozen["sha256"])
