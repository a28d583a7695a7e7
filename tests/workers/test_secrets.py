"""Secrets of a run: in its job's environment, and nowhere that it leaves anything."""

import json
from pathlib import Path

import pytest

from tests.workers.conftest import make_told
from tests.workers.rows import make_project, make_user
from webapp.models import Artifact, ProjectSecret
from webapp.services import project_secrets, run_files
from workers import leases
from workers.execute import execute
from workers.job_folder import folder
from workers.redaction import Redaction

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("emitting")]
TOKEN = 'hf_"quoted"AbCdEfGhIjKl'


def run_with_secret(host, told):
    project = make_project()
    maintainer = make_user(project=project, role="maintainer")
    project_secrets.put(project, "HF_TOKEN", TOKEN, actor=maintainer)
    run = make_told(told)
    execute(leases.claim(host()))
    run.refresh_from_db()
    return run


def test_a_job_has_its_projects_secrets_in_its_environment_and_no_others(host):
    other = make_project("other")
    maintainer = make_user("bob", project=other, role="maintainer")
    project_secrets.put(other, "WANDB_API_KEY", "somebody-elses-key", actor=maintainer)
    run = run_with_secret(host, {"steps": 1})
    assert run.status == "succeeded"
    seen = json.loads((folder(run) / "environment.json").read_text())
    assert seen["HF_TOKEN"] == TOKEN
    assert "WANDB_API_KEY" not in seen


@pytest.mark.parametrize("told", [{}, {"exit": 1}])
def test_what_a_job_says_of_a_secret_is_kept_without_it(host, told):
    run = run_with_secret(host, {"steps": 1, "blab": ["HF_TOKEN"], **told})
    said = "".join(run.events.values_list("payload", flat=True))
    assert "The token is [HF_TOKEN]." in said
    assert "[HF_TOKEN] is no event" in said
    assert "401 for [HF_TOKEN]" in run_files.log_tail(run)
    assert Artifact.objects.filter(run=run, kind="log").exists()
    left = [path for path in folder(run).rglob("*") if path.name != "environment.json"]
    for path in left:
        assert not path.is_file() or b"AbCdEfGhIjKl" not in path.read_bytes(), path
    assert "AbCdEfGhIjKl" not in json.dumps([run.error, run.snapshot, run.resources])
    assert "AbCdEfGhIjKl" not in said


def test_a_run_whose_secret_was_sealed_with_a_lost_key_fails_with_a_reason(host):
    project = make_project()
    ProjectSecret.objects.create(
        project=project, name="HF_TOKEN", sealed="gAAAAA", set_at="2026-01-01T00:00Z"
    )
    run = make_told({"steps": 1})
    execute(leases.claim(host()))
    run.refresh_from_db()
    assert (run.status, run.error["code"]) == ("failed", "secret.unreadable")


def test_a_secret_that_holds_another_is_replaced_first():
    redaction = Redaction({"A_KEY": "abcdefgh", "B_KEY": "abcdefghijkl"})
    assert redaction.clean(b"abcdefghijkl abcdefgh") == b"[B_KEY] [A_KEY]"


def test_a_file_without_secrets_is_not_written_anew(tmp_path):
    log = Path(tmp_path / "x.log")
    log.write_bytes(b"nothing\nhere\n")
    before = log.stat().st_ino
    Redaction({"A_KEY": "abcdefgh"}).clean_file(log)
    assert log.stat().st_ino == before
