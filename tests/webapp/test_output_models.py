"""What a run trained becomes a model of the project: inspected, on its own feet, once."""

from pathlib import Path

import pytest
from django.contrib.messages import get_messages
from django.core.files import File
from django.core.files.storage import storages
from django.urls import reverse

from opdcore.contract.errors import BadInput
from opdcore.lab import record
from tests.webapp.rows import RECIPE, make_pair, make_recipe, make_run
from webapp.forms.diagnosis import DiagnosisForm
from webapp.models import Artifact, AuditEntry, ModelRoot, RegisteredModel
from webapp.services import checkpoints, lineage, pairs
from webapp.services.pairs import TeacherChoice

STUDENT = record.shipped("sums") / "student"


@pytest.fixture
def run(project):
    """A run whose output is the laboratory's student."""
    made = make_run(project, name="sums, first", status="succeeded")
    for file in sorted(STUDENT.iterdir()):
        with file.open("rb") as content:
            stored = storages["artifacts"].save(
                f"{made.public_id}/output/{file.name}", File(content)
            )
        add_file(made, f"output/{file.name}", stored)
    return made


def add_file(run, key, stored):
    fields = {"attempt": 1, "kind": "output", "sha256": "a" * 64, "size_bytes": 1}
    return Artifact.objects.create(run=run, key=key, storage_key=stored, **fields)


def address(run):
    return reverse("run-register-output", args=[run.public_id])


def laid_out():
    return sorted(checkpoints.outputs().glob("*/*")) if checkpoints.outputs().exists() else []


def test_one_click_registers_the_output_and_it_can_be_part_of_a_pair(browse, member, run, project):
    page = browse(member).get(reverse("run-artifacts", args=[run.public_id])).content.decode()
    assert f'action="{address(run)}"' in page
    answer = browse(member).post(address(run))
    model = RegisteredModel.objects.get(source_kind="run")
    assert answer.headers["Location"] == reverse("model", args=[model.public_id])
    assert (model.run, model.state, model.card["model_type"]) == (run, "ready", "qwen3")
    pair = pairs.create(
        "second", project=project, actor=member, student=model, teachers=[TeacherChoice(model)]
    )
    assert pair.token_map_report["verdict"] == "same"
    entry = AuditEntry.objects.get(object_kind="RegisteredModel")
    assert (entry.verb, entry.actor, entry.detail["name"]) == ("create", member, model.name)


def test_the_model_outlives_the_runs_artifacts(member, run):
    model = checkpoints.register_output(run, actor=member)
    for artifact in run.artifacts.all():
        storages["artifacts"].delete(artifact.storage_key)
    assert checkpoints.inspect_again(model, actor=member).state == "ready"


def test_an_output_is_registered_once(browse, member, run):
    model = checkpoints.register_output(run, actor=member)
    with pytest.raises(BadInput, match=f"already registered as {model.name.split()[0]}"):
        checkpoints.register_output(run, actor=member)
    page = browse(member).get(reverse("run-artifacts", args=[run.public_id])).content.decode()
    assert "Registered as" in page
    assert address(run) not in page


def test_a_run_without_output_says_so_and_leaves_nothing(browse, member, project):
    answer = browse(member).post(address(make_run(project)))
    assert ["has no output" in str(said) for said in get_messages(answer.wsgi_request)] == [True]
    assert not RegisteredModel.objects.filter(source_kind="run").exists()
    assert list(checkpoints.outputs().iterdir()) == []


def test_an_output_that_is_not_sound_is_refused_and_leaves_nothing(member, run):
    run.artifacts.filter(key="output/model.safetensors").delete()
    with pytest.raises(BadInput):
        checkpoints.register_output(run, actor=member)
    assert laid_out() == []


def test_a_viewer_registers_nothing(browse, viewer, run):
    assert browse(viewer).post(address(run)).status_code == 403
    assert laid_out() == []


def test_removing_the_model_removes_its_folder_but_not_one_that_a_pair_uses(
    member, run, project, django_capture_on_commit_callbacks
):
    model = checkpoints.register_output(run, actor=member)
    folder = Path(model.path)
    pair = make_pair(project, "uses it", student=model)
    with pytest.raises(BadInput, match="part of a pair"):
        checkpoints.delete(model, actor=member)
    assert folder.exists()
    pair.delete()
    with django_capture_on_commit_callbacks(execute=True):
        checkpoints.delete(model, actor=member)
    assert not folder.exists()


def test_the_models_page_names_the_run(browse, viewer, member, run):
    model = checkpoints.register_output(run, actor=member)
    client = browse(viewer)
    assert "Output of a run: sums, first" in client.get(reverse("models")).content.decode()
    page = client.get(reverse("model", args=[model.public_id])).content.decode()
    assert reverse("run", args=[run.public_id]) in page
    assert model.path not in page


def test_a_reinforced_model_says_what_it_was_made_from_and_can_teach_it(
    browse, member, run, project
):
    document = RECIPE | {"stages": [{"kind": "reinforce", "steps": 3}]}
    run.recipe = make_recipe(project, "Reinforced", document=document)
    run.save()
    student, model = run.pair.student, checkpoints.register_output(run, actor=member)
    assert lineage.descent(student) is None
    page = browse(member).get(reverse("model", args=[model.public_id])).content.decode()
    assert reverse("model", args=[student.public_id]) in page
    assert "by reinforce" in page
    ModelRoot.objects.create(project=project, path=str(STUDENT.parent))
    student.path, student.card = str(STUDENT), model.card
    student.save()
    pair = pairs.create(
        "back", project=project, actor=member, student=student, teachers=[TeacherChoice(model)]
    )
    assert lineage.relation(pair) == "descendant"
    assert DiagnosisForm(pair)["relation"].value() == "descendant"
    other_way = make_pair(project, "other way", student=model)
    other_way.teachers.update(model=student)
    assert lineage.relation(other_way) == "ancestor"
    assert lineage.relation(make_pair(project, "strangers")) == "unknown"
