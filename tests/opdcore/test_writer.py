"""The writer: another model, with a tokenizer of its own, whose text a cold start learns."""

import json

import pytest

from opdcore import collection
from opdcore.contract.errors import BadInput
from opdcore.contract.rendering import Rendering
from opdcore.rendering import Renderer
from tests.opdcore.jobs import by_kind, events_of, make_job
from tests.opdcore.model_folders import make_folder
from tests.opdcore.test_cold_start import SMALL, recipe_of

STAGE = SMALL | {
    "source": "writer", "max_response_tokens": 48, "temperature": 1.0, "sampling_top_p": 1.0, "retries": 6,
}  # fmt: skip


def job_of(folder, *, stage=STAGE, writer=True, **fields):
    if writer:
        path = make_folder(folder / "writer", "llama", vocabulary=320)
        fields |= {"writer": {"model": {"kind": "local", "path": str(path)}}}
    return make_job(folder, recipe=recipe_of(stage), **fields)


def test_what_the_writer_says_is_learned_by_the_students_own_tokens(tmp_path):
    cache, run = tmp_path / "cache", tmp_path / "run"
    job = job_of(tmp_path, response_cache=str(cache))
    events = events_of(job, run)
    theirs, ours = (
        Renderer.from_folder(side.model.path, Rendering()) for side in (job.writer, job.student)
    )
    rollouts = [one for file in cache.iterdir() for one in json.loads(file.read_text())]
    said = {theirs.decode(one["ids"][:-1]) for one in rollouts if one["stopped"]}
    learned = json.loads((run / collection.FOLDER / "stage-00.json").read_text())["responses"]
    assert learned
    known = {tuple(ids) for ids in ours.responses(sorted(said))}
    assert {tuple(ids) for ids in learned.values()} <= known
    steps = [event.payload.values["loss"] for event in by_kind(events, "metrics")]
    assert steps[-1] < steps[0]


@pytest.mark.parametrize(
    ("stage", "writer", "code"),
    [(STAGE, False, "recipe.no_writer"), (SMALL, True, "job.unheeded")],
)
def test_a_writer_that_is_missing_or_that_nothing_reads_is_refused(tmp_path, stage, writer, code):
    with pytest.raises(BadInput) as refused:
        events_of(job_of(tmp_path, stage=stage, writer=writer), tmp_path / "run")
    assert (refused.value.info.code, refused.value.info.field) == (code, "writer")


def test_a_prompt_beyond_the_writers_context_is_refused_before_anything_is_sampled(tmp_path):
    path = make_folder(tmp_path / "writer", "llama", context_length=32)
    fields = {"writer": {"model": {"kind": "local", "path": str(path)}}}
    with pytest.raises(BadInput) as refused:
        events_of(make_job(tmp_path, recipe=recipe_of(STAGE), **fields), tmp_path / "run")
    assert refused.value.info.code == "prompt_set.too_long"
    assert not (tmp_path / "run" / collection.FOLDER).exists()
