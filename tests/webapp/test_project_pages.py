"""Projects are made, and people come in and go, by those who may decide it; each change is logged."""

import pytest
from django.core.exceptions import PermissionDenied
from django.urls import reverse

from tests.webapp.conftest import make_user
from webapp.models import AuditEntry, Membership, Project, Recipe, Role, User
from webapp.services import projects

NEW = reverse("project-new")
MEMBERS = reverse("members")
NEW_USER = reverse("user-new")


@pytest.fixture
def staff(project):
    user = make_user(project, Role.ADMIN, name="staff")
    user.is_staff = True
    user.save()
    return user


def test_an_admin_makes_a_project_and_is_in_it_at_once(browse, admin):
    client = browse(admin)
    page = client.post(NEW, {"name": "Second still"}, follow=True).content.decode()
    made = Project.objects.get(slug="second-still")
    assert Membership.objects.get(project=made).role == "admin"
    assert client.session["project"] == made.public_id
    assert "Second still is there" in page
    assert Recipe.objects.filter(project=made, is_preset=True).count() >= 4
    assert AuditEntry.objects.filter(project=made, verb="create", object_kind="Project").exists()


def test_staff_in_no_project_make_the_first_one(browse, db):
    user = make_user(None, "", name="operator")
    user.is_staff = True
    user.save()
    assert browse(user).get(NEW).status_code == 200
    browse(user).post(NEW, {"name": "First"})
    assert Project.objects.get().name == "First"


def test_a_project_without_a_name_is_not_made(browse, admin):
    assert browse(admin).post(NEW, {"name": " "}).status_code == 422
    assert Project.objects.count() == 1


@pytest.mark.parametrize("role", ["viewer", "member", "maintainer"])
def test_whoever_administers_nothing_makes_no_project(browse, project, role):
    user = make_user(project, role, name="somebody")
    assert browse(user).get(NEW).status_code == 403
    assert browse(user).post(NEW, {"name": "Mine"}).status_code == 403
    with pytest.raises(PermissionDenied, match="admin of another one"):
        projects.create("Mine", actor=user)
    assert "New project" not in browse(user).get(MEMBERS).content.decode()


def test_a_new_user_gets_a_password_that_is_shown_once(client, browse, project, staff):
    page = browse(staff).post(NEW_USER, {"username": "Ada", "role": "member"}).content.decode()
    password = page.split("<pre>")[1].split("</pre>")[0]
    assert client.login(username="Ada", password=password)
    assert Membership.objects.get(user__username="Ada").role == "member"
    assert password not in browse(staff).get(MEMBERS).content.decode()
    entry = AuditEntry.objects.get(verb="create_user")
    assert (entry.actor, entry.detail) == (staff, {"user": "Ada"})


def test_a_taken_name_is_refused_whatever_its_case(browse, staff):
    page = browse(staff).post(NEW_USER, {"username": "STAFF", "role": "viewer"}).content.decode()
    assert "already a user named" in page
    assert User.objects.count() == 1


def test_an_admin_who_is_not_staff_makes_no_users(browse, admin):
    form = {"username": "Ada", "role": "member"}
    assert browse(admin).post(NEW_USER, form).status_code == 403
    assert not User.objects.filter(username="Ada").exists()
    assert "Somebody without an account" not in browse(admin).get(MEMBERS).content.decode()


def test_staff_make_users_only_where_they_are_admins(project):
    user = make_user(project, Role.MEMBER, name="operator")
    user.is_staff = True
    with pytest.raises(PermissionDenied, match="role Admin"):
        projects.add_new_user(project, "Ada", role=Role.MEMBER, actor=user)


def test_somebody_who_is_taken_out_keeps_the_account(browse, admin, viewer):
    page = browse(admin).post(reverse("member-remove", args=["viewer"]), follow=True)
    assert "viewer is no longer in" in page.content.decode()
    assert User.objects.filter(username="viewer", is_active=True).exists()
    assert not Membership.objects.filter(user=viewer).exists()


@pytest.mark.parametrize("address", [NEW_USER, reverse("member-remove", args=["viewer"])])
def test_what_changes_people_wants_a_post_and_an_admin(browse, maintainer, viewer, address):
    assert browse(maintainer).get(address).status_code == 405
    assert browse(maintainer).post(address).status_code == 403
    assert browse(viewer).post(address).status_code == 403


def test_pages_of_people_need_a_log_in(client, db):
    for address in (NEW, MEMBERS):
        assert client.get(address).headers["Location"].startswith("/log-in/")
