"""The cold start: what it learns and what it leaves out, and that it goes on exactly where it stopped."""

import json
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import opdcore
from opdcore import collection
from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.errors import BadInput, EngineFailure
from opdcore.contract.evaluation import Evaluation
from opdcore.contract.prompt import Prompt
from opdcore.contract.recipe import Recipe
from opdcore.evaluation import FOLDER, Evaluator
from opdcore.rendering import Renderer
from tests.opdcore.jobs import QUESTIONS, by_kind, events_of, make_job, make_recipe
from tests.opdcore.model_folders import make_pair

SMALL = {
    "kind": "cold_start", "prompts": 12, "held_out_prompts": 4, "steps": 4, "responses_per_step": 4,
    "max_response_tokens": 16, "learning_rate": 1e-2, "checkpoint_steps": 2, "retries": 0,
}  # fmt: skip
DEMONSTRATED = [row | {"response": f"It is {row['answer']}."} for row in QUESTIONS]


def recipe_of(*stages, **evaluation):
    told = make_recipe(evaluation=evaluation).model_dump() | {"stages": [*stages]}
    return Recipe.model_validate(told)


def demonstrated_job(folder, *, recipe=None, rows=DEMONSTRATED, **knobs):
    stage = SMALL | {"source": "demonstrations"} | knobs
    return make_job(folder, recipe=recipe or recipe_of(stage), rows=rows)


def collected(run_dir):
    return json.loads((run_dir / collection.FOLDER / "stage-00.json").read_text())


def test_held_out_responses_become_likelier_and_are_never_learned(tmp_path):
    events = events_of(demonstrated_job(tmp_path, steps=30, prompts=30), tmp_path / "run")
    steps = [event.payload.values for event in by_kind(events, "metrics")]
    assert steps[0]["loss"] > 2 * steps[-1]["loss"]
    assert steps[0]["held_out_nll"] > 2 * steps[-1]["held_out_nll"]
    assert all(values["held_out_nll"] is None for values in steps[1:-1])
    assert len(collected(tmp_path / "run")["responses"]) == 34


def test_the_first_loss_is_that_of_the_responses_own_tokens(tmp_path):
    """Against transformers' own forward pass over prompt and response."""
    pair = make_pair(tmp_path)
    stage = SMALL | {
        "source": "demonstrations", "steps": 1, "prompts": 3, "held_out_prompts": 0,
        "responses_per_step": 3, "warmup_steps": 0,
    }  # fmt: skip
    job = make_job(tmp_path, pair=pair, recipe=recipe_of(stage), rows=DEMONSTRATED)
    told = by_kind(events_of(job, tmp_path / "run"), "metrics")[0].payload.values
    renderer = Renderer.from_folder(pair[0], job.student.rendering)
    model = AutoModelForCausalLM.from_pretrained(pair[0], dtype=torch.float32)
    total, count = 0.0, 0
    for row, ids in collected(tmp_path / "run")["responses"].items():
        prompt = renderer.render_many([Prompt(prompt=DEMONSTRATED[int(row)]["prompt"])])[0]
        logits = model(torch.tensor([[*prompt.ids, *ids]])).logits[0].log_softmax(-1)
        before = len(prompt.ids) - 1
        total -= sum(logits[before + place, token].item() for place, token in enumerate(ids))
        count += len(ids)
    assert told["loss"] == pytest.approx(total / count, rel=1e-5)


def test_a_halted_cold_start_goes_on_bit_for_bit_and_asks_nobody_again(tmp_path):
    pair = make_pair(tmp_path)
    stage = SMALL | {"source": "demonstrations"}
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    job = make_job(tmp_path, pair=pair, recipe=recipe_of(stage), rows=DEMONSTRATED)
    events_of(job, whole)
    running = opdcore.run(job, halted)
    for event in running:
        if event.kind == "artifact" and event.payload.artifact_kind == "checkpoint":
            break
    running.close()
    kept = halted / collection.FOLDER / "stage-00.json"
    written = kept.stat().st_mtime_ns
    again = events_of(job, halted)
    assert [event.step for event in by_kind(again, "metrics")] == [3, 4]
    assert kept.stat().st_mtime_ns == written
    one, other = (load_file(run / "output" / "model.safetensors") for run in (whole, halted))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_cut_wrong_or_said_before_is_dropped_and_counted(tmp_path):
    rows = [
        QUESTIONS[0] | {"response": "word " * 400},
        QUESTIONS[1] | {"response": f"It is {QUESTIONS[1]['answer']}."},
        QUESTIONS[1] | {"response": f"It is {QUESTIONS[1]['answer']}."},
        QUESTIONS[2] | {"response": "It is -7."},
        *DEMONSTRATED[3:6],
    ]
    events = events_of(
        demonstrated_job(
            tmp_path, rows=rows, only_correct=True, held_out_prompts=0, max_response_tokens=64
        ),
        tmp_path / "run",
    )
    dropped = collected(tmp_path / "run")["dropped"]
    assert dropped == {
        collection.CUT: 1,
        collection.DUPLICATE: 1,
        collection.WRONG: 1,
    }
    said = [event.payload.message for event in by_kind(events, "log")]
    assert any("4 of 7 responses are kept" in message for message in said)


def test_the_teacher_is_asked_again_where_it_was_cut(tmp_path):
    pair = make_pair(tmp_path)
    counts = []
    for retries in (0, 6):
        stage = SMALL | {"retries": retries, "temperature": 1.0, "sampling_top_p": 1.0}
        run = tmp_path / f"run-{retries}"
        job = make_job(tmp_path, pair=pair, recipe=recipe_of(stage))
        with suppress(EngineFailure):
            events_of(job, run)
        counts.append(len(collected(run)["responses"]))
    assert counts[1] >= counts[0]
    assert counts[1] > 0


def test_a_second_run_finds_the_teachers_responses_and_learns_the_same(tmp_path):
    pair, cache = make_pair(tmp_path), tmp_path / "cache"
    stage = SMALL | {"temperature": 1.0, "sampling_top_p": 1.0, "retries": 6}
    job = make_job(tmp_path, pair=pair, recipe=recipe_of(stage))
    caching = job.model_copy(update={"response_cache": str(cache)})
    events_of(job, tmp_path / "without")
    events_of(caching, tmp_path / "first")
    written = {file: file.read_bytes() for file in cache.iterdir()}
    assert written
    events_of(caching, tmp_path / "second")
    runs = [collected(tmp_path / name) for name in ("without", "first", "second")]
    assert runs[0] == runs[1] == runs[2]
    assert {file: file.read_bytes() for file in cache.iterdir()} == written
    # A block that is found is not sampled again: one without responses is not what was asked for.
    for file in cache.iterdir():
        file.write_text("[]")
    with pytest.raises(ValueError, match="zip"):
        events_of(caching, tmp_path / "third")


def test_other_sampling_and_another_teacher_are_asked_anew(tmp_path):
    pair, cache = make_pair(tmp_path), tmp_path / "cache"

    def kept_by(**knobs) -> int:
        recipe = recipe_of(SMALL | {"temperature": 1.0, "sampling_top_p": 1.0} | knobs)
        job = make_job(tmp_path, pair=pair, recipe=recipe, response_cache=str(cache))
        with suppress(EngineFailure):
            events_of(job, tmp_path / f"run-{len(list(cache.glob('*')))}")
        return len(list(cache.glob("*.json")))

    assert kept_by() == 1
    assert kept_by(temperature=0.9) == 2
    weights = pair[1] / "model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 0.01}, weights, metadata={"format": "pt"})
    assert kept_by() == 3


def test_without_a_sound_response_the_run_ends_with_a_remedy(tmp_path):
    rows = [row | {"response": "word " * 400} for row in QUESTIONS[:8]]
    with pytest.raises(EngineFailure) as raised:
        events_of(demonstrated_job(tmp_path, rows=rows), tmp_path / "run")
    assert raised.value.info.code == "cold_start.no_responses"
    assert "8 cut" in raised.value.info.message


def test_demonstrations_that_are_missing_are_refused_before_the_run(tmp_path):
    with pytest.raises(BadInput) as raised:
        events_of(demonstrated_job(tmp_path, rows=QUESTIONS), tmp_path / "run")
    assert raised.value.info.field == "recipe.stages.0.source"


def test_a_distillation_goes_on_from_what_the_cold_start_left(tmp_path):
    distil = make_recipe().stages[0].model_dump()
    recipe = recipe_of(SMALL | {"source": "demonstrations"}, distil)
    events = events_of(make_job(tmp_path, recipe=recipe, rows=DEMONSTRATED), tmp_path / "run")
    assert events[0].payload.steps_by_stage == (4, 4)
    assert [event.payload.stage_kind for event in by_kind(events, "stage_started")] == [
        "cold_start",
        "distill",
    ]
    evaluated = [
        (event.stage_index, event.step)
        for event in by_kind(events, "evaluation")
        if event.payload.role == "student"
    ]
    assert evaluated == [(0, 0), (0, 4), (1, 2), (1, 4)]
    assert events[-1].payload.status == "succeeded"


def test_more_warm_up_than_steps_is_refused():
    with pytest.raises(ValueError, match="warmup_steps: 9 is more than the 4 steps"):
        ColdStartStage.model_validate(SMALL | {"warmup_steps": 9})


def test_after_a_cold_start_the_distillation_compares_with_what_that_left_behind(tmp_path):
    distil = make_recipe(steps=4, initial_kl_weight=0.5).stages[0].model_dump()
    recipe = recipe_of(SMALL | {"source": "demonstrations"}, distil)
    job = make_job(tmp_path, recipe=recipe, rows=DEMONSTRATED)
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    events = by_kind(events_of(job, whole), "metrics")
    assert [event.stage_index for event in events] == [0] * 4 + [1] * 4
    # Before its first update a student is what it was at the stage's start.
    assert events[4].payload.values["initial_kl"] == pytest.approx(0, abs=1e-6)
    assert events[7].payload.values["initial_kl"] > 1e-4

    running = opdcore.run(job, halted)
    for event in running:
        if event.kind == "artifact" and event.payload.key.endswith("stage-01-step-0000002"):
            break
    running.close()
    events_of(job, halted)
    one, other = (load_file(run / "output" / "model.safetensors") for run in (whole, halted))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_distillation_after_it_is_watched_from_what_the_cold_start_left(tmp_path):
    """Accuracies of the files, made up: the run's own first one is far above what came next."""
    evaluator = Evaluator(
        Evaluation(), (), verifier=None, vocabulary=1, seed=0, run_dir=tmp_path, resumed=False
    )
    (tmp_path / FOLDER).mkdir()
    for name, value in (("00-0000000", 0.9), ("00-0000048", 0.25), ("01-0000020", 0.5)):
        told = {"accuracy": [value] * 4, "response_tokens": [1.0] * 4, "solved_once": [1.0] * 4,
                "truncated": 0.0, "abstained": 0.0}  # fmt: skip
        (tmp_path / FOLDER / f"student-{name}.json").write_text(json.dumps(told))
    assert [evaluator.before(stage).value for stage in (0, 1, 2)] == [0.9, 0.25, 0.5]
