"""The signing key of an installation: made once, readable by its owner alone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def load(path: Path) -> str:
    """The key kept in the file, which is made with mode 600 where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="ascii")
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        key = secrets.token_urlsafe(64)
        file.write(key)
    return key
