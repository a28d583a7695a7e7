"""scripts/postgres: a server for one command, gone after it."""

import subprocess
from pathlib import Path

import pytest
from django.db import connection

ROOT = Path(__file__).resolve().parent.parent.parent


def leftovers():
    return set(Path("/tmp").glob("stillroom-pg.*"))


@pytest.mark.slow
def test_the_server_lives_as_long_as_its_command_and_passes_its_status_on():
    before = leftovers()
    done = subprocess.run(
        ["scripts/postgres", "sh", "-c", 'echo "$DATABASE_URL"; exit 3'],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stdout.startswith("postgres://stillroom@%2Ftmp%2Fstillroom-pg.")
    assert leftovers() <= before


@pytest.mark.postgres
@pytest.mark.django_db
def test_the_web_suite_runs_on_the_server_that_database_url_names():
    with connection.cursor() as cursor:
        cursor.execute("select version()")
        assert cursor.fetchone()[0].startswith("PostgreSQL")
