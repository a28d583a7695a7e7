"""Pages that refuse: they say what happened and what to do, and the switcher that leads to a project."""

import pytest
from django.test import Client
from django.urls import reverse

from webapp.models import Membership, Project, Role


def test_somebody_of_no_project_is_told_whom_to_ask(browse, stranger):
    answer = browse(stranger).get(reverse("runs"))
    assert answer.status_code == 404
    assert "ask an admin to add you" in answer.content.decode()


def test_a_wrong_address_does_not_name_pythons_classes(browse, member):
    text = browse(member).get("/no/such/page/").content.decode()
    assert "Check the address" in text
    assert "Resolver404" not in text


def test_a_missing_role_is_named(browse, viewer):
    answer = browse(viewer).get(reverse("pair-new"))
    assert answer.status_code == 403
    assert "you need the role Member there" in answer.content.decode()


def test_a_form_without_its_token_says_to_reload(member):
    client = Client(enforce_csrf_checks=True)
    client.force_login(member)
    answer = client.post(reverse("pair-check"))
    assert answer.status_code == 403
    assert "reload the page" in answer.content.decode()


def test_a_fault_of_ours_is_a_page_too(browse, member, project, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("webapp.views.projects.render", broken)
    client = browse(member)
    client.raise_request_exception = False
    answer = client.get(reverse("members"))
    assert answer.status_code == 500
    assert "Stillroom failed, not you" in answer.content.decode()


@pytest.mark.django_db
def test_the_switcher_leads_to_another_project(browse, member, project):
    other = Project.objects.create(name="Zymurgy", slug="zymurgy")
    Membership.objects.create(project=other, user=member, role=Role.VIEWER)
    client = browse(member)
    link = f"{reverse('home')}?project={other.public_id}"
    assert link in client.get(reverse("runs")).content.decode()
    assert client.get(link, follow=True).context["project"] == other
