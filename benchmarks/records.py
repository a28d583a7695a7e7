"""Result files: docs/results/NAME.json holds the raw rows of each part and the summary made of them.

A part is measured on its own and replaces its own rows; the summary's keys stand at the top level
and are always those that the benchmark's `summarise` gives for the rows stored here.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "results"

Row = Mapping[str, Any]
Rows = Mapping[str, Sequence[Row]]
Summarise = Callable[[Rows], dict[str, Any]]


def rows_of(document: Mapping[str, Any]) -> Rows:
    """The rows of each part of a result file."""
    return {name: part["rows"] for name, part in document["parts"].items()}


def record(name: str, part: str, rows: Sequence[Row], *, summarise: Summarise) -> Path:
    """Puts a part's rows and their circumstances into the result file and summarises it anew."""
    path = FOLDER / f"{name}.json"
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}
    parts[part] = {**circumstances(), "rows": list(rows)}
    document = {**summarise(rows_of({"parts": parts})), "parts": parts}
    FOLDER.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def table(summary: Mapping[str, Any]) -> str:
    """What a summary says, one line an entry: names and values in the order in which they stand."""
    entries = [
        entry if isinstance(entry, Mapping) else {key: entry}
        for key, value in summary.items()
        if value
        for entry in (
            value if isinstance(value, Sequence) and not isinstance(value, str) else [{key: value}]
        )
    ]
    return "\n".join("  ".join(f"{key} {told}" for key, told in entry.items()) for entry in entries)


def circumstances() -> dict[str, Any]:
    """What a reader needs to judge a figure: commit, command, machine, versions and load."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": " ".join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
