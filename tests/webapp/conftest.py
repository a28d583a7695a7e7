"""Settings and people of the web's tests: no broker, plain HTTP."""

import pytest
from django.test import Client

from webapp.models import Membership, Project, Role, User


@pytest.fixture(autouse=True)
def web_settings(settings, state_of_its_own):
    settings.SECURE_SSL_REDIRECT = False
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }


@pytest.fixture(autouse=True)
def wake_ups(monkeypatch):
    """Task names that were sent: the broker is the outer edge."""
    sent: list[str] = []
    monkeypatch.setattr(
        "webapp.celery.app.send_task", lambda name, *args, **options: sent.append(name)
    )
    return sent


@pytest.fixture
def project(db):
    return Project.objects.create(name="Distillery", slug="distillery")


def make_user(project: Project | None, role: str, *, name: str = "") -> User:
    user = User.objects.create_user(name or role, password="a long enough one")
    if project is not None:
        Membership.objects.create(project=project, user=user, role=role)
    return user


@pytest.fixture
def viewer(project):
    return make_user(project, Role.VIEWER)


@pytest.fixture
def member(project):
    return make_user(project, Role.MEMBER)


@pytest.fixture
def maintainer(project):
    return make_user(project, Role.MAINTAINER)


@pytest.fixture
def admin(project):
    return make_user(project, Role.ADMIN)


@pytest.fixture
def stranger(db):
    return make_user(None, Role.VIEWER, name="stranger")


@pytest.fixture
def browse():
    """A client that is logged in as the user."""

    def client_of(user: User) -> Client:
        client = Client()
        client.force_login(user)
        return client

    return client_of
