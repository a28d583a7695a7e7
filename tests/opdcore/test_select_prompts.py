"""The stage select_prompts in real runs: what it measures, keeps, draws from and goes on with."""

import json
from threading import Event

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

import opdcore
from opdcore import traces
from opdcore.contract.errors import BadInput, Cancelled, EngineFailure
from opdcore.contract.job import Job, PromptFile
from opdcore.contract.recipe import Recipe
from opdcore.contract.selection import Selection
from opdcore.lab.record import shipped
from tests.opdcore.jobs import QUESTIONS, by_kind, events_of, make_job, make_recipe, write_prompts
from tests.opdcore.model_folders import make_pair

SUMS = shipped("sums")
SMALL = {
    "kind": "select_prompts", "strategy": "low_kl", "candidates": 12, "share": 0.5,
    "samples_per_prompt": 2, "max_response_tokens": 16,
}  # fmt: skip


def recipe_of(select, *, distil=None, verifier="numeric"):
    told = make_recipe(evaluation={"verifier": verifier}, **(distil or {})).model_dump()
    return Recipe.model_validate(told | {"stages": [SMALL | select, *told["stages"]]})


def laboratory_job(folder, recipe, **fields):
    pair = (SUMS / "student", SUMS / "teacher")
    rows = [json.loads(line) for line in (SUMS / "train.jsonl").read_text().splitlines()[:200]]
    return make_job(folder, pair=pair, recipe=recipe, rows=rows, lab_version="1", **fields)


def selection_of(run, steps=0):
    return Selection.model_validate_json(
        (run / "selections" / f"stage-00-step-{steps:07d}.json").read_bytes()
    )


def drawn_rows(run):
    """Prompt indices of every trace: with a trace of all rollouts at each step, of every step."""
    return {
        text.prompt_index
        for file in sorted((run / "traces").glob("*.parquet"))
        for text in traces.texts(file, 64)
    }


def first_prompts(run):
    """The prompts of the first trace as the student read them."""
    first = min((run / "traces").glob("*.parquet"))
    return pq.read_table(first, columns=["prompt"])["prompt"].to_pylist()


ALL_TRACED = {"trace_steps": 1, "trace_rollouts": 64}


def test_a_gap_on_the_laboratory_is_the_teachers_accuracy_minus_the_students(tmp_path):
    recipe = recipe_of(
        {"strategy": "gap", "candidates": 40, "share": 1.0, "max_response_tokens": 48},
        distil=ALL_TRACED | {"max_response_tokens": 48},
        verifier="laboratory",
    )
    events = events_of(laboratory_job(tmp_path, recipe), tmp_path / "run")
    chosen = selection_of(tmp_path / "run")
    assert len(chosen.choices) == 40
    for one in chosen.choices:
        assert one.measure == one.teacher_accuracy - one.student_accuracy
        assert (one.reason == "kept") == (one.measure > 0)
    assert 5 < len(chosen.kept) < 40
    told = by_kind(events, "selection")[0].payload
    assert (told.counts, told.student_tokens) == (chosen.counts, chosen.student_tokens)
    assert min(told.student_tokens, told.teacher_tokens) > 400
    assert drawn_rows(tmp_path / "run") <= set(chosen.kept)
    assert events[-1].payload.status == "succeeded"
    before = next(e for e in by_kind(events, "evaluation") if e.payload.role == "student")
    assert (before.stage_index, before.step) == (0, 0)


def test_low_kl_ranks_by_the_divergence_and_identical_models_have_none(tmp_path):
    recipe = recipe_of({"candidates": 20}, distil=ALL_TRACED)
    events_of(laboratory_job(tmp_path, recipe), tmp_path / "run")
    chosen = selection_of(tmp_path / "run")
    measures = [one.measure for one in chosen.choices]
    assert measures == sorted(measures)
    assert 0 < measures[0] < measures[-1]
    assert len(chosen.kept) == 10
    assert drawn_rows(tmp_path / "run") <= set(chosen.kept)

    twins = tmp_path / "twins"
    twins.mkdir()
    job = make_job(twins, pair=(SUMS / "student", SUMS / "student"), recipe=recipe, lab_version="1")
    events_of(job, twins / "run")
    assert max(one.measure for one in selection_of(twins / "run").choices) == pytest.approx(
        0, abs=1e-6
    )


def test_teacher_content_draws_from_its_own_sets_and_traces_show_their_words(tmp_path):
    content = [{"prompt": f"Content {n}: how many apples?", "answer": "1"} for n in range(6)]
    outside = [{"prompt": f"Outside {n}: who was the first to fly?"} for n in range(6)]
    recipe = recipe_of({"strategy": "teacher_content", "candidates": 12}, distil=ALL_TRACED)
    job = make_job(tmp_path, recipe=recipe)
    sets = job.prompt_sets.model_dump() | {
        "teacher_content": {"path": write_prompts(tmp_path / "content.jsonl", content)},
        "outside": {"path": write_prompts(tmp_path / "outside.jsonl", outside)},
    }
    job = Job.model_validate(job.model_dump() | {"prompt_sets": sets})
    events = events_of(job, tmp_path / "run")
    assert by_kind(events, "selection")[0].payload.counts == {"kept": 12}
    rows = drawn_rows(tmp_path / "run")
    assert rows <= set(range(40, 52))
    assert len(rows) > 8
    assert all("Content" in one or "Outside" in one for one in first_prompts(tmp_path / "run"))


def test_in_the_teachers_template_the_student_reads_what_the_teacher_reads(tmp_path):
    student, teacher = make_pair(tmp_path)
    (teacher / "chat_template.jinja").write_text("Teacher asks: {{ messages[0].content }} Answer:")
    recipe = recipe_of({"strategy": "teacher_template"}, distil=ALL_TRACED)
    events_of(make_job(tmp_path, pair=(student, teacher), recipe=recipe), tmp_path / "run")
    shown = first_prompts(tmp_path / "run")
    assert all(one.startswith("Teacher asks: Tom has") for one in shown)


def test_a_template_that_is_both_sides_own_is_refused(tmp_path):
    own = make_pair(tmp_path)[0]
    job = make_job(tmp_path, pair=(own, own), recipe=recipe_of({"strategy": "teacher_template"}))
    with pytest.raises(BadInput) as raised:
        events_of(job, tmp_path / "run")
    info = raised.value.info
    assert (info.code, info.field) == ("recipe.same_rendering", "recipe.stages.0.strategy")


def stop_at(step, running, wish):
    for event in running:
        if event.kind == "metrics" and event.step == step:
            wish.set()


REFRESHED = {"strategy": "low_kl", "refresh_steps": 2, "share": 0.25, "expand": 0.25}


def test_a_refresh_measures_the_present_student_and_expands(tmp_path):
    recipe = recipe_of(REFRESHED, distil={"steps": 6})
    events = events_of(make_job(tmp_path, recipe=recipe), tmp_path / "run")
    told = by_kind(events, "selection")
    assert [(one.stage_index, one.step, one.payload.steps) for one in told] == [
        (0, None, 0), (1, 2, 2), (1, 4, 4)
    ]  # fmt: skip
    assert [one.payload.counts["kept"] for one in told] == [3, 6, 9]
    first, second = selection_of(tmp_path / "run"), selection_of(tmp_path / "run", 2)
    one, other = ({c.row: c.measure for c in found.choices} for found in (first, second))
    assert one.keys() == other.keys()
    assert all(one[row] != other[row] for row in one)


def test_a_cold_start_in_between_does_not_age_a_selection(tmp_path):
    told = recipe_of(REFRESHED, distil={"steps": 3}).model_dump()
    cold = {
        "kind": "cold_start", "source": "demonstrations", "prompts": 8, "held_out_prompts": 0,
        "steps": 3, "responses_per_step": 4, "max_response_tokens": 16,
    }  # fmt: skip
    select, distil = told["stages"]
    recipe = Recipe.model_validate(told | {"stages": [select, cold, distil]})
    rows = [row | {"response": "It is so."} for row in QUESTIONS]
    events = events_of(make_job(tmp_path, recipe=recipe, rows=rows), tmp_path / "run")
    assert [one.payload.steps for one in by_kind(events, "selection")] == [0, 2]


def test_a_run_cut_between_two_refreshes_goes_on_bit_for_bit(tmp_path):
    pair = make_pair(tmp_path)
    recipe = recipe_of(REFRESHED, distil={"steps": 6, "checkpoint_steps": 3} | ALL_TRACED)
    job = make_job(tmp_path, pair=pair, recipe=recipe)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    events_of(job, whole)
    running = opdcore.run(job, cut)
    for event in running:
        # After the second refresh, which the checkpoint of step 3 comes before.
        if event.kind == "metrics" and event.step == 5:
            break
    running.close()
    kept = sorted((cut / "selections").iterdir())
    written = [file.stat().st_mtime_ns for file in kept]
    again = events_of(job, cut)
    assert [event.step for event in by_kind(again, "metrics")] == [4, 5, 6]
    assert [file.stat().st_mtime_ns for file in kept] == written
    for steps in (0, 2, 4):
        assert selection_of(whole, steps) == selection_of(cut, steps)
    one, other = (load_file(run / "output" / "model.safetensors") for run in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_stop_during_a_refresh_keeps_the_steps_before_it(tmp_path):
    recipe = recipe_of(REFRESHED | {"refresh_steps": 3}, distil={"checkpoint_steps": 50})
    wish = Event()
    running = opdcore.run(make_job(tmp_path, recipe=recipe), tmp_path / "run", stop=wish.is_set)
    with pytest.raises(Cancelled):
        stop_at(3, running, wish)
    assert not (tmp_path / "run" / "selections" / "stage-00-step-0000003.json").exists()
    assert (tmp_path / "run" / "checkpoints" / "stage-01-step-0000003").exists()


def test_a_refresh_that_leaves_nothing_keeps_what_was_chosen_before(tmp_path):
    """Once the selection is rewritten to have a gap nowhere, the next refresh finds none either."""
    recipe = recipe_of(
        {"strategy": "gap", "share": 1.0, "refresh_steps": 2, "candidates": 30,
         "max_response_tokens": 48},
        distil={"max_response_tokens": 48},
        verifier="laboratory",
    )  # fmt: skip
    job = laboratory_job(tmp_path, recipe)
    run = tmp_path / "run"
    told = []
    for event in opdcore.run(job, run):
        told.append(event)
        if event.kind == "stage_finished" and event.stage_index == 0:
            file = run / "selections" / "stage-00-step-0000000.json"
            chosen = json.loads(file.read_text())
            for one in chosen["choices"]:
                one["teacher_accuracy"] = 0.0
            file.write_text(json.dumps(chosen))
    assert [one.payload.level for one in by_kind(told, "log")] == ["warning"]
    assert "Those before stay." in by_kind(told, "log")[0].payload.message
    assert selection_of(run, 2).kept == selection_of(run).kept
    assert told[-1].payload.status == "succeeded"


def test_without_a_gap_anywhere_the_run_ends_with_a_remedy(tmp_path):
    """The student against itself, with the same draws: never more often right."""
    recipe = recipe_of({"strategy": "gap"}, verifier="laboratory")
    job = laboratory_job(tmp_path, recipe)
    twin = job.model_copy(
        update={"teachers": (job.teachers[0].model_copy(update={"model": job.student.model}),)}
    )
    with pytest.raises(EngineFailure) as raised:
        events_of(twin, tmp_path / "run")
    assert raised.value.info.code == "select_prompts.nothing_left"


def test_a_lost_selection_ends_a_run_that_goes_on(tmp_path):
    job = make_job(tmp_path, recipe=recipe_of({}))
    running = opdcore.run(job, tmp_path / "run")
    for event in running:
        if event.kind == "artifact" and event.payload.artifact_kind == "checkpoint":
            break
    running.close()
    (tmp_path / "run" / "selections" / "stage-00-step-0000000.json").unlink()
    with pytest.raises(EngineFailure) as raised:
        events_of(job, tmp_path / "run")
    assert raised.value.info.code == "select_prompts.lost"


def test_teacher_content_without_its_set_is_refused(tmp_path):
    job = make_job(tmp_path, recipe=recipe_of({"strategy": "teacher_content"}))
    with pytest.raises(BadInput) as raised:
        events_of(job, tmp_path / "run")
    info = raised.value.info
    assert (info.code, info.field) == ("recipe.no_teacher_content", "prompt_sets.teacher_content")


def test_a_prompt_of_another_set_that_is_too_long_is_named_by_its_own_row(tmp_path):
    recipe = recipe_of({"strategy": "teacher_content"})
    job = make_job(tmp_path, recipe=recipe)
    rows = [*QUESTIONS[:3], {"prompt": "word " * 2000}]
    path = write_prompts(tmp_path / "content.jsonl", rows)
    sets = job.prompt_sets.model_copy(update={"teacher_content": PromptFile(path=path)})
    with pytest.raises(BadInput) as raised:
        events_of(job.model_copy(update={"prompt_sets": sets}), tmp_path / "run")
    assert raised.value.info.field == "prompt_sets.teacher_content, row 4"


def test_a_selection_that_no_distillation_draws_from_is_no_recipe():
    told = make_recipe().model_dump()
    with pytest.raises(ValidationError, match="no distillation draws from what stage 2 selects"):
        Recipe.model_validate(told | {"stages": [*told["stages"], SMALL]})
    with pytest.raises(ValidationError, match="no distillation draws from what stage 1 selects"):
        Recipe.model_validate(told | {"stages": [SMALL, SMALL, *told["stages"]]})


def test_a_gap_without_a_verifier_is_no_recipe():
    told = make_recipe(evaluation={"verifier": "none"}).model_dump()
    with pytest.raises(ValidationError, match="compares graded answers"):
        Recipe.model_validate(told | {"stages": [SMALL | {"strategy": "gap"}, *told["stages"]]})
