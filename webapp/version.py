"""Which code this is: the package's version, and the commit where it runs from a checkout."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from django.conf import settings


@cache
def code_version() -> str:
    """Such as `0.1.0 (1a2b3c4d5e6f)`; a run's snapshot keeps it."""
    commit = _commit()
    return f"{_package()} ({commit})" if commit else _package()


def _package() -> str:
    try:
        return version("stillroom")
    except PackageNotFoundError:
        return "unpackaged"


def _commit() -> str | None:
    if not (settings.BASE_DIR / ".git").exists():
        return None
    command = ["git", "-C", str(settings.BASE_DIR), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
