"""The contract: knobs described and bounded, unsound recipes refused, events the same after a trip."""

import copy
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from opdcore.contract.distill import DistillStage
from opdcore.contract.errors import BadInput
from opdcore.contract.evaluation import Evaluation, Goal
from opdcore.contract.events import EVENT, Metrics, decode, encode, metrics, shape
from opdcore.contract.metrics import METRICS
from opdcore.contract.prompt import Prompt
from opdcore.contract.recipe import EvaluateStage, Recipe
from opdcore.contract.verdicts import VERDICTS


@pytest.mark.parametrize("document", [DistillStage, Evaluation, Goal])
def test_every_knob_has_help_a_group_and_a_default(document):
    for name, field in document.model_fields.items():
        if name == "kind" and document is not Goal:
            continue
        assert str(field.description).endswith("."), name
        assert field.json_schema_extra["group"], name
        assert not field.is_required(), name


def test_every_metric_and_verdict_is_described():
    for key, metric in METRICS.items():
        assert metric.label, key
        assert metric.help.endswith("."), key
    for code, kind in VERDICTS.items():
        assert kind.meaning.endswith("."), code


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"k": 0}, "k"),
        ({"learning_rat": 1e-3}, "learning_rat"),
        ({"form": "sampled", "divergence": "forward"}, "form"),
        ({"k": 1, "normalisation": "renormalised"}, "k"),
        ({"warmup_steps": 9, "steps": 8}, "warmup_steps"),
    ],
)
def test_an_unsound_stage_is_refused_by_the_name_of_its_knob(knobs, named):
    with pytest.raises(ValidationError) as refusal:
        DistillStage.model_validate(knobs)
    assert named in str(refusal.value)


def test_a_recipe_tells_its_stages_apart_by_kind():
    recipe = Recipe.model_validate(
        {"name": "r", "stages": [{"kind": "distill"}, {"kind": "evaluate"}]}
    )
    assert [type(stage) for stage in recipe.stages] == [DistillStage, EvaluateStage]
    assert recipe.steps_by_stage == (200, 0)
    with pytest.raises(ValidationError, match="kind"):
        Recipe.model_validate({"name": "r", "stages": [{"kind": "pretrain"}]})


def test_a_recipe_survives_json():
    recipe = Recipe.model_validate({"name": "r", "stages": [{"kind": "distill", "k": 8}]})
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"prompt": "a", "messages": [{"role": "user", "content": "a"}]},
        {"prompt": "  "},
        {"messages": []},
        {"messages": [{"role": "robot", "content": "a"}]},
        {"prompt": "a", "anwser": "b"},
    ],
)
def test_a_prompt_that_is_none_is_refused(row):
    with pytest.raises(ValidationError):
        Prompt.model_validate(row)


def test_non_finite_scalars_become_null_and_keep_their_name():
    told = metrics({"loss": float("nan"), "grad_norm": float("-inf"), "k": None, "x": 1.5})
    assert told == Metrics(
        values={"loss": None, "grad_norm": None, "k": None, "x": 1.5},
        nonfinite={"loss": "nan", "grad_norm": "-inf"},
    )


def test_an_event_is_the_same_after_its_trip_through_a_line():
    event = shape(metrics({"loss": 0.1}), attempt=1, line=3, stage_index=0, step=7)
    assert decode(encode(event)) == event
    assert encode(decode(encode(event))) == encode(event)


def test_an_event_with_an_unknown_field_is_refused():
    line = json.loads(encode(shape(metrics({"loss": 0.1}), attempt=1, line=1)))
    with pytest.raises(ValidationError):
        decode(json.dumps(line | {"surprise": 1}))


def test_recorded_events_of_version_one_still_load():
    recorded = Path(__file__).parents[1] / "snapshots" / "events-v1.jsonl"
    lines = recorded.read_bytes().splitlines()
    kinds = {EVENT.validate_json(line).kind for line in lines}
    assert {
        "job_started",
        "metrics",
        "positions",
        "evaluation",
        "artifact",
        "job_finished",
    } <= kinds
    assert all(encode(decode(line)) == line for line in lines)


def test_an_error_keeps_its_code_where_it_is_copied():
    error = BadInput("model.pickle", "It is a pickle.", remedy="Convert it.", field="student")
    duplicate = copy.copy(error)
    assert (duplicate.info, duplicate.exit_code) == (error.info, 2)
    assert str(error) == "student: It is a pickle. Convert it. [model.pickle]"
