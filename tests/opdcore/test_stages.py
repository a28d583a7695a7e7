"""Recipes of several stages, of none that trains, and runs that start from another's weights."""

import pytest
from safetensors.torch import load_file

import opdcore
from opdcore.contract.errors import BadInput, Cancelled
from opdcore.contract.recipe import Recipe
from tests.opdcore.jobs import by_kind, events_of, make_job, make_recipe
from tests.opdcore.model_folders import make_pair


def recipe_of(*stages) -> Recipe:
    """The small recipe with stages of these changes: a dict distils, None evaluates."""
    document = make_recipe().model_dump()
    distill = document["stages"][0]
    document["stages"] = [{"kind": "evaluate"} if s is None else distill | s for s in stages]
    return Recipe.model_validate(document)


def weights(run_dir):
    return load_file(run_dir / "output" / "model.safetensors")


def test_a_run_stopped_in_its_second_stage_ends_with_the_same_weights_bit_for_bit(tmp_path):
    recipe = recipe_of({"steps": 2}, {"steps": 4, "learning_rate": 1e-3, "checkpoint_steps": 9})
    job, told = make_job(tmp_path, recipe=recipe), []
    whole = events_of(job, tmp_path / "whole")

    def follow():
        stop = lambda: any(e.stage_index == 1 and e.step == 2 for e in told)  # noqa: E731
        for event in opdcore.run(job, tmp_path / "cut", stop=stop):
            told.append(event)  # noqa: PERF402 - the list is watched while it grows

    with pytest.raises(Cancelled):
        follow()
    rest = events_of(job.model_copy(update={"attempt": 2}), tmp_path / "cut")
    assert [(e.stage_index, e.step) for e in by_kind(rest, "metrics")] == [(1, 3), (1, 4)]
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(one[name].equal(other[name]) for name in one)
    roles = [e.payload.role for e in by_kind(told + rest, "evaluation")]
    assert roles == [e.payload.role for e in by_kind(whole, "evaluation")]
    assert rest[-1].payload.outcome == whole[-1].payload.outcome


def test_a_recipe_that_only_evaluates_measures_both_and_judges_no_gain(tmp_path):
    events = events_of(make_job(tmp_path, recipe=recipe_of(None)), tmp_path / "run")
    assert [e.payload.role for e in by_kind(events, "evaluation")] == ["teacher", "student"]
    outcome = events[-1].payload.outcome
    assert (outcome.code, outcome.prompts) == ("unmeasured", 6)
    assert (outcome.after, outcome.gain) == (None, None)


def test_a_run_starts_from_the_output_that_its_job_names(tmp_path):
    pair = make_pair(tmp_path)
    first = make_job(tmp_path, pair=pair)
    events_of(first, tmp_path / "first")
    started = make_job(
        tmp_path, pair=pair, recipe=recipe_of(None),
        start={"path": str(tmp_path / "first" / "output")},
    )  # fmt: skip
    events_of(started, tmp_path / "second")
    one, other = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(one[name].equal(other[name]) for name in one)


def test_a_start_with_another_hash_is_refused(tmp_path):
    pair = make_pair(tmp_path)
    job = make_job(tmp_path, pair=pair, start={"path": str(pair[0]), "sha256": "0" * 64})
    with pytest.raises(BadInput) as refusal:
        events_of(job, tmp_path / "run")
    assert refusal.value.info.code == "start.changed"


@pytest.mark.parametrize("stage", [{}, None])
def test_a_run_asked_to_stop_at_once_measures_nothing_first(tmp_path, stage):
    job = make_job(tmp_path, recipe=recipe_of(stage))
    with pytest.raises(Cancelled):
        events_of(job, tmp_path / "run", stop=lambda: True)
    assert not list((tmp_path / "run").glob("*"))
