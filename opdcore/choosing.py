"""A selection made and kept: measured, chosen, written into the run's folder, and told.

It lies there whole or not at all, so that a run that goes on draws from the same prompts. It knows no
training step.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from opdcore.contract.errors import EngineFailure
from opdcore.contract.events import ArtifactWritten, Logged, Payload, Selected
from opdcore.contract.select_prompts import SelectPromptsStage
from opdcore.contract.selection import Selection
from opdcore.files import hash_file, write_bytes
from opdcore.order import seed_of
from opdcore.prompt_measures import measure
from opdcore.selection import Measured, candidates, select
from opdcore.workspace import Workspace

FOLDER = "selections"


def key(stage_index: int, steps: int) -> str:
    """The file's path within the run's folder, after so many steps of distillation."""
    return f"{FOLDER}/stage-{stage_index:02d}-step-{steps:07d}.json"


def choose(
    stage: SelectPromptsStage, work: Workspace, *, stage_index: int, steps: int = 0
) -> Iterator[Payload | Selection]:
    """Yields progress, then what was chosen as told to people, and last the selection itself.

    It is taken from the run's folder where it was made before. Raises EngineFailure where no prompt
    is left at the stage; a refresh that would leave none keeps what was chosen before it.
    """
    selection = read(work, stage_index, steps)
    is_new = selection is None
    if selection is None:
        selection = yield from _chosen(stage, work, stage_index, steps)
        _write(work, stage_index, selection)
    yield from _told(work, stage_index, selection, is_new=is_new)
    yield selection


def read(work: Workspace, stage_index: int, steps: int) -> Selection | None:
    """The selection as it was written; None where it was not made yet."""
    file = work.run_dir / key(stage_index, steps)
    return Selection.model_validate_json(file.read_bytes()) if file.exists() else None


def _chosen(
    stage: SelectPromptsStage, work: Workspace, stage_index: int, steps: int
) -> Generator[Payload, None, Selection]:
    seed = work.job.recipe.seed
    rows = candidates(work.pool, stage, seed=seed, stage_index=stage_index)
    first = read(work, stage_index, 0) if steps else None
    known = {one.row: one.teacher_accuracy for one in first.choices} if first else None
    for item in measure(
        stage, work, rows, seed=seed_of(seed, stage_index, steps), teacher_accuracy=known
    ):
        if isinstance(item, Measured):
            measured = item
        else:
            yield item
    try:
        return select(stage, work.pool, rows, measured, steps=steps)
    except EngineFailure as failure:
        before = read(work, stage_index, steps - stage.refresh_steps) if steps else None
        if before is None:
            raise
        yield Logged(level="warning", message=f"{failure.info.message} Those before stay.")
        tokens = {
            "student_tokens": measured.student_tokens,
            "teacher_tokens": measured.teacher_tokens,
        }
        return before.model_copy(update={"steps": steps} | tokens)


def _write(work: Workspace, stage_index: int, selection: Selection) -> None:
    file = work.run_dir / key(stage_index, selection.steps)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    write_bytes(aside, selection.model_dump_json().encode())
    aside.rename(file)


def _told(
    work: Workspace, stage_index: int, selection: Selection, *, is_new: bool
) -> Iterator[Payload]:
    name = key(stage_index, selection.steps)
    written = hash_file(work.run_dir / name)
    yield ArtifactWritten(
        artifact_kind="selection", key=name, sha256=written.sha256, size_bytes=written.size_bytes
    )
    yield Selected(
        key=name,
        strategy=selection.strategy,
        steps=selection.steps,
        counts=selection.counts,
        student_tokens=selection.student_tokens if is_new else 0,
        teacher_tokens=selection.teacher_tokens if is_new else 0,
    )
