"""The recipe's form is the contract's: same knobs, same defaults, same refusals."""

from django.http import QueryDict

from opdcore.contract.distill import DistillStage
from opdcore.contract.evaluation import Evaluation, Goal
from opdcore.contract.recipe import Recipe as RecipeDocument
from webapp.forms.knobs import KnobForm, bounds_of, knobs_of
from webapp.forms.recipe import STAGES, RecipeForm

PLAIN = RecipeDocument.model_validate({"name": "Plain", "stages": [{"kind": "distill"}]})


def typed(document=PLAIN, **overrides):
    """The form as a browser sends it, with some fields typed over."""
    data = QueryDict(mutable=True)
    data.update(RecipeForm.of(document).head.data)
    data.setlist("stage_kinds", [stage.kind for stage in document.stages])
    for key, value in overrides.items():
        data[key.replace("__", ".")] = value
    return RecipeForm.typed(data)


def test_form_fields_are_the_recipes_fields():
    for document in (Goal, Evaluation, *STAGES.values()):
        declared = {
            name
            for name, field in document.model_fields.items()
            if not (name == "kind" and field.json_schema_extra is None)
        }
        assert set(KnobForm(document, prefix="x").fields) == declared
    head = set(RecipeForm.of(PLAIN).head.fields)
    assert head | {"version", "goal", "evaluation", "stages"} == set(RecipeDocument.model_fields)


def test_every_knob_shows_its_help_and_unit():
    form = KnobForm(DistillStage, prefix="stages.0")
    assert form.fields["k"].help_text == DistillStage.model_fields["k"].description
    assert form.fields["k"].unit == "tokens"
    assert form.fields["k"].bounds == "from 1, up to 4,096"
    assert bounds_of(DistillStage.model_fields["learning_rate"]) == "above 0, up to 1"
    assert all(field.help_text for field in form.fields.values())


def test_an_untouched_form_is_the_documents_defaults():
    assert typed().document() == PLAIN


def test_every_knob_stands_in_exactly_one_group():
    for document in (Goal, Evaluation, *STAGES.values()):
        groups = KnobForm(document, prefix="x").groups()
        shown = [field.name for group in groups for field in group.basic]
        shown += [field.name for group in groups for fold in group.folds for field in fold.fields]
        assert sorted(shown) == sorted(knobs_of(document))


def test_what_is_typed_reaches_the_document():
    document = typed(stages__0__k="8", evaluation__verifier="math", seed="7").document()
    assert (document.stages[0].k, document.evaluation.verifier, document.seed) == (8, "math", 7)


def test_an_emptied_optional_knob_is_none_and_an_emptied_other_is_a_fault():
    assert typed(stages__0__position_chunk_tokens="").document() is not None
    form = typed(stages__0__steps="")
    assert form.document() is None
    assert form.fault_texts()["stages.0.steps"].startswith("nothing is no whole number")


def test_a_fault_stands_at_its_field_with_value_and_remedy():
    form = typed(stages__0__learning_rate="0", stages__0__k="many")
    assert form.document() is None
    assert form.fault_texts() == {
        "stages.0.learning_rate": "0 is too small. Give more than 0.",
        "stages.0.k": "many is no whole number. Give a whole number, such as 16.",
    }
    assert form.stages[0].form.errors["k"] == [
        "many is no whole number. Give a whole number, such as 16."
    ]


def test_nan_is_refused():
    form = typed(stages__0__learning_rate="nan")
    assert form.document() is None
    assert "is not finite" in form.fault_texts()["stages.0.learning_rate"]


def test_a_check_across_knobs_stands_at_the_knob_it_names():
    form = typed(stages__0__warmup_steps="300")
    assert form.document() is None
    assert form.fault_texts() == {
        "stages.0.warmup_steps": "300 is more than the 200 steps. Lower it."
    }


def test_stages_are_added_moved_and_removed():
    form = typed(stages__0__k="8").added("evaluate").moved(1, "up")
    document = form.document()
    assert [stage.kind for stage in document.stages] == ["evaluate", "distill"]
    assert document.stages[1].k == 8
    assert [one.kind for one in form.moved(0, "remove").stages] == ["distill"]


def test_a_recipe_without_stages_says_so():
    form = typed().moved(0, "remove")
    assert form.document() is None
    assert form.other_faults[0].path == "stages"


def test_several_numbers_stand_in_one_line():
    depths = {"kind": "diagnose", "hand_off_tokens": [64, 128]}
    document = RecipeDocument.model_validate({"name": "Probe", "stages": [depths]})
    form = typed(document)
    assert form.stages[0].form["hand_off_tokens"].value() == "64, 128"
    assert form.document() == document
    changed = typed(document, stages__0__hand_off_tokens="32,  96").document()
    assert changed.stages[0].hand_off_tokens == (32, 96)
