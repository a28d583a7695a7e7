"""A laboratory's folder: what it holds, what was measured while it was built, and whether it is whole.

It reads and hashes files; it knows no torch, so web pages and workers may import it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from opdcore.contract.prompt import Prompt
from opdcore.lab.tasks import FamilyName

# Stamped into every result; raise it when tasks, tokenizer or training change.
LAB_VERSION = "1"

MODEL_NAMES = ("base", "student", "teacher", "teacher_other_style")
RECORD_FILE = "lab.json"
TRAIN_FILE = "train.jsonl"
HELD_OUT_FILE = "held_out.jsonl"
PROMPT_FIELDS = {"prompt", "answer", "tags"}

_SHIPPED = Path(__file__).parent / "data"


class Accuracy(BaseModel):
    """A share of right answers among n rollouts, with its 95 % Wilson interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    n: int = Field(description="Rollouts judged.")
    low: float
    high: float


class ModelRecord(BaseModel):
    """How one model came about and how well it does on the held-out prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accuracy: Accuracy = Field(description="All held-out prompts, sampled at temperature 1.")
    known_accuracy: Accuracy = Field(description="Held-out prompts without the new skill.")
    other_style_mass: float = Field(
        description="Mean probability that a response opens in style K."
    )
    steps: int = Field(description="Optimizer steps of the attempt that was kept.")
    restarts: int = Field(description="Attempts thrown away before it.")
    seconds: float = Field(description="Wall-clock seconds, restarts and measuring included.")


class LabRecord(BaseModel):
    """The content of lab.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lab_version: str
    family: FamilyName
    seed: int
    models: dict[str, ModelRecord]
    rollouts_per_prompt: int = Field(description="Rollouts per held-out prompt when measuring.")
    build_seconds: float = Field(description="Wall-clock seconds of the whole build.")
    build_cpu_seconds: float = Field(description="CPU seconds of the whole build, one thread.")
    files: dict[str, str] = Field(description="SHA-256 of each file, by path within the folder.")


def shipped(family: FamilyName) -> Path:
    """Return the folder of the family's seed 0, which comes with the package."""
    return _SHIPPED / f"{family}-0"


def read(directory: Path) -> LabRecord | None:
    """Return the record of a laboratory's folder, or None where there is no readable one."""
    try:
        return LabRecord.model_validate_json((directory / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def is_whole(directory: Path, record: LabRecord) -> bool:
    """Say whether every file of the record is there, unchanged."""
    return all(
        (directory / name).is_file() and sha256(directory / name) == digest
        for name, digest in record.files.items()
    )


def hashes(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under a folder, by relative path, but for the record's."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    named = {path.relative_to(directory).as_posix(): sha256(path) for path in paths}
    return {name: digest for name, digest in named.items() if name != RECORD_FILE}


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def accuracy_of(judged: Sequence[bool]) -> Accuracy:
    """Return the share of right answers with its Wilson interval; at least one is needed."""
    n, z = len(judged), 1.96
    share = sum(judged) / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Accuracy(value=share, n=n, low=max(0.0, centre - half), high=min(1.0, centre + half))


def prompt_rows(prompts: Iterable[Prompt]) -> str:
    """Return prompts as JSON lines of prompt, answer and tags."""
    return "".join(each.model_dump_json(include=PROMPT_FIELDS) + "\n" for each in prompts)


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of one of the laboratory's own files."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Prompt.model_validate_json(line) for line in lines]
