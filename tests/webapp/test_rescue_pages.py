"""The page of a plan, its check while typing, and the page of its proof, for each role and method."""

import re

import pytest
from django.urls import reverse

from opdcore.contract.recipe import Recipe as RecipeDocument
from tests.webapp.diagnoses import make_verdict
from tests.webapp.rescues import end_well, keep_checkpoint, keep_scores, make_failing, tell_accuracy
from tests.workers.rows import make_run
from webapp.forms.rescue import RescueForm
from webapp.models import PairDiagnosis, Run
from webapp.services import proofs, rescues
from webapp.services.recipe_yaml import read_yaml, write_yaml

PATHS = ["run-rescue", "run-rescue-check", "run-proof", "run-proof-arms", "run-arms"]


@pytest.fixture
def run(project, member):
    return make_failing(project, member)


def address(run, name="run-rescue"):
    return reverse(name, args=[run.public_id])


def typed(run, **more):
    """What a browser sends of the form as it stands, with what was typed over it."""
    form = RescueForm(rescues.plan_of(run))
    shown = {name: form[name].value() for name in form.fields if name != "control"}
    return {name: value for name, value in shown.items() if value is not False} | more


def test_the_page_shows_verdict_changes_reasons_and_sources(run, member, browse):
    html = browse(member).get(address(run)).content.decode()
    assert "STALLED_MISMATCH" in html
    assert "Cold start" in html
    assert "arXiv 2604.13016, 5.1" in html
    assert "A cold start brings no knowledge that the teacher lacks." in html
    assert "Start the rescue" in html
    assert 'name="stages.0.steps"' in html
    assert html.count("Rests on Overlap ratio") == 0, "the latest verdict has no evidence here"


def test_start_launches_the_child_and_opens_it(run, member, browse):
    answer = browse(member).post(address(run), typed(run))
    child = Run.objects.get(relation="rescue")
    assert answer.url == reverse("run", args=[child.public_id])
    assert child.snapshot["lineage"]["edited"] == []


def test_a_knob_that_is_typed_in_place_goes_into_the_recipe(run, member, browse):
    form = {"stages.0.steps": "7", "stages.0.warmup_steps": "0", "control": "on"}
    browse(member).post(address(run), typed(run, **form))
    child = Run.objects.get(relation="rescue")
    assert child.recipe.contract.stages[0].steps == 7
    assert Run.objects.filter(relation="control").count() == 1


def test_the_yaml_is_taken_as_it_was_left_and_a_typed_knob_goes_before_it(run):
    planned = rescues.plan_of(run)
    written = planned.recipe.model_dump()
    written["stages"][1]["k"], written["stages"][0]["steps"] = 8, 90
    text = write_yaml(RecipeDocument.model_validate(written))
    form = RescueForm(planned, typed(run, yaml=text, **{"stages.0.steps": "70"}))
    assert form.is_valid(), form.errors
    assert [form.document.stages[1].k, form.document.stages[0].steps] == [8, 70]


def test_a_stage_that_the_yaml_no_longer_has_cannot_be_turned_in_place(run):
    planned = rescues.plan_of(run)
    alone = planned.recipe.model_copy(update={"stages": planned.recipe.stages[1:]})
    typed_now = typed(run, yaml=write_yaml(alone), **{"stages.0.responses_per_step": "4"})
    form = RescueForm(planned, typed_now)
    assert not form.is_valid()
    assert "no such knob" in form.errors["stages.0.responses_per_step"][0]


def test_faults_stand_at_their_fields_and_nothing_is_launched(run, member, browse):
    bad = typed(run, **{"stages.0.steps": "-3"})
    answer = browse(member).post(address(run), bad)
    assert answer.status_code == 422
    assert "-3 is too small. Give at least 1." in answer.content.decode()
    assert Run.objects.count() == 1
    wrong = RescueForm(rescues.plan_of(run), typed(run, yaml="stages: [{kind: nothing}]"))
    assert not wrong.is_valid()
    assert any("line 1" in error for error in wrong.errors["yaml"])


def test_a_plan_that_moved_on_is_shown_again_and_not_launched(run, member, browse):
    answer = browse(member).post(address(run), typed(run, seen="another"))
    assert answer.status_code == 422
    assert "its plan is another" in answer.content.decode()
    assert Run.objects.count() == 1


def test_the_check_tells_queue_and_faults_and_saves_nothing(run, member, browse):
    client = browse(member)
    told = client.post(address(run, "run-rescue-check"), typed(run)).content.decode()
    assert "Queue" in told
    bad = typed(run, **{"stages.0.learning_rate": "fast"})
    told = client.post(address(run, "run-rescue-check"), bad).content.decode()
    assert re.search(r'id="error-stages.0.learning_rate".*fast is no number', told, re.DOTALL)
    assert Run.objects.count() == 1


def test_a_healthy_run_has_no_plan_and_the_page_says_what_to_do(project, member, browse):
    healthy = make_run(project=project, status="running", health={"go": "go", "code": "HEALTHY"})
    answer = browse(member).get(address(healthy))
    assert answer.status_code == 200
    assert "is healthy so far" in answer.content.decode()
    assert browse(member).post(address(healthy)).status_code == 409


def test_where_training_is_no_cure_other_teachers_are_offered(project, member, browse):
    run = make_failing(project, member, code="STALLED_NO_SIGNAL")
    better = make_run(project=project).pair
    better.student = run.pair.student
    better.save()
    PairDiagnosis.objects.create(
        pair=better,
        prompt_set=run.train_set,
        goal="acquire",
        run=run,
        code="GO",
        verdict=make_verdict("GO", "go").model_dump(mode="json"),
        diagnosed_at=run.created_at,
    )
    html = browse(member).get(address(run)).content.decode()
    assert "Another recipe does not cure this" in html
    assert f"New run with {better.name}" in html
    assert "Start the rescue" not in html


def test_reinforcement_is_offered_as_a_recipe_to_be_saved(project, member, browse):
    run = make_failing(project, member, code="STALLED_NO_SIGNAL")
    document = run.snapshot["recipe"]["document"]
    document["evaluation"]["verifier"] = "exact"
    run.save()
    client = browse(member)
    there = f"{reverse('recipe-new')}?reinforce={run.public_id}"
    assert there in client.get(address(run)).content.decode()
    form = client.get(there).content.decode()
    assert "plain, reinforced" in form
    assert 'value="reinforce"' in form


def test_a_viewer_reads_the_plan_and_may_not_start_it(run, viewer, browse):
    html = browse(viewer).get(address(run)).content.decode()
    assert "Start the rescue" not in html
    assert browse(viewer).post(address(run), typed(run)).status_code == 403
    assert Run.objects.count() == 1


@pytest.mark.parametrize("name", PATHS)
def test_a_stranger_sees_nothing(run, stranger, browse, client, name):
    child = rescues.accept(run, actor=run.created_by)
    there = address(run if "rescue" in name else child, name)
    ask = browse(stranger).post if name.endswith("check") else browse(stranger).get
    assert ask(there).status_code == 404
    ask = client.post if name.endswith("check") else client.get
    assert ask(there).status_code == 302


@pytest.mark.parametrize("name", PATHS)
def test_each_address_takes_its_methods_alone(run, member, browse, name):
    child = rescues.accept(run, actor=member)
    there = address(run if "rescue" in name else child, name)
    assert browse(member).delete(there).status_code == 405


def test_a_form_without_its_token_is_refused(run, member, client):
    from django.test import Client

    strict = Client(enforce_csrf_checks=True)
    strict.force_login(member)
    assert strict.post(address(run), typed(run)).status_code == 403


def test_the_runs_page_and_the_list_lead_to_the_plan(run, member, browse):
    for path in (reverse("run", args=[run.public_id]), reverse("runs")):
        assert address(run) in browse(member).get(path).content.decode()


def proven(run, member, **how):
    """A rescue that ended well beside a parent that ended badly."""
    keep_scores(run, "student-00-0000000", [0.0] * 30 + [1.0] * 10)
    keep_scores(run, "student-00-0000010", [0.0] * 40)
    child = rescues.accept(run, actor=member, **how)
    end_well(child)
    proofs.update(child.pk)
    child.refresh_from_db()
    return child


def test_a_proof_compares_the_child_with_its_parents_start_and_end(run, member):
    child = proven(run, member)
    assert child.proof["code"] == "rescued"
    assert child.proof["outcome"]["before"] == 0.25
    assert child.proof["against_parent"]["gain"] == pytest.approx(0.95)
    assert child.proof["against_control"] is None


def test_a_control_arm_that_does_as_well_leaves_nothing_proven(run, member):
    child = proven(run, member, control=True)
    assert child.proof["code"] == "rescued", "judged without the arm while that still runs"
    arm = Run.objects.get(relation="control")
    end_well(arm)
    proofs.update(arm.pk)
    child.refresh_from_db()
    assert child.proof["code"] == "inconclusive"
    assert child.proof["against_control"]["gain"] == 0


def test_other_held_out_prompts_are_not_compared(run, member):
    recipe = rescues.plan_of(run).recipe
    changed = recipe.evaluation.model_copy(update={"prompts": 3})
    child = proven(run, member, document=recipe.model_copy(update={"evaluation": changed}))
    assert child.proof["against_parent"] is None


def test_the_rate_of_a_cause_counts_what_was_judged(run, member, project):
    assert proofs.rate(project, "STALLED_MISMATCH") is None
    proven(run, member)
    Run.objects.create(**copied(rescues.accept(run, actor=member), proof={"code": "not_rescued"}))
    Run.objects.create(**copied(rescues.accept(run, actor=member), proof={"code": "inconclusive"}))
    rate = proofs.rate(project, "STALLED_MISMATCH")
    assert (rate.worked, rate.rescues) == (1, 2)
    assert 0 < rate.low < 0.5 < rate.high < 1


def copied(run, **columns):
    names = ("project", "pair", "recipe", "train_set", "parent", "relation", "snapshot", "name")
    return {name: getattr(run, name) for name in names} | {"status": "succeeded"} | columns


def test_the_proof_page_shows_both_arms_and_what_was_changed(run, member, browse):
    child = proven(run, member)
    html = browse(member).get(address(child, "run-proof")).content.decode()
    assert 'data-proof="rescued"' in html
    assert html.count('class="row-title"') == 2
    assert "stages.0" in html
    assert 'keys="parent:accuracy,rescue:accuracy"' in html
    assert "every 5s" not in html, "nothing is asked for again once all have ended"


def test_a_run_that_is_no_rescue_has_no_proof(run, member, browse):
    assert browse(member).get(address(run, "run-proof")).status_code == 404


def test_the_arms_share_an_axis_on_which_distillation_begins_at_0(run, member, browse):
    tell_accuracy(run, 10, 0.5)
    child = rescues.accept(run, actor=member)
    cold = child.recipe.contract.stages[0].steps
    child.status, child.attempt = "running", 1
    child.save()
    tell_accuracy(child, 0, 0.4)
    asked = address(child, "run-arms") + "?keys=parent:accuracy,rescue:accuracy"
    found = browse(member).get(asked).json()["series"]
    assert (found["parent:accuracy"]["x"], found["parent:accuracy"]["last"]) == ([10], [0.5])
    assert found["rescue:accuracy"]["x"] == [-cold]
    assert browse(member).get(address(child, "run-arms") + "?keys=nothing").status_code == 400


def test_a_rescue_from_a_checkpoint_begins_at_its_step(project, member):
    run = make_failing(project, member, code="DEPTH_COLLAPSE", stages=[{"kind": "distill"}])
    run.events.filter(kind="health", step__gte=12).update(step=60)
    keep_checkpoint(run, 40)
    child = rescues.accept(run, actor=member)
    assert [arm.shift for arm in proofs.arms(child)] == [0, 40]


def test_the_yaml_of_the_page_is_the_plans_recipe(run):
    planned = rescues.plan_of(run)
    assert read_yaml(RescueForm(planned)["yaml"].value()) == planned.recipe
