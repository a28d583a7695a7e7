"""docker-compose.yml without a Docker engine: its parts agree with each other and with the code."""

import importlib
from pathlib import Path

import pytest
import yaml
from django.core.management import get_commands

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]


def dockerfile(service):
    return (ROOT / SERVICES[service]["build"]["dockerfile"]).read_text()


def test_it_has_the_four_services():
    assert {"postgres", "redis", "web", "worker"} <= set(SERVICES)


@pytest.mark.parametrize("service", ["web", "worker", "migrate"])
def test_a_service_of_ours_names_its_database_and_broker(service):
    environment = SERVICES[service]["environment"]
    assert environment["DATABASE_URL"].endswith("@postgres:5432/stillroom")
    assert environment["REDIS_URL"].startswith("redis://redis:6379/")


@pytest.mark.parametrize("service", ["postgres", "redis", "web", "worker"])
def test_a_service_that_stays_up_has_a_health_check(service):
    assert SERVICES[service]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


def test_every_volume_and_dependency_is_declared():
    for service in SERVICES.values():
        named = {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert named <= set(COMPOSE["volumes"])
        assert set(service.get("depends_on", {})) <= set(SERVICES)


def test_every_variable_of_ours_is_read_by_the_settings():
    settings = (ROOT / "webapp" / "settings.py").read_text()
    for name in SERVICES["web"]["environment"]:
        assert f'"{name}"' in settings, name


def test_the_web_image_installs_no_torch():
    assert "engine.lock" not in dockerfile("web")
    assert "requirements/engine.lock" in dockerfile("worker")


def test_every_file_that_an_image_copies_is_let_through():
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    assert {
        "requirements",
        "manage.py",
        "webapp",
        "workers",
        "opdcore",
        "templates",
        "static",
    } <= allowed


def test_the_programs_that_the_images_start_exist():
    assert '"webapp.asgi:application"' in dockerfile("web")
    assert importlib.import_module("webapp.asgi").application is not None
    assert '"manage.py", "worker"' in dockerfile("worker")
    assert get_commands()["worker"] == "workers"
    assert importlib.import_module("webapp.celery").app.main == "stillroom"
