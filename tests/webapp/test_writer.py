"""A cold start's writer: asked for, launched, told, carried on, and kept while a run names it."""

import pytest

from opdcore.contract.errors import BadInput
from opdcore.contract.recipe import Recipe as RecipeDocument
from tests.webapp.callers import errors_of, post, with_token
from tests.webapp.rows import make_model, make_pair, make_recipe
from tests.webapp.test_selections import stored
from webapp.models import Project, Run
from webapp.services import checkpoints, run_documents, runs
from webapp.services.asked_parts import AskedParts
from webapp.services.run_documents import LocalFiles


@pytest.fixture
def parts(project):
    stages = [{"kind": "cold_start", "source": "writer"}, {"kind": "distill", "steps": 3}]
    document = RecipeDocument.model_validate({"name": "Written", "stages": stages})
    return {
        "pair": make_pair(project, "A pair"),
        "train": stored(project, "train"),
        "held_out": stored(project, "held out"),
        "recipe": make_recipe(project, "Written", document=document.model_dump(mode="json")),
    }


@pytest.fixture
def writer(project):
    return make_model(project, "notary")


def form_of(parts, **changes):
    chosen = {name: part.public_id for name, part in parts.items()}
    return chosen | {"device": "", "threads": "", "name": ""} | changes


def test_the_form_asks_for_a_writer_only_where_a_cold_start_learns_from_one(
    project, parts, writer, member, browse
):
    for recipe, asked in ((parts["recipe"], True), (make_recipe(project, "Plain"), False)):
        answer = browse(member).get("/runs/new/knobs/", {"recipe": recipe.public_id})
        assert (b'name="writer"' in answer.content) is asked
        assert (b"notary" in answer.content) is asked


def test_a_launch_takes_the_writer_into_row_snapshot_job_and_copies(parts, writer, member, browse):
    browse(member).post("/runs/new/", form_of(parts, writer=writer.public_id))
    run = Run.objects.get()
    assert (run.writer, run.snapshot["writer"]["name"]) == (writer, "notary")
    run.attempt = 1
    job = run_documents.job_document(run, LocalFiles(train="t.jsonl"))
    assert job.writer.model.path == writer.path
    assert runs.clone(run, actor=member).writer == writer
    told = browse(member).get(f"/runs/{run.public_id}/details/").content.decode()
    assert "notary" in told
    again = browse(member).get(f"/runs/new/?parent={run.public_id}").content.decode()
    assert f'value="{writer.public_id}" selected' in again


def test_a_launch_without_one_is_refused_at_its_field(parts, member, browse):
    answer = browse(member).post("/runs/new/", form_of(parts, writer=""))
    assert answer.status_code == 422
    checked = browse(member).post("/runs/new/check/", form_of(parts, writer="")).content.decode()
    at_field = checked.partition('id="error-writer"')[2].partition("</div>")[0]
    assert "Choose the model that writes" in at_field
    assert not Run.objects.exists()


def test_the_api_launches_with_a_writer_and_refuses_a_strangers(parts, writer, member):
    body = {name: part.public_id for name, part in parts.items()}
    outside = make_model(Project.objects.create(name="Elsewhere"), "theirs")
    (fault,) = errors_of(
        post(with_token(member), "/api/runs", body | {"writer": outside.public_id}), 422
    )
    assert fault["field"] == "writer"
    told = post(with_token(member), "/api/runs", body | {"writer": writer.public_id}).json()
    assert told["writer"] == {"public_id": writer.public_id, "name": "notary"}


def test_a_child_of_another_recipe_leaves_the_writer_behind(parts, writer, project):
    asked = AskedParts(writer=writer)
    assert asked.for_recipe(parts["recipe"].contract) == asked
    assert asked.for_recipe(make_recipe(project, "Plain").contract) == AskedParts()


def test_a_model_that_a_run_learned_from_is_not_deleted(parts, writer, project, member, maintainer):
    runs.launch(actor=member, project=project, **parts, asked=AskedParts(writer=writer))
    with pytest.raises(BadInput) as refused:
        checkpoints.delete(writer, actor=maintainer)
    assert refused.value.info.code == "model.in_use"
