"""Teachers' scores that a run keeps or is replayed from: what its snapshot says, its job is told, and it left.

Records lie in the state folder of the worker that kept them, where `python -m opdcore scores` lists and
frees them; the database knows their names alone. It launches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opdcore.contract.distill import DistillStage
from opdcore.contract.errors import BadInput, ErrorInfo
from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.contract.scores import KeptScores, bytes_a_token
from webapp.models import Artifact, Pair, Run
from webapp.services import run_files, serving

# As a snapshot has it of a run that keeps its teachers' scores.
KEEP = {"mode": "keep"}
FOLDER = "scores"


def is_replay(frozen: dict[str, Any] | None) -> bool:
    """Whether a snapshot's scores stand in for the teachers."""
    return frozen is not None and frozen["mode"] == "replay"


def of_run(run: Run) -> dict[str, Any] | None:
    """What the run's snapshot says of its teachers' scores; None where nothing is kept."""
    frozen: dict[str, Any] | None = run.snapshot.get("scores")
    return frozen


def as_job(
    frozen: dict[str, Any] | None, folder: Path | None, *, teacher: int
) -> dict[str, Any] | None:
    """What a job is told of a teacher's scores."""
    if frozen is None:
        return None
    record = frozen["records"][teacher] if is_replay(frozen) else None
    return {"mode": frozen["mode"], "folder": str(folder or FOLDER), "record": record}


def problems(
    pair: Pair, recipe: RecipeDocument, frozen: dict[str, Any] | None
) -> Iterator[ErrorInfo]:
    """What the job would refuse, at the choice that is to blame."""
    if frozen is None:
        return
    if any(one.follows != "frozen" for one in pair.teachers.all()):
        yield ErrorInfo(
            code="teachers.scores_follow",
            message=f"A teacher of {pair.name} follows the student's weights, so that its scores hold for "
            "one step.",
            remedy="Do not keep them, or choose a pair whose teachers stay frozen.",
            field="keep_scores",
        )
    yield from serving.told_top_k(
        recipe, whose="keeps the teacher's scores", code="kept_scores", field="keep_scores"
    )


def disk_bytes(recipe: RecipeDocument) -> int:
    """Bytes that the kept scores take at most: of every response that a distillation may draw."""
    stages = [stage for stage in recipe.stages if isinstance(stage, DistillStage)]
    return sum(
        stage.steps
        * stage.prompts_per_step
        * stage.rollouts_per_prompt
        * stage.max_response_tokens
        * bytes_a_token(stage.k)
        for stage in stages
    )


def kept(run: Run) -> KeptScores | None:
    """What a run that kept its teachers' scores says of them at its end; None of any other."""
    files = Artifact.objects.kept().filter(run=run, kind="scores").exclude(storage_key="")
    file = files.order_by("-attempt").first()
    if file is None:
        return None
    return KeptScores.model_validate_json(b"".join(run_files.pieces(file)))


def may_replay(run: Run) -> bool:
    """Whether it is worth to offer a replay; whether the record is whole, the replay asks."""
    left = Artifact.objects.kept().filter(run=run, kind="scores").exclude(storage_key="")
    return run.status == Run.Status.SUCCEEDED and (is_replay(of_run(run)) or left.exists())


def replayed(run: Run) -> dict[str, Any]:
    """What the snapshot of the run's replay says; raises BadInput where it cannot be replayed."""
    if is_replay(found := of_run(run)):
        assert found is not None
        return found
    told = kept(run) if run.status == Run.Status.SUCCEEDED else None
    if told is None:
        raise BadInput(
            "scores.not_kept_by_run",
            f"{run.name} has left no record of its teacher's scores.",
            remedy="Launch it again with its scores kept, and replay that run once it has succeeded.",
            field="run",
        )
    if not told.is_whole:
        raise BadInput(
            "scores.record_not_whole",
            f"The folder of scores was full while {run.name} ran, so that some are missing.",
            remedy="Free old records on its worker (python -m opdcore scores), and launch it again.",
            field="run",
        )
    names = {one.teacher: one.record for one in told.records}
    return {
        "mode": "replay",
        "run": run.public_id,
        "records": [names[number] for number in sorted(names)],
    }
