"""Who may call the API, and how every refusal looks."""

import json
from pathlib import Path

import pytest
from django.test import Client

from tests.webapp.callers import errors_of, post, with_token
from tests.webapp.rows import make_pair, make_prompt_set, make_recipe, make_run
from webapp.models import ApiToken, Project, Run

RUNS = "/api/runs"
SNAPSHOT = Path(__file__).resolve().parents[2] / "docs" / "schema" / "openapi.json"


def launch_body(project):
    rows = {"pair": make_pair(project), "recipe": make_recipe(project)}
    rows["train"], rows["held_out"] = make_prompt_set(project), make_prompt_set(project, "held out")
    return {name: row.public_id for name, row in rows.items()}


def test_a_token_speaks_for_its_user(project, member):
    run = make_run(project)
    answer = with_token(member).get(RUNS)
    assert [row["public_id"] for row in answer.json()["items"]] == [run.public_id]
    assert ApiToken.objects.get().last_used_at is not None


@pytest.mark.parametrize("header", ["Bearer still_wrong", "Bearer ", "Bearer", "Basic abc"])
def test_a_wrong_token_is_refused(project, header):
    answer = Client(headers={"Authorization": header}).get(RUNS)
    assert errors_of(answer, 401)[0]["code"] == "api.unauthorized"
    assert answer["WWW-Authenticate"] == "Bearer"


def test_a_wrong_token_is_refused_whatever_session_comes_with_it(project, member, browse):
    answer = browse(member).get(RUNS, headers={"Authorization": "Bearer still_wrong"})
    assert "expired" in errors_of(answer, 401)[0]["message"]


@pytest.mark.parametrize("method", ["get", "post"])
def test_nobody_is_refused_in_json_and_not_redirected(project, method):
    assert errors_of(getattr(Client(), method)(RUNS), 401)


def test_a_deactivated_users_token_is_refused(project, member):
    client = with_token(member)
    member.is_active = False
    member.save()
    assert errors_of(client.get(RUNS), 401)


def test_a_session_reads(project, member, browse):
    make_run(project)
    assert len(browse(member).get(RUNS).json()["items"]) == 1


def test_a_session_can_name_a_project(project, member, browse):
    make_run(project)
    answer = browse(member).get(RUNS, {"project": project.public_id})
    assert len(answer.json()["items"]) == 1


def test_a_session_writes_only_with_its_csrf_token(project, member):
    client = Client(enforce_csrf_checks=True)
    client.force_login(member)
    run = make_run(project)
    path = f"{RUNS}/{run.public_id}/cancel"
    refused = client.post(path)
    assert "X-CSRFToken" in errors_of(refused, 403)[0]["remedy"]
    run.refresh_from_db()
    assert run.status == "queued"
    client.cookies["csrftoken"] = "a" * 32
    assert client.post(path, headers={"X-CSRFToken": "a" * 32}).status_code == 200


def test_a_token_needs_no_csrf_token(project, member):
    client = with_token(member)
    client.handler.enforce_csrf_checks = True
    assert client.post(f"{RUNS}/{make_run(project).public_id}/cancel").status_code == 200


def test_a_viewer_reads_and_may_not_launch(project, viewer):
    client = with_token(viewer)
    error = errors_of(post(client, RUNS, launch_body(project)), 403)[0]
    assert error["code"] == "api.role"
    assert "role Member" in error["message"]
    assert error["remedy"] == "Ask one of its admins."
    assert not Run.objects.exists()
    assert client.get(RUNS).status_code == 200


def test_a_viewer_changes_nothing(project, viewer):
    client, run = with_token(viewer), make_run(project, status="failed")
    for verb in ("cancel", "resume", "clone", "replay"):
        errors_of(post(client, f"{RUNS}/{run.public_id}/{verb}"), 403)
    for noun, body in {
        "models": {"source": {"kind": "hub", "repo": "a/b", "revision": "main"}},
        "pairs": {
            "name": "p",
            "student": run.pair.student.public_id,
            "teachers": [{"model": run.pair.student.public_id}],
        },
        "prompt-sets": {"name": "p", "prompts": [{"prompt": "1 + 1 ="}]},
        "recipes": {"yaml": "name: Sums\nstages: [{kind: distill}]"},
    }.items():
        errors_of(post(client, f"/api/{noun}", body), 403)
    run.refresh_from_db()
    assert (run.status, Run.objects.count()) == ("failed", 1)


def test_what_is_in_another_project_is_absent(member):
    run = make_run(Project.objects.create(name="Other", slug="other"))
    client = with_token(member)
    hidden = {
        "runs": run,
        "models": run.pair.student,
        "pairs": run.pair,
        "prompt-sets": run.train_set,
        "recipes": run.recipe,
    }
    for noun, row in hidden.items():
        errors_of(client.get(f"/api/{noun}/{row.public_id}"), 404)
        assert client.get(f"/api/{noun}").json()["items"] == []
    for inner in ("series", "events", "artifacts", "artifacts/1"):
        errors_of(client.get(f"{RUNS}/{run.public_id}/{inner}"), 404)
    for verb in ("cancel", "resume", "clone", "replay"):
        errors_of(post(client, f"{RUNS}/{run.public_id}/{verb}"), 404)
    for inner in ("prompts",):
        errors_of(client.get(f"/api/prompt-sets/{run.train_set.public_id}/{inner}"), 404)
    errors_of(client.get(f"/api/recipes/{run.recipe.public_id}/yaml"), 404)


def test_a_launch_of_parts_that_are_hidden_names_the_field(project, member):
    other = Project.objects.create(name="Other", slug="other")
    body = {**launch_body(project), "recipe": make_recipe(other).public_id}
    assert errors_of(post(with_token(member), RUNS, body), 422)[0]["field"] == "recipe"
    assert not Run.objects.exists()


def test_another_method_is_refused_with_those_that_are_allowed(project, member):
    answer = with_token(member).delete(RUNS)
    assert errors_of(answer, 405)[0]["code"] == "api.method_not_allowed"
    assert set(answer["Allow"].split(", ")) == {"GET", "POST"}


def test_another_address_is_absent_in_json(project, member):
    assert "/api/runz" in errors_of(with_token(member).get("/api/runz"), 404)[0]["message"]
    errors_of(Client().get("/api/"), 404)


def test_a_body_that_is_no_json_is_refused(project, member):
    answer = with_token(member).post(RUNS, "{", content_type="application/json")
    assert errors_of(answer, 400)[0]["code"] == "api.bad_request"


def test_each_unsound_field_is_named_with_its_remedy(project, member):
    body = {"pair": 3, "nmae": "x", "resources": {"train": {"threads": 0}}}
    found = errors_of(post(with_token(member), RUNS, body), 422)
    by_field = {one["field"]: one for one in found}
    assert set(by_field) == {"pair", "recipe", "train", "nmae", "resources.train.threads"}
    assert by_field["resources.train.threads"]["remedy"] == "Give at least 1."
    assert by_field["recipe"]["message"] == "It is missing."


def test_an_unsound_parameter_is_named(project, member):
    run = make_run(project)
    answer = with_token(member).get(f"{RUNS}/{run.public_id}/series?points=0")
    error = errors_of(answer, 422)[0]
    assert (error["field"], error["remedy"]) == ("points", "Give at least 1.")


def test_projects_come_with_the_callers_role(project, member):
    Project.objects.create(name="Other", slug="other")
    assert with_token(member).get("/api/projects").json() == [
        {"public_id": project.public_id, "name": "Distillery", "role": "member"}
    ]


def test_somebody_in_two_projects_names_one(project, admin):
    admin.is_superuser = True
    admin.save()
    other = Project.objects.create(name="Other", slug="other")
    client, body = with_token(admin), {"yaml": "name: Sums\nstages: [{kind: distill}]"}
    assert errors_of(post(client, "/api/recipes", body), 422)[0]["field"] == "project"
    made = post(client, "/api/recipes", {**body, "project": other.public_id})
    assert made.status_code == 201
    assert len(client.get("/api/recipes", {"project": project.public_id}).json()["items"]) == 0
    assert len(client.get("/api/recipes", {"project": other.public_id}).json()["items"]) == 1


def test_the_openapi_document_is_the_snapshot_and_open_to_everybody(db):
    document = json.loads(Client().get("/api/openapi.json").content)
    assert document == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_every_operation_is_documented_and_names_its_refusals(db):
    document = json.loads(Client().get("/api/openapi.json").content)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["description"], path
            assert "401" in operation["responses"], path


def test_the_page_of_the_documentation_shows_every_operation(project, viewer, browse):
    page = browse(viewer).get("/api/docs")
    document = json.loads(Client().get("/api/openapi.json").content)
    text = page.content.decode()
    assert page.status_code == 200
    assert all(path in text for path in document["paths"])
    assert 'id="RunReply"' in text
    assert "https://" not in text
    assert "<script>" not in text


def test_the_page_of_the_documentation_asks_for_a_log_in(db):
    assert Client().get("/api/docs")["Location"].startswith("/log-in/")


def test_the_page_of_the_documentation_leaves_query_documents_to_their_operations(
    project, viewer, browse
):
    text = browse(viewer).get("/api/docs").content.decode()
    assert 'id="PromptSetReply"' in text
    assert 'id="ListQuery"' not in text
    assert "<code>Authorization: Bearer TOKEN</code>" in text


@pytest.mark.parametrize("path", ["runs?text=" + "x" * 121, "prompt-sets/upload"])
def test_a_fields_path_does_not_say_how_we_read_it(project, member, path):
    client = with_token(member)
    answer = client.get(f"/api/{path}") if "?" in path else client.post(f"/api/{path}", {})
    assert errors_of(answer, 422)[0]["field"] in {"text", "file"}
