"""The arms of a case: the failing run to its end, its rescue, and either half of a cold start's alone.

The failing run goes on after the monitor has called it failing, as the control arm; the rescue is
planned from what was known when it was called. What is kept are measurements.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import opdcore
from benchmarks.calibration import runs
from benchmarks.calibration.runs import diagnose_stage
from benchmarks.calibration.triples import Triple
from benchmarks.records import ROOT
from benchmarks.rescue import pairs
from benchmarks.rescue.cases import COLD_STARTED, Case
from opdcore import evaluation
from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.events import AnyEvent
from opdcore.contract.job import Job, StartCheckpoint
from opdcore.contract.positions import Positions
from opdcore.contract.recipe import Recipe
from opdcore.contract.rescue import History, RescuePlan, Spot
from opdcore.contract.verdicts import Verdict
from opdcore.lab.record import LAB_VERSION
from opdcore.monitor import is_failing
from opdcore.rescue import FIRST_STEPS, parted_tokens, plan, sound_tokens

KEPT = ROOT / "state" / "rescue"
# Raise it when what is measured of a case changes: all of them are then made anew.
VERSION = "arms-4"


def file_of(case: Case) -> Path:
    """Where a case's measurements are kept."""
    return KEPT / VERSION / f"{case.name}.json"


def measured(case: Case) -> dict[str, Any]:
    """A case's arms, from what was kept or made now."""
    return kept(file_of(case), lambda: _measure(case))


def kept(file: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds, measured first where there is none; whole or not at all."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        began, told = time.process_time(), measure()
        told["cpu_seconds"] = round(time.process_time() - began, 1)
        aside = file.with_suffix(".part")
        aside.write_text(json.dumps(told), encoding="utf-8")
        aside.rename(file)
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _measure(case: Case) -> dict[str, Any]:
    made = pairs.made(case, KEPT / "models-2" / case.name)
    failing = runs.job(pairs.triple(case), made, (pairs.distill(case),))
    # Some causes are knobs that only the laboratory offers.
    failing = failing.model_copy(update={"lab_version": LAB_VERSION})
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        told = {"parent": run(failing, home / "parent")}
        if told["parent"]["outcome"]["code"] != "success":
            told |= _rescued(case, failing, told["parent"], home)
    return told


def _rescued(case: Case, failing: Job, parent: dict[str, Any], home: Path) -> dict[str, Any]:
    """The plan, and the arms that it leads to."""
    planned = planned_for(failing, parent, pairs.triple(case), home)
    told: dict[str, Any] = {"plan": planned.model_dump(mode="json")}
    if planned.recipe is None:
        return told
    child = failing.model_copy(update={"recipe": planned.recipe, "start": _start(planned, home)})
    told["child"] = run(child, home / "child")
    if case.cause in COLD_STARTED and isinstance(planned.recipe.stages[0], ColdStartStage):
        told["fine_tuned"] = run(_fine_tuning(child), home / "fine-tuned")
        told["distilled"] = run(_distilling(failing, child), home / "distilled")
    return told


def planned_for(job: Job, told: dict[str, Any], triple: Triple, home: Path) -> RescuePlan:
    """The plan by what the monitor called a run first, or by a diagnosis where it was silent."""
    verdict, history = _called(told) or (_diagnosed(triple, job, home), History(verifier=True))
    return plan(verdict, job.recipe, history)


def _fine_tuning(child: Job) -> Job:
    """The rescue's own cold start on the same responses, for as many updates as both its stages."""
    cold, distill = child.recipe.stages
    longer = cold.model_copy(update={"steps": sum(child.recipe.steps_by_stage)})
    assert distill.kind == "distill"
    return child.model_copy(
        update={"recipe": child.recipe.model_copy(update={"stages": (longer,)})}
    )


def _distilling(failing: Job, child: Job) -> Job:
    """The failing run itself, for as many updates as both stages of its rescue."""
    (stage,) = failing.recipe.stages
    longer = stage.model_copy(update={"steps": sum(child.recipe.steps_by_stage)})
    return failing.model_copy(
        update={"recipe": failing.recipe.model_copy(update={"stages": (longer,)})}
    )


def _start(planned: RescuePlan, home: Path) -> StartCheckpoint | None:
    if planned.start is None:
        return None
    name = f"stage-{planned.start.stage_index:02d}-step-{planned.start.step:07d}"
    return StartCheckpoint(path=str(home / "parent" / "checkpoints" / name))


def _called(parent: dict[str, Any]) -> tuple[Verdict, History] | None:
    """What the monitor said first, and what was known then; None where it said nothing."""
    found = next((said for said in parent["health"] if said["failing"]), None)
    if found is None:
        return None
    positions = [Positions.model_validate(one) for one in parent["positions"]]
    step = found["step"]
    history = History(
        verifier=True,
        failing=Spot(stage_index=0, step=step),
        checkpoints=tuple(
            Spot(stage_index=0, step=one) for one in parent["checkpoints"] if one <= step
        ),
        sound_tokens=sound_tokens(positions[0], positions[step - 1]),
        parted_tokens=parted_tokens(positions[0]),
        start_overlap=fmean(parent["overlap"][:FIRST_STEPS]),
        start_entropy_excess=fmean(parent["entropy_excess"][:FIRST_STEPS]),
        best_accuracy=max(value for at, value in parent["accuracies"] if at <= step),
        teacher_accuracy=fmean(one for one in parent["scores"]["teacher"] if one is not None),
    )
    return Verdict.model_validate(found["verdict"]), history


def _diagnosed(triple: Triple, job: Job, home: Path) -> Verdict:
    """The verdict before the run."""
    stages = (diagnose_stage(triple), *job.recipe.stages)
    recipe = Recipe.model_validate(
        job.recipe.model_dump() | {"stages": [one.model_dump() for one in stages]}
    )
    probed = job.model_copy(update={"recipe": recipe})
    with closing(opdcore.run(probed, home / "diagnosis")) as events:
        return next(event.payload.verdict for event in events if event.kind == "diagnosis")


def run(job: Job, run_dir: Path) -> dict[str, Any]:
    """A job to its end: outcome, scores by prompt, health, and what a history is made of."""
    told = _told(opdcore.run(job, run_dir))
    scores = sorted((run_dir / evaluation.FOLDER).glob("student-*.json"))
    files = {
        "before": scores[0], "after": scores[-1],
        "teacher": run_dir / evaluation.FOLDER / evaluation.TEACHER_FILE,
    }  # fmt: skip
    told["scores"] = {
        name: json.loads(file.read_bytes())["accuracy"] for name, file in files.items()
    }
    return told


def _told(events: Iterable[AnyEvent]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "health": [], "positions": [], "overlap": [], "entropy_excess": [], "checkpoints": [], "accuracies": [], "tokens": 0.0
    }  # fmt: skip
    for event in events:
        match event.kind:
            case "health":
                verdict = event.payload.verdict
                told["health"].append(
                    {
                        "step": event.step,
                        "failing": is_failing(verdict),
                        "verdict": verdict.model_dump(mode="json"),
                    }
                )
            case "positions":
                told["positions"].append(event.payload.model_dump(mode="json"))
            case "metrics":
                values = event.payload.values
                told["overlap"].append(values.get("effective_overlap"))
                told["entropy_excess"].append(_excess(values))
                told["tokens"] += values.get("generated_tokens") or 0.0
            case "evaluation":
                if event.payload.role == "student":
                    told["accuracies"].append([event.step, event.payload.values["accuracy"]])
            case "artifact":
                if event.payload.artifact_kind == "checkpoint":
                    told["checkpoints"].append(event.step)
            case "job_finished":
                told["outcome"] = event.payload.outcome.model_dump(mode="json")
    return told


def _excess(values: Mapping[str, float | None]) -> float | None:
    """The student's entropy beyond the teacher's; None in a stage without a teacher."""
    student, teacher = values.get("student_entropy"), values.get("teacher_entropy")
    return None if student is None or teacher is None else student - teacher


def mean(scores: Sequence[float | None]) -> float:
    """Mean of the scores that were not abstained."""
    return round(fmean(one for one in scores if one is not None), 4)
