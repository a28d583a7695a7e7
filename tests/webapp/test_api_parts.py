"""What runs are made of, over the API: models, pairs, prompt sets, recipes."""

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from tests.webapp.callers import errors_of, post, with_token
from tests.webapp.rows import RECIPE, make_model, make_pair, make_recipe
from webapp.models import AuditEntry, Pair, PromptSet, Recipe, RegisteredModel


@pytest.fixture
def client(member):
    return with_token(member)


def test_a_hub_model_is_registered(project, member, client):
    source = {"kind": "hub", "repo": "Qwen/Qwen3-0.6B-Base", "revision": "abc"}
    answer = post(client, "/api/models", {"source": source})
    assert answer.status_code == 201, answer.content
    model = RegisteredModel.objects.get()
    assert (model.repo, model.revision, model.created_by) == (source["repo"], "abc", member)
    told = client.get(f"/api/models/{model.public_id}").json()
    assert (told["name"], told["state"], told["card"]) == (source["repo"], "registered", None)
    taken = post(client, "/api/models", {"source": source})
    assert errors_of(taken, 409)[0]["code"] == "model.name_taken"


def test_a_folder_outside_the_roots_is_refused(project, client):
    answer = post(client, "/api/models", {"source": {"kind": "local", "path": "/etc"}})
    assert errors_of(answer, 422)[0]["code"] == "model.outside_roots"
    assert not RegisteredModel.objects.exists()


def test_a_pair_is_made_of_registered_models(project, client):
    hub = {"source_kind": "hub", "path": "", "repo": "a/b", "revision": "main"}
    student, teacher = make_model(project, "s", **hub), make_model(project, "t", **hub)
    teachers = [{"model": teacher.public_id, "weight": 2, "tags": ["sums"]}]
    body = {"name": "Both", "student": student.public_id, "teachers": teachers}
    answer = post(client, "/api/pairs", body)
    assert answer.status_code == 201, answer.content
    pair = Pair.objects.get()
    assert pair.teachers.get().tags == ["sums"]
    told = client.get(f"/api/pairs/{pair.public_id}").json()
    assert told["student"] == {"public_id": student.public_id, "name": "s"}
    assert told["teachers"][0]["weight"] == 2
    assert told["teachers"][0]["rendering"]["chat_template"] == "auto"
    assert errors_of(post(client, "/api/pairs", body), 409)[0]["field"] == "name"


def test_a_teacher_that_is_not_there_is_named(project, client):
    student = make_model(project)
    body = {"name": "p", "student": student.public_id, "teachers": [{"model": "nope"}]}
    assert errors_of(post(client, "/api/pairs", body), 422)[0]["field"] == "teachers.0.model"


def test_pairs_are_listed_in_few_queries(project, client, django_assert_max_num_queries):
    for number in range(4):
        make_pair(project, f"pair {number}")
    client.get("/api/pairs")
    with django_assert_max_num_queries(4):
        names = [row["name"] for row in client.get("/api/pairs").json()["items"]]
    assert names == ["pair 3", "pair 2", "pair 1", "pair 0"]


def test_lists_go_on_after_a_page(project, client, monkeypatch):
    monkeypatch.setattr("webapp.api.scope.ROWS", 2)
    for number in range(3):
        make_model(project, f"model {number}")
    first = client.get("/api/models").json()
    second = client.get("/api/models", {"after": first["next"]}).json()
    assert [row["name"] for row in first["items"]] == ["model 2", "model 1"]
    assert [row["name"] for row in second["items"]] == ["model 0"]
    assert second["next"] is None


def test_prompts_become_a_prompt_set(project, client):
    prompts = [{"prompt": "1 + 1 =", "answer": "2"}, {"prompt": "2 + 2 =", "tags": ["even"]}]
    answer = post(client, "/api/prompt-sets", {"name": "Sums", "prompts": prompts})
    assert answer.status_code == 201, answer.content
    row = PromptSet.objects.get()
    assert (row.rows, row.version, row.state) == (2, 1, "ready")
    told = client.get(f"/api/prompt-sets/{row.public_id}").json()
    assert (told["sha256"], told["progress"]) == (row.sha256, 1.0)
    page = client.get(f"/api/prompt-sets/{row.public_id}/prompts", {"start": 1}).json()
    assert [one["prompt"] for one in page["items"]] == ["2 + 2 ="]
    assert page["rows"] == 2


def test_a_prompt_without_text_is_refused_at_its_place(project, client):
    body = {"name": "Sums", "prompts": [{"prompt": "1 + 1 ="}, {"answer": "2"}]}
    found = errors_of(post(client, "/api/prompt-sets", body), 422)
    assert found[0]["field"] == "prompts.1"
    assert not PromptSet.objects.exists()


def test_a_file_is_uploaded(project, client):
    file = SimpleUploadedFile("sums.csv", b"question,answer\n1 + 1 =,2\n")
    answer = client.post("/api/prompt-sets/upload", {"file": file, "name": "From CSV"})
    assert answer.status_code == 201, answer.content
    assert PromptSet.objects.get().name == "From CSV"
    assert answer.json()["rows"] == 1


def test_bad_rows_are_told_with_their_lines(project, client):
    file = SimpleUploadedFile("sums.jsonl", b'{"prompt": "1 + 1 ="}\n{"answer": "2"}\n{oops\n')
    found = errors_of(client.post("/api/prompt-sets/upload", {"file": file}), 422)
    assert [one["field"].split(",")[0] for one in found] == ["line 2", "line 3"]
    assert PromptSet.objects.get().state == "failed"


def test_an_upload_without_a_file_is_refused(project, client):
    assert errors_of(client.post("/api/prompt-sets/upload", {}), 422)[0]["field"] == "file"


def test_a_recipe_is_saved_from_json_and_from_yaml(project, member, client):
    answer = post(client, "/api/recipes", {"document": RECIPE})
    assert answer.status_code == 201, answer.content
    first = Recipe.objects.get()
    text = client.get(f"/api/recipes/{first.public_id}/yaml").content.decode()
    assert errors_of(post(client, "/api/recipes", {"yaml": text}), 409)[0]["code"] == (
        "recipe.unchanged"
    )
    changed = text.replace("steps: 3\n", "steps: 4\n")
    told = post(client, "/api/recipes", {"yaml": changed}).json()
    assert (told["name"], told["version"]) == ("Sums", 2)
    assert told["document"]["stages"][0]["steps"] == 4
    assert AuditEntry.objects.filter(actor=member, verb="create").count() == 2


def test_each_knob_at_fault_is_named(project, client):
    stage = {"kind": "distill", "steps": 0, "stepz": 3}
    body = {"document": {"name": "Sums", "stages": [stage]}}
    for path in ("/api/recipes", "/api/recipes/validate"):
        found = errors_of(post(client, path, body), 422)
        assert {one["field"] for one in found} == {"stages.0.steps", "stages.0.stepz"}
    assert not Recipe.objects.exists()


def test_a_fault_in_yaml_comes_with_its_line(project, client):
    body = {"yaml": "name: Sums\nstages:\n- kind: distill\n  steps: 0\n"}
    found = errors_of(post(client, "/api/recipes/validate", body), 422)
    assert found[0]["field"] == "stages.0.steps (line 4)"


def test_checking_a_recipe_fills_its_defaults_in_and_saves_nothing(project, viewer):
    body = {"document": {"name": "Sums", "stages": [{"kind": "distill", "steps": 3}]}}
    told = post(with_token(viewer), "/api/recipes/validate", body).json()
    assert told["document"] == RECIPE
    assert told["steps_by_stage"] == [3]
    assert not Recipe.objects.exists()


def test_either_json_or_yaml_is_given(project, client):
    for body in ({}, {"document": RECIPE, "yaml": "name: Sums"}):
        assert errors_of(post(client, "/api/recipes", body), 422)[0]["code"] == "recipe.one_text"


def test_the_list_shows_newest_versions_and_all_of_a_name(project, client):
    make_recipe(project)
    make_recipe(project, version=2)
    assert [row["version"] for row in client.get("/api/recipes").json()["items"]] == [2]
    every = client.get("/api/recipes", {"name": "Sums"}).json()["items"]
    assert [row["version"] for row in every] == [2, 1]


def test_the_schema_names_every_knob(project, client):
    assert "DistillStage" in client.get("/api/recipes/schema").json()["$defs"]
