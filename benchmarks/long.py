"""Long responses on a small model: memory and seconds of writing, scoring and learning, in parts and whole.

Each figure is a process of its own, whose peak memory is what it took beyond the loaded model. `whole` is the
engine without what long texts get: no setting aside, no reading in parts, no computing anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.records import ROOT, Row, Rows

LENGTHS = (2048, 8192, 32_768)
MODES = ("in parts", "whole")
LONGEST_SECONDS = 900


def passes() -> list[Row]:
    """Scoring and training of one text."""
    return [
        measured(work, mode, tokens)
        for work in ("score", "train")
        for tokens in LENGTHS
        for mode in MODES
    ]


def sampling() -> list[Row]:
    """Thirty-two responses of a mean length of 2,048 tokens that may be as long as is said."""
    return [measured("sample", mode, tokens) for tokens in LENGTHS for mode in MODES]


def measured(work: str, mode: str, tokens: int) -> Row:
    """One process; a figure of None where it took too long or died."""
    argv = [sys.executable, "-m", "benchmarks.programs.long_pass", work, mode, str(tokens)]
    row: dict[str, Any] = {"work": work, "mode": mode, "tokens": tokens}
    try:
        ran = subprocess.run(
            argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=LONGEST_SECONDS
        )
    except subprocess.TimeoutExpired:
        return row | {"seconds": None, "mebibytes": None, "fault": f"over {LONGEST_SECONDS} s"}
    except subprocess.CalledProcessError as error:
        return row | {"seconds": None, "mebibytes": None, "fault": f"exit {error.returncode}"}
    told = json.loads(ran.stdout)
    return row | {"seconds": told["seconds"], "mebibytes": round(told["bytes"] / 2**20)}


def summarise(rows: Rows) -> dict[str, Any]:
    """Each length's figures side by side."""
    every = [row for part in rows.values() for row in part]
    keys = list(dict.fromkeys((row["work"], row["tokens"]) for row in every))
    found = []
    for work, tokens in keys:
        by_mode = {
            row["mode"]: row for row in every if (row["work"], row["tokens"]) == (work, tokens)
        }
        parts, whole = by_mode["in parts"], by_mode["whole"]
        found.append(
            {
                "work": work,
                "tokens": tokens,
                "seconds": parts["seconds"],
                "seconds_whole": whole["seconds"],
                "mebibytes": parts["mebibytes"],
                "mebibytes_whole": whole["mebibytes"],
            }
        )
    return {"long": found}


PARTS = {"passes": passes, "sampling": sampling}
