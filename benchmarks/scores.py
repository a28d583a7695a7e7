"""What keeping a teacher's scores costs, and what a record saves: steps and bytes on the laboratory's pair.

Whoever tells the top k alone is completed to a distribution, which every mode but the first pays for, as for
a teacher behind a server. A round is four runs of one seed: the teacher alone, its scores kept, the same again with all of them found,
and the replay without it. It knows the contract's documents and the engine's door.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import opdcore
from benchmarks.records import Row, Rows
from opdcore.contract.job import Job
from opdcore.files import hash_file
from opdcore.lab import record
from opdcore.score_record import KEY_BYTES, ScoreRecord
from opdcore.serving.requests import Known

ROUNDS = 5
STEPS = 24
# The first steps of a process warm it up.
SKIPPED = 4
K = 16
LAB = record.shipped("sums")
# As many texts as 16 steps of the laboratory have.
REPEATS, TEXTS, TEXT_TOKENS = 7, 1024, 44
MODES = ("teacher alone", "kept", "found", "replayed")
OUTPUT = "output/model.safetensors"


def steps() -> list[Row]:
    """Rounds of the four runs; the teacher's folder is gone when it is replayed."""
    with tempfile.TemporaryDirectory() as folder:
        # What a process does first it does slowly; nobody's row shall pay for it.
        _ran(Path(folder), -1, MODES[0])
        return [row for number in range(ROUNDS) for row in _round(Path(folder), number)]


def disk() -> list[Row]:
    """The record by itself: a step's texts appended, and found by another reader."""
    with tempfile.TemporaryDirectory() as folder:
        return [_on_disk(Path(folder) / str(number)) for number in range(REPEATS)]


def _on_disk(folder: Path) -> Row:
    rng = np.random.default_rng(0)
    shape = (TEXT_TOKENS, K + 1)
    told = [
        Known(rng.integers(0, 1 << 17, shape), rng.normal(size=shape).astype(np.float32))
        for _ in range(TEXTS)
    ]
    keys = [number.to_bytes(KEY_BYTES, "little") for number in range(TEXTS)]
    writer, began = ScoreRecord(folder, room=1 << 30), time.perf_counter()
    writer.recall(keys, lambda _: told)
    kept = time.perf_counter()
    reader = ScoreRecord(folder)
    opened = time.perf_counter()
    reader.recall(keys, lambda _: [])
    found = time.perf_counter()
    tokens = TEXTS * TEXT_TOKENS / 1000
    return {
        "keep_milliseconds_per_1000_tokens": round(1000 * (kept - began) / tokens, 3),
        "open_milliseconds_per_1000_tokens": round(1000 * (opened - kept) / tokens, 3),
        "find_milliseconds_per_1000_tokens": round(1000 * (found - opened) / tokens, 3),
    }


def _round(folder: Path, number: int) -> Iterator[Row]:
    shutil.copytree(LAB / "teacher", folder / "teacher", dirs_exist_ok=True)
    for mode in MODES:
        if mode == "replayed":
            shutil.rmtree(folder / "teacher")
        yield _ran(folder, number, mode)
    shutil.rmtree(folder / f"scores-{number}")


def _ran(folder: Path, number: int, mode: str) -> Row:
    if number < 0:
        shutil.copytree(LAB / "teacher", folder / "teacher", dirs_exist_ok=True)
    run_dir = folder / f"{number}-{mode}"
    events = list(opdcore.run(_job(folder, number, mode), run_dir))
    values = [event.payload.values for event in events if event.kind == "metrics"][SKIPPED:]
    row: dict[str, Any] = {
        "round": number,
        "mode": mode,
        "step_seconds": round(median(one["step_seconds"] or 0.0 for one in values), 4),
        "train_seconds": round(median(one["train_seconds"] or 0.0 for one in values), 4),
        "weights_sha256": hash_file(run_dir / OUTPUT).sha256,
    }
    if mode in ("kept", "found"):
        (kept,) = json.loads((run_dir / "scores.json").read_text())["records"]
        names = ("tokens", "size_bytes", "asked_tokens", "found_tokens")
        row |= {name: kept[name] for name in names}
    shutil.rmtree(run_dir)
    return row


def _job(folder: Path, number: int, mode: str) -> Job:
    how = "replay" if mode == "replayed" else "keep"
    told = {"mode": how, "folder": str(folder / f"scores-{number}")}
    teacher: dict[str, Any] = {"model": {"kind": "local", "path": str(folder / "teacher")}}
    teacher |= {} if mode == MODES[0] else {"scores": told}
    stage = {
        "kind": "distill", "steps": STEPS, "prompts_per_step": 16, "rollouts_per_prompt": 4,
        "max_response_tokens": 48, "learning_rate": 1e-3, "k": K, "support": "teacher",
        "evaluate_steps": 0, "checkpoint_steps": STEPS, "trace_steps": 10_000,
    }  # fmt: skip
    recipe = {
        "name": "scores",
        "stages": [stage],
        "seed": max(number, 0),
        "evaluation": {"verifier": "none"},
    }
    return Job.model_validate(
        {
            "run_id": "scores",
            "student": {"model": {"kind": "local", "path": str(LAB / "student")}},
            "teachers": [teacher],
            "prompt_sets": {"train": {"path": str(LAB / "train.jsonl")}},
            "recipe": recipe,
            "resources": {"train": {"devices": ["cpu"], "threads": 1}},
        }
    )


def summarise(rows: Rows) -> dict[str, Any]:
    """Medians by mode, each as a share of the step with the teacher alone in the same round, and bytes."""
    measured = rows.get("steps", ())
    rounds = [
        {row["mode"]: row for row in measured if row["round"] == number} for number in range(ROUNDS)
    ]
    whole = [one for one in rounds if set(one) == set(MODES)]
    kept = [one["kept"] for one in whole]
    return {
        "k": K,
        "rounds": len(whole),
        "step_seconds": {
            mode: _median([one[mode]["step_seconds"] for one in whole], 4) for mode in MODES
        },
        "share_of_a_step": {
            mode: _median(
                [one[mode]["step_seconds"] / one[MODES[0]]["step_seconds"] - 1 for one in whole], 3
            )
            for mode in MODES[1:]
        },
        "record_milliseconds_per_1000_tokens": {
            what: _median(
                [row[f"{what}_milliseconds_per_1000_tokens"] for row in rows.get("disk", ())], 3
            )
            for what in ("keep", "open", "find")
        },
        "bytes_a_token": _median([row["size_bytes"] / row["tokens"] for row in kept], 1),
        "tokens_asked_when_found": sum(one["found"]["asked_tokens"] for one in whole),
        "replays_with_equal_weights": sum(
            one["replayed"]["weights_sha256"] == one["kept"]["weights_sha256"] for one in whole
        ),
    }


def _median(values: list[float], digits: int) -> float | None:
    return round(median(values), digits) if values else None


PARTS = {"steps": steps, "disk": disk}
