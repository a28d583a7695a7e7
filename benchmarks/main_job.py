"""The main job's figures: how long a first set-up takes. It knows the README's commands and nothing inside them.

Simplification: packages come from wherever pip is configured to find them, so that a figure holds for
this machine's network.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.records import ROOT, Row, Rows


def setup() -> list[Row]:
    """Seconds of the demo's set-up in a fresh clone with an empty home: cold, and then once more."""
    with tempfile.TemporaryDirectory() as folder:
        clone, home = Path(folder, "clone"), Path(folder, "home")
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        return [{"kind": kind, "seconds": _set_up(clone, home)} for kind in ("cold", "repeated")]


def _set_up(clone: Path, home: Path) -> float:
    start = time.monotonic()
    environment = {**os.environ, "HOME": str(home), "PIP_NO_CACHE_DIR": "1"}
    subprocess.run(["scripts/setup", "demo"], cwd=clone, env=environment, check=True)
    return round(time.monotonic() - start, 1)


def summarise(rows: Rows) -> dict[str, Any]:
    """The figures that README and the release notes quote."""
    return {
        f"setup_seconds_{kind}": _median(rows.get("setup", ()), kind)
        for kind in ("cold", "repeated")
    }


def _median(rows: Sequence[Row], kind: str) -> float | None:
    seconds = [row["seconds"] for row in rows if row["kind"] == kind]
    return median(seconds) if seconds else None


PARTS = {"setup": setup}
