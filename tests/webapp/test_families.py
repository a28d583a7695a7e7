"""Families: their pairs, the calibration that runs make, packs in and out, control runs, pages."""

import json

import pytest
from django.core.exceptions import PermissionDenied
from django.core.files.uploadedfile import SimpleUploadedFile

from opdcore.calibration import laboratory
from opdcore.contract.errors import BadInput
from opdcore.contract.outcome import Outcome
from opdcore.contract.recipe import Recipe as RecipeDocument
from tests.webapp.diagnoses import DIAGNOSE, make_prompts
from tests.webapp.families import GOOD, LOST, SAME, fill, finish, make_family, make_finished
from tests.webapp.rows import make_model, make_pair, make_recipe
from tests.workers.rows import make_running
from webapp.models import (
    AuditEntry,
    Family,
    Pair,
    PairTeacher,
    Project,
    PromptSet,
    Recipe,
    RegisteredModel,
    Run,
)
from webapp.services import controls, families, family_report, run_documents, runs

LABORATORY = laboratory().thresholds


@pytest.fixture
def family(project, member):
    return make_family(project, member)


@pytest.fixture
def graded(project):
    """A pair in whose name a recipe with a verifier is saved, with prompts to train on and to hold out."""
    pair = make_pair(project, "Sums pair")
    # Models of the hub are fetched at launch, so none of their files is read here.
    RegisteredModel.objects.update(source_kind="hub", repo="owner/name", revision="main", path="")
    document = RecipeDocument.model_validate(
        {
            "name": "Sums pair",
            "evaluation": {"verifier": "exact"},
            "stages": [
                {"kind": "distill", "steps": 10, "prompts_per_step": 8, "rollouts_per_prompt": 2,
                 "max_response_tokens": 50, "k": 4},
            ],
        }
    ).model_dump(mode="json")  # fmt: skip
    make_recipe(project, "Sums pair", document=document)
    make_prompts(project, "train")
    make_prompts(project, "held out")
    return Pair.objects.get(pk=pair.pk)


def job_of(run):
    run.attempt = 1
    return run_documents.job_document(run, run_documents.LocalFiles(train="train.jsonl"))


def test_a_family_without_runs_has_the_laboratorys_cut_offs_and_no_control(family):
    assert family.calibration.thresholds == LABORATORY
    assert family.calibration.controls == {}
    assert not family.has_controls


def test_finished_runs_of_its_pairs_become_controls_and_move_cut_offs(family):
    fill(family)
    found = family.calibration
    assert {name: one.runs for name, one in found.controls.items()} == {
        "descendant": 3, "other_pattern": 3,
    }  # fmt: skip
    # Failures reach .3 in top-1 agreement, successes start at .9 in overlap: thirds between them.
    assert found.thresholds.incompatible_overlap == pytest.approx(0.5)
    assert found.thresholds.compatible_overlap == pytest.approx(0.7)
    assert found.thresholds.tiny_kl == LABORATORY.tiny_kl


def test_two_runs_of_a_control_move_nothing(family):
    fill(family, good=2)
    assert family.calibration.controls["descendant"].runs == 2
    assert family.calibration.thresholds == LABORATORY


def test_a_run_without_a_diagnosis_or_without_an_outcome_counts_for_nothing(family):
    diagnosed = make_finished(family, GOOD, "success")
    Run.objects.filter(pk=diagnosed.pk).update(outcome=None)
    undiagnosed = make_running(project=family.project)
    Pair.objects.filter(pk=undiagnosed.pair_id).update(family=family)
    said = Outcome(code="success", explanation="Good.").model_dump(mode="json")
    Run.objects.filter(pk=undiagnosed.pk).update(status="succeeded", outcome=said)
    assert families.recalibrate(family).calibration.controls == {}


def test_an_ended_run_teaches_its_family(family):
    run = make_running(project=family.project, stages=[DIAGNOSE])
    Pair.objects.filter(pk=run.pair_id).update(family=family)
    finish(run, GOOD, "success")
    families.learn_from(run.pk)
    family.refresh_from_db()
    assert family.calibration.controls["descendant"].runs == 1


def test_a_run_of_no_family_teaches_nobody(project):
    run = finish(make_running(project=project, stages=[DIAGNOSE]), GOOD, "success")
    families.learn_from(run.pk)
    assert not Family.objects.exists()


def test_a_pair_takes_its_runs_along_when_it_joins_and_when_it_leaves(family, member):
    run = make_finished(family, GOOD, "success")
    families.choose(run.pair, None, actor=member)
    family.refresh_from_db()
    assert family.calibration.controls == {}
    families.choose(run.pair, family, actor=member)
    family.refresh_from_db()
    assert family.calibration.controls["descendant"].runs == 1
    verbs = AuditEntry.objects.filter(object_kind="Pair").values_list("verb", flat=True)
    assert set(verbs) == {"leave_family", "choose_family"}


def test_a_laboratory_pair_joins_no_family(family, member, project):
    pair = make_pair(project, is_laboratory=True, lab_version="1")
    with pytest.raises(BadInput, match="built in"):
        families.choose(pair, family, actor=member)


def test_a_pair_joins_no_family_of_another_project(member, project):
    other = Project.objects.create(name="Other", slug="other")
    theirs = Family.objects.create(project=other, name="Theirs", document={})
    with pytest.raises(BadInput, match="another project"):
        families.choose(make_pair(project), theirs, actor=member)


def test_only_editors_change_families(family, viewer, project):
    pair = make_pair(project)
    for change in (
        lambda: families.create("More", project=project, actor=viewer),
        lambda: families.choose(pair, family, actor=viewer),
        lambda: families.rename(family, "Other", actor=viewer),
        lambda: families.import_pack(family, b"{}", file_name="a.json", actor=viewer),
        lambda: families.remove_pack(family, actor=viewer),
        lambda: families.delete(family, actor=viewer),
        lambda: controls.launch(pair, actor=viewer),
    ):
        with pytest.raises(PermissionDenied):
            change()


def test_names_are_told_apart(family, member, project):
    with pytest.raises(BadInput, match="already a family"):
        families.create("Qwen sums", project=project, actor=member)
    with pytest.raises(BadInput, match="built-in"):
        families.create("laboratory", project=project, actor=member)
    with pytest.raises(BadInput, match="empty"):
        families.create("  ", project=project, actor=member)


def test_a_renamed_family_names_its_calibration_so(family, member):
    families.rename(family, "Qwen products", actor=member)
    assert (family.name, family.calibration.name, family.calibration.family) == (
        "Qwen products", "Qwen products", "Qwen products",
    )  # fmt: skip


def test_a_deleted_family_leaves_its_pairs(family, member):
    run = make_finished(family, GOOD, "success")
    families.delete(family, actor=member)
    run.pair.refresh_from_db()
    assert run.pair.family is None


def pack_of(**thresholds):
    """The laboratory's calibration under another name, with some cut-offs changed."""
    limits = LABORATORY.model_copy(update=thresholds)
    update = {"name": "Elsewhere", "family": "Elsewhere", "thresholds": limits}
    return laboratory().model_copy(update=update)


def test_an_exported_calibration_can_be_imported(browse, member, project, family):
    fill(family)
    exported = browse(member).get(f"/families/{family.public_id}/export/")
    assert exported["Content-Disposition"] == 'attachment; filename="qwen-sums-calibration.json"'
    other = make_family(project, member, "Other")
    file = SimpleUploadedFile("pack.json", exported.content, "application/json")
    answer = browse(member).post(f"/families/{other.public_id}/import/", {"file": file})
    assert answer["Location"] == f"/families/{other.public_id}/"
    other.refresh_from_db()
    assert other.pack == family.calibration
    assert other.calibration.controls == family.calibration.controls
    assert other.calibration.thresholds == family.calibration.thresholds


def test_a_pack_stands_in_only_where_own_runs_are_missing(family, member):
    fill(family)
    raw = (
        pack_of(tiny_kl=0.5, incompatible_overlap=0.9, compatible_overlap=0.99)
        .model_dump_json()
        .encode()
    )
    families.import_pack(family, raw, file_name="pack.json", actor=member)
    found = family.calibration
    assert (found.name, found.family) == ("Qwen sums", "Qwen sums")
    assert found.controls["descendant"].runs == 3
    assert found.controls["reverse"] == laboratory().controls["reverse"]
    # The two hold together, though the lower one came out as the laboratory's.
    assert found.thresholds.incompatible_overlap == pytest.approx(0.5)
    assert found.thresholds.compatible_overlap == pytest.approx(0.7)
    assert found.thresholds.tiny_kl == 0.5
    families.remove_pack(family, actor=member)
    assert family.imported is None
    assert family.calibration.controls.keys() == {"descendant", "other_pattern"}
    assert family.calibration.thresholds.tiny_kl == LABORATORY.tiny_kl


@pytest.mark.parametrize(
    ("change", "field", "told"),
    [
        ({"tiny_kl": -1}, "thresholds.tiny_kl", "-1"),
        ({"incompatible_overlap": 0.9}, "thresholds.incompatible_overlap", "0.9"),
        ({"tiny_kl": "much"}, "thresholds.tiny_kl", "much"),
    ],
)
def test_a_bad_pack_is_refused_with_field_value_and_remedy_and_changes_nothing(
    family, member, change, field, told
):
    fill(family)
    before = family.document
    document = json.loads(pack_of().model_dump_json())
    document["thresholds"] |= change
    with pytest.raises(BadInput) as refused:
        families.import_pack(
            family, json.dumps(document).encode(), file_name="bad.json", actor=member
        )
    info = refused.value.info
    assert info.field == field
    assert told in info.message
    assert "bad.json" in info.message
    assert "/tmp" not in info.message
    assert info.remedy
    family.refresh_from_db()
    assert (family.document, family.imported) == (before, None)


def test_what_is_no_json_is_told_at_the_file(browse, member, family):
    file = SimpleUploadedFile("pack.json", b"not json", "application/json")
    answer = browse(member).post(f"/families/{family.public_id}/import/", {"file": file})
    assert answer.status_code == 422
    assert "pack.json is no calibration" in str(answer.context["pack_form"].errors["file"])


def test_a_launch_freezes_the_familys_calibration_into_the_job(family, member, graded, project):
    fill(family)
    families.choose(graded, family, actor=member)
    train = make_prompts(project, "more")
    run = runs.launch(
        actor=member, project=project, pair=graded, recipe=make_recipe(project), train=train
    )
    assert job_of(run).calibration == family.calibration
    families.choose(graded, None, actor=member)
    assert job_of(run).calibration.name == "Qwen sums"


def test_a_family_without_a_control_leaves_the_job_to_the_laboratory(family, member, graded):
    families.choose(graded, family, actor=member)
    run = controls.launch(graded, actor=member)[0]
    assert run.snapshot["family"]["name"] == "Qwen sums"
    assert job_of(run).calibration is None


def test_a_run_launched_before_there_were_families_still_makes_a_job(project):
    run = make_running(project=project)
    del run.snapshot["family"]
    assert job_of(run).calibration is None


def test_controls_are_the_pair_its_reverse_and_the_student_with_itself(family, member, graded):
    families.choose(graded, family, actor=member)
    launched = {run.recipe.contract.stages[0].relation: run for run in controls.launch(
        graded, actor=member)}  # fmt: skip
    assert launched.keys() == {"identical", "ancestor", "descendant"}
    student, teacher = graded.student, graded.teachers.get().model
    sides = {
        relation: (run.pair.student, run.pair.teachers.get().model)
        for relation, run in launched.items()
    }
    assert sides == {
        "identical": (student, student),
        "ancestor": (teacher, student),
        "descendant": (student, teacher),
    }
    for run in launched.values():
        assert (run.relation, run.status, run.pair.family) == ("control", "queued", family)
        assert [stage.kind for stage in run.recipe.contract.stages] == ["diagnose", "distill"]
        assert run.recipe.contract.stages[0].k == 4
        assert run.recipe.contract.evaluation.verifier == "exact"
        assert (run.train_set.name, run.held_out_set.name) == ("train", "held out")
    assert {pair.name for pair in Pair.objects.all()} == {
        "Sums pair", "Sums pair: identical control", "Sums pair: reverse control",
    }  # fmt: skip


def test_controls_that_are_run_again_reuse_pairs_and_take_other_seeds(family, member, graded):
    families.choose(graded, family, actor=member)
    controls.launch(graded, actor=member, of_each=2)
    controls.launch(graded, actor=member)
    assert Pair.objects.count() == 3
    for pair in Pair.objects.all():
        seeds = [run.recipe.contract.seed for run in pair.runs.all()]
        assert len(set(seeds)) == len(seeds) == 3
    assert set(Recipe.objects.exclude(name="Sums pair").values_list("name", flat=True)) == {
        "Sums pair (identical control)",
        "Sums pair (reverse control)",
        "Sums pair (known good control)",
    }


def test_controls_tell_their_cost_first(browse, member, family, graded):
    families.choose(graded, family, actor=member)
    planned = controls.plan(graded, of_each=2)
    assert (planned.run_count, planned.steps) == (6, 60)
    assert planned.training_tokens == 6 * 10 * 8 * 2 * 50
    # Two prompts, four rollouts of 50 tokens by either side, and three times that to hand off.
    assert planned.probe_tokens == 6 * 2 * 4 * 50 * 5
    page = browse(member).get(f"/pairs/{graded.public_id}/").content.decode()
    assert "3 runs, 30 steps" in page
    address = f"/pairs/{graded.public_id}/controls/cost/"
    assert b"6 runs, 60 steps" in browse(member).post(address, {"of_each": "2"}).content
    assert not Run.objects.exists()


def test_controls_are_refused_with_what_to_do(browse, member, family, project):
    pair = make_pair(project, "lonely")
    with pytest.raises(BadInput, match="in no family"):
        controls.launch(pair, actor=member)
    families.choose(pair, family, actor=member)
    with pytest.raises(BadInput, match="never distilled"):
        controls.launch(pair, actor=member)
    make_recipe(project, "lonely")
    with pytest.raises(BadInput, match="grades nothing"):
        controls.launch(pair, actor=member)
    page = browse(member).get(f"/pairs/{pair.public_id}/").content.decode()
    assert "whose recipe has a verifier" in page
    PairTeacher.objects.create(pair=pair, model=make_model(project, "second"), position=1)
    with pytest.raises(BadInput, match="2 teachers"):
        controls.launch(pair, actor=member)
    assert not Run.objects.exists()


def test_a_pair_without_prompts_is_told_to_upload_some(family, member, graded, project):
    families.choose(graded, family, actor=member)
    PromptSet.objects.filter(project=graded.project).delete()
    with pytest.raises(BadInput, match="no prompts"):
        controls.launch(graded, actor=member)


def test_a_control_has_no_controls_of_its_own(family, member, graded):
    families.choose(graded, family, actor=member)
    controls.launch(graded, actor=member)
    made = Pair.objects.get(name="Sums pair: reverse control")
    with pytest.raises(BadInput, match="control itself"):
        controls.launch(made, actor=member)


def test_the_button_launches_the_controls(browse, member, viewer, family, graded):
    families.choose(graded, family, actor=member)
    address = f"/pairs/{graded.public_id}/controls/"
    assert browse(viewer).post(address, {"of_each": "1"}).status_code == 403
    assert browse(member).post(address, {"of_each": "9"}).status_code == 422
    assert not Run.objects.exists()
    answer = browse(member).post(address, {"of_each": "1"})
    assert answer["Location"] == f"/pairs/{graded.public_id}/"
    assert Run.objects.count() == 3


def test_a_pair_joins_from_its_page_an_old_family_or_a_new_one(browse, member, family, project):
    pair = make_pair(project)
    address = f"/pairs/{pair.public_id}/family/"
    browse(member).post(address, {"family": family.public_id, "name": ""})
    pair.refresh_from_db()
    assert pair.family == family
    browse(member).post(address, {"family": family.public_id, "name": "Newer"})
    pair.refresh_from_db()
    assert pair.family.name == "Newer"
    browse(member).post(address, {"family": "", "name": ""})
    pair.refresh_from_db()
    assert pair.family is None
    refused = browse(member).post(address, {"family": "", "name": "Newer"})
    assert refused.status_code == 422
    assert "already a family" in str(refused.context["family_form"].errors["name"])


def test_a_laboratory_pairs_page_says_that_it_needs_none(browse, member, project):
    pair = make_pair(project, is_laboratory=True, lab_version="1")
    page = browse(member).get(f"/pairs/{pair.public_id}/").content.decode()
    assert "They need no family" in page
    assert f"/pairs/{pair.public_id}/family/" not in page


def test_each_run_is_a_dot_in_its_controls_row(family):
    fill(family, good=3, lost=1)
    make_finished(family, SAME, "no_gain", "same_pipeline")
    report = family_report.of(families.recalibrate(family))
    assert [strip.key for strip in report.strips] == [
        "effective_overlap", "top1_agreement", "hand_off_min", "teacher_on_failed",
        "accuracy_gap", "reverse_kl",
    ]  # fmt: skip
    lanes = {lane.name: lane for lane in report.strips[0].lanes}
    assert {name: len(lane.dots) for name, lane in lanes.items()} == {
        "identical": 0, "descendant": 3, "same_pipeline": 1, "reverse": 0, "other_pattern": 1,
    }  # fmt: skip
    assert lanes["other_pattern"].dots[0].x == pytest.approx(2 + 96 * 0.2)
    kl = {lane.name: lane for lane in report.strips[-1].lanes}
    # On a log axis from .001 to 10, .1 lies in the middle.
    assert report.strips[-1].ticks[2] == (50.0, "0.1")
    assert kl["same_pipeline"].dots[0].x < 50 < kl["other_pattern"].dots[0].x


def test_every_cut_off_says_why_it_moved_or_did_not(family, member):
    fill(family)
    rows = {cut.thresholds[0].name: cut for cut in family_report.of(family).cuts}
    assert rows["incompatible_overlap"].source == "own"
    assert "0.3 at most over 3 runs" in rows["incompatible_overlap"].why
    assert rows["tiny_kl"].source == "laboratory"
    assert rows["tiny_kl"].why == "Same pipeline has 0 of 3 runs."
    raw = pack_of(tiny_kl=0.5).model_dump_json().encode()
    families.import_pack(family, raw, file_name="pack.json", actor=member)
    rows = {cut.thresholds[0].name: cut for cut in family_report.of(family).cuts}
    assert rows["tiny_kl"].source == "pack"


def test_controls_that_meet_say_where(family):
    for _ in range(3):
        make_finished(family, GOOD, "success")
        make_finished(family, GOOD, "no_gain")
    rows = {
        cut.thresholds[0].name: cut for cut in family_report.of(families.recalibrate(family)).cuts
    }
    assert rows["incompatible_overlap"].why == (
        "They meet: Other pattern reaches 0.92, and Known good starts at 0.9."
    )


def test_the_familys_page_shows_runs_cut_offs_and_what_is_missing(browse, viewer, member, family):
    empty = browse(member).get(f"/families/{family.public_id}/").content.decode()
    assert "No pair yet" in empty
    fill(family)
    undecided = make_finished(family, GOOD, "inconclusive")
    page = browse(viewer).get(f"/families/{family.public_id}/").content.decode()
    for run in Run.objects.all():
        assert f'href="/runs/{run.public_id}/"' in page
    assert "Runs that say nothing certain" in page
    assert undecided.name in page
    assert "register one, put its pair into this family" in page
    assert "/delete/" not in page
    assert "It needs another teacher" in page


def test_families_of_other_projects_are_not_to_be_seen(browse, stranger, member, family):
    assert browse(stranger).get(f"/families/{family.public_id}/").status_code == 404
    assert browse(stranger).get(f"/families/{family.public_id}/export/").status_code == 404
    assert browse(stranger).post(f"/families/{family.public_id}/delete/").status_code == 404
    assert family.name in browse(member).get("/families/").content.decode()
    assert Family.objects.exists()


def test_a_family_is_made_and_deleted_from_its_pages(browse, member, viewer, project):
    assert b"No families yet" in browse(viewer).get("/families/").content
    assert browse(viewer).post("/families/", {"name": "Mine"}).status_code == 403
    answer = browse(member).post("/families/", {"name": "Mine"})
    made = Family.objects.get(project=project)
    assert answer["Location"] == f"/families/{made.public_id}/"
    assert browse(member).post("/families/", {"name": "Mine"}).status_code == 422
    browse(member).post(f"/families/{made.public_id}/rename/", {"name": "Ours"})
    made.refresh_from_db()
    assert made.name == "Ours"
    browse(member).post(f"/families/{made.public_id}/delete/")
    assert not Family.objects.exists()


def test_a_diagnosis_links_the_familys_calibration(browse, viewer, member, family, graded):
    fill(family)
    families.choose(graded, family, actor=member)
    run = controls.launch(graded, actor=member)[0]
    Run.objects.filter(pk=run.pk).update(status="running", attempt=1)
    run.refresh_from_db()
    finish(run, LOST, "no_gain")
    page = browse(viewer).get(f"/runs/{run.public_id}/diagnosis/").content.decode()
    assert f'href="/families/{family.public_id}/"' in page
