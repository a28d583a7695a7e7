"""What an installation starts from: safe by default, one secret key, migrations that fit."""

import os
import stat
import subprocess
import sys

from django.core.management import call_command

from webapp import secret_key
from webapp.settings import BASE_DIR


def test_the_secret_key_is_made_once_for_its_owner_alone(tmp_path):
    path = tmp_path / "state" / "secret_key"
    key = secret_key.load(path)
    assert len(key) > 60
    assert secret_key.load(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_deploy_check_is_clean_by_default(tmp_path):
    unset = {"STILLROOM_DEBUG", "STILLROOM_HTTPS", "DATABASE_URL"}
    environment = {name: text for name, text in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"],
        cwd=BASE_DIR,
        env={**environment, "STILLROOM_STATE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_models_are_the_migrations(db):
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_a_page_forbids_inline_script(client, db):
    policy = client.get("/log-in/").headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
