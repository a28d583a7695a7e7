"""A project's secrets: who may set them, what is shown of them, how they lie in the database."""

import pytest
from django.core.management import call_command
from django.test import Client

from tests.webapp.callers import errors_of, post, with_token
from webapp import sealing
from webapp.models import AuditEntry, Project, ProjectSecret
from webapp.services import project_secrets

TOKEN = "hf_AbCdEfGhIjKlMnOpQrSt"
API = "/api/secrets"


@pytest.fixture
def secret(project, maintainer):
    return project_secrets.put(project, "HF_TOKEN", TOKEN, actor=maintainer)


def test_a_secret_is_sealed_and_only_its_end_is_kept_in_the_open(secret, project):
    assert TOKEN not in secret.sealed
    assert secret.last_four == "QrSt"
    assert sealing.unseal(secret.sealed) == TOKEN
    assert project_secrets.environment(project.pk) == {"HF_TOKEN": TOKEN}


def test_of_a_short_secret_nothing_is_shown(project, maintainer):
    assert project_secrets.put(project, "A_KEY", "12345678", actor=maintainer).last_four == ""


def test_replacing_deleting_and_who_did_it_are_in_the_audit_log(secret, project, admin):
    project_secrets.put(project, "HF_TOKEN", "hf_another_token_of_mine", actor=admin)
    again = ProjectSecret.objects.get()
    assert (again.pk, again.set_by, again.last_four) == (secret.pk, admin, "mine")
    project_secrets.delete(again, actor=admin)
    entries = AuditEntry.objects.order_by("id").values_list("verb", "actor__username", "detail")
    assert list(entries) == [
        ("set_secret", "maintainer", {"name": "HF_TOKEN"}),
        ("replace_secret", "admin", {"name": "HF_TOKEN"}),
        ("delete_secret", "admin", {"name": "HF_TOKEN"}),
    ]


def test_the_page_shows_names_and_ends_and_no_value(secret, viewer, browse):
    text = browse(viewer).get("/secrets/").content.decode()
    assert "HF_TOKEN" in text
    assert "QrSt" in text
    assert TOKEN not in text
    assert "Set the secret" not in text


def test_a_maintainer_sets_replaces_and_forgets_on_the_page(project, maintainer, browse):
    client = browse(maintainer)
    sent = client.post("/secrets/", {"name": "HF_TOKEN", "value": TOKEN}, follow=True)
    text = sent.content.decode()
    assert "HF_TOKEN is set" in text
    assert TOKEN not in text
    public_id = ProjectSecret.objects.get().public_id
    client.post(f"/secrets/{public_id}/delete/")
    assert not ProjectSecret.objects.exists()


def test_a_refused_form_does_not_give_the_value_back(project, maintainer, browse):
    answer = browse(maintainer).post("/secrets/", {"name": "LD_PRELOAD", "value": TOKEN})
    assert answer.status_code == 422
    assert "is no name for a secret" in answer.content.decode()
    assert TOKEN not in answer.content.decode()


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "PATH", "hf_token", "STILLROOM_API_KEY", "_TOKEN", "A B_KEY", "X_KEY\n1"]
)
def test_a_name_that_could_steer_a_process_is_refused(project, maintainer, name):
    body = {"name": name, "value": TOKEN}
    client = with_token(maintainer)
    answer = client.put(API, body, content_type="application/json")
    assert errors_of(answer, 422)[0]["field"] == "name"
    assert not ProjectSecret.objects.exists()


@pytest.mark.parametrize("value", ["short", "two\nlines of it", "x" * 4097])
def test_a_value_that_is_no_secret_is_refused(project, maintainer, value):
    answer = with_token(maintainer).put(
        API, {"name": "A_KEY", "value": value}, content_type="application/json"
    )
    error = errors_of(answer, 422)[0]
    assert error["field"] == "value"
    assert value not in str(error)


def test_members_and_viewers_may_not_and_strangers_see_nothing(
    secret, viewer, member, stranger, browse
):
    body = {"name": "A_KEY", "value": TOKEN}
    for user in (viewer, member):
        assert browse(user).post("/secrets/", body).status_code == 403
        assert browse(user).post(f"/secrets/{secret.public_id}/delete/").status_code == 403
        refused = with_token(user).put(API, body, content_type="application/json")
        errors_of(refused, 403)
        errors_of(with_token(user).delete(f"{API}/{secret.public_id}"), 403)
    assert browse(stranger).get("/secrets/").status_code == 404
    assert browse(stranger).post(f"/secrets/{secret.public_id}/delete/").status_code == 404
    assert with_token(stranger).get(API).json()["items"] == []
    errors_of(with_token(stranger).delete(f"{API}/{secret.public_id}"), 404)
    assert Client().get("/secrets/").status_code == 302
    assert ProjectSecret.objects.count() == 1


def test_other_methods_are_refused(secret, maintainer, browse):
    assert browse(maintainer).delete("/secrets/").status_code == 405
    assert browse(maintainer).get(f"/secrets/{secret.public_id}/delete/").status_code == 405
    errors_of(post(with_token(maintainer), API), 405)


def test_the_api_lists_sets_and_forgets(project, maintainer):
    client = with_token(maintainer)
    made = client.put(API, {"name": "HF_TOKEN", "value": TOKEN}, content_type="application/json")
    assert (made.status_code, made.json()["last_four"]) == (200, "QrSt")
    listed = client.get(API)
    assert [row["set_by"] for row in listed.json()["items"]] == ["maintainer"]
    assert TOKEN not in listed.content.decode()
    assert client.delete(f"{API}/{made.json()['public_id']}").status_code == 204
    assert not ProjectSecret.objects.exists()


def test_another_projects_secret_stays_there(secret):
    other = Project.objects.create(name="Other", slug="other")
    assert project_secrets.environment(other.pk) == {}


def test_a_new_key_reads_what_the_former_sealed_until_all_is_sealed_anew(secret, settings, capsys):
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "a new key of many characters, quite unlike the former one"
    assert sealing.unseal(secret.sealed) == TOKEN
    call_command("reseal")
    assert "1 secrets and 0 keys" in capsys.readouterr().out
    settings.SECRET_KEY_FALLBACKS = []
    secret.refresh_from_db()
    assert sealing.unseal(secret.sealed) == TOKEN
