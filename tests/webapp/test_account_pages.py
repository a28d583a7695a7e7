"""Log-in, its limit, tokens, members."""

import pytest
from django.urls import reverse

from tests.webapp.conftest import make_user
from webapp.models import ApiToken, AuditEntry, Membership, Project
from webapp.services import accounts


def log_in(client, password, *, name="member"):
    return client.post(reverse("login"), {"username": name, "password": password})


def test_a_right_password_logs_in(client, member):
    assert log_in(client, "a long enough one").headers["Location"] == "/"


def test_after_five_failures_even_the_right_password_waits(client, member):
    for _ in range(5):
        log_in(client, "wrong")
    page = log_in(client, "a long enough one").content.decode()
    assert "Too many failed attempts" in page


def test_failures_of_one_name_do_not_block_another(client, member, viewer):
    for _ in range(5):
        log_in(client, "wrong")
    assert log_in(client, "a long enough one", name="viewer").status_code == 302


def test_nobody_signs_up_from_outside(client, db):
    assert client.get("/sign-up/").status_code == 404


def test_a_token_is_shown_once_and_kept_hashed(member, browse):
    page = browse(member).post(reverse("account"), {"name": "CI"}).content.decode()
    token = ApiToken.objects.get()
    assert token.prefix in page
    secret = next(word for word in page.replace("<", " ").replace(">", " ").split()
                  if word.startswith(token.prefix) and len(word) > 20)  # fmt: skip
    assert accounts.user_of_token(secret) == member
    assert secret not in browse(member).get(reverse("account")).content.decode()


def test_anothers_token_is_not_deleted(member, viewer, browse):
    token, _ = accounts.create_token("CI", actor=viewer)
    assert browse(member).post(reverse("token-delete", args=[token.pk])).status_code == 404
    assert ApiToken.objects.exists()


def test_an_expired_or_altered_token_is_nobodys(member):
    _, secret = accounts.create_token("CI", actor=member)
    assert accounts.user_of_token(secret + "x") is None
    ApiToken.objects.update(expires_at="2020-01-01T00:00:00Z")
    assert accounts.user_of_token(secret) is None


def test_an_admin_sets_roles_and_it_is_logged(project, admin, browse):
    newcomer = make_user(None, "viewer", name="new")
    browse(admin).post(reverse("members"), {"user": "new", "role": "member"})
    assert Membership.objects.get(user=newcomer).role == "member"
    assert AuditEntry.objects.get(verb="set_role").detail == {"user": "new", "role": "member"}


def test_a_maintainer_sets_no_roles(maintainer, browse):
    form = {"user": "maintainer", "role": "admin"}
    assert browse(maintainer).post(reverse("members"), form).status_code == 403


def test_the_last_admin_stays(project, admin, browse):
    page = browse(admin).post(reverse("member-remove", args=["admin"]), follow=True)
    assert "only admin" in page.content.decode()
    assert Membership.objects.filter(user=admin).exists()


def test_the_switcher_chooses_only_a_visible_project(project, member, browse):
    other = Project.objects.create(name="Other", slug="other")
    client = browse(member)
    client.get("/", {"project": other.public_id})
    assert "Distillery" in client.get(reverse("pairs")).content.decode()
    Membership.objects.create(project=other, user=member, role="viewer")
    client.get("/", {"project": other.public_id})
    assert client.session["project"] == other.public_id


@pytest.mark.parametrize("name", ["account", "password", "members", "audit"])
def test_account_pages_need_a_log_in(name, client, db):
    assert client.get(reverse(name)).status_code == 302
