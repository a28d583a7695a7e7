"""The lock is what pyproject.toml asks for, and asks nothing that a user's machine could not fulfil."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent


def pins(group):
    lines = (ROOT / "requirements" / f"{group}.lock").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_requirement_is_pinned_within_its_bounds():
    locked = pins("web") | pins("engine") | pins("dev")
    extras = project()["optional-dependencies"]
    for text in [*project()["dependencies"], *extras["engine"], *extras["dev"]]:
        requirement = Requirement(text)
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), text


def test_the_lock_is_the_environments_own_resolution():
    done = subprocess.run(
        [sys.executable, "scripts/lock", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_web_lock_has_no_torch():
    assert not set(pins("web")) & {"torch", "transformers", "safetensors"}


def test_torch_comes_first_and_without_a_build_tag():
    lines = (ROOT / "requirements" / "engine.lock").read_text().splitlines()
    assert re.fullmatch(r"torch==[\d.]+", lines[1])
    assert project()["optional-dependencies"]["engine"][0].startswith("torch>=2.6,<")


def test_redis_stays_below_8():
    assert int(pins("web")["redis"].split(".")[0]) < 8


def test_no_pin_stands_in_two_locks():
    web, engine, dev = (set(pins(group)) for group in ("web", "engine", "dev"))
    assert not web & engine
    assert not (web | engine) & dev
