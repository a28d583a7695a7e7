"""The study's models: made from the laboratory's students by further training, and kept.

Every student half believes both skills. Teachers know one of them. A student that can be its own teacher
has besides learnt what a text before the prompt is worth. It knows no distillation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from transformers import AutoModelForCausalLM, AutoTokenizer

import opdcore.lab.build as laboratories
from benchmarks.records import ROOT
from benchmarks.teachers import exercises
from benchmarks.teachers.exercises import SKILLS, Exercise, Told
from opdcore.lab import record, training
from opdcore.lab.solutions import Piece
from opdcore.lab.training import Batch, Schedule

KEPT = ROOT / "state" / "teachers"
# Raise it when how models are made changes: all of them are then made anew.
VERSION = "models-1"
Written = Callable[[Random], tuple[Exercise, list[Piece]]]
LEARNING = Schedule(1e-3, decay_steps=60, target=0.85, cap=500, minimum_steps=120)


def student(seed: int) -> Path:
    """Half believes both skills."""
    return _made(f"student-{seed}", _laboratory(seed), _writing(knows=()))


def teacher(seed: int, skill: str) -> Path:
    """The student with one skill put right."""
    return _made(f"{skill}-{seed}", student(seed), _writing(knows=(skill,)))


def own_teacher(seed: int, told: Told) -> Path:
    """The student that knows what the text before a prompt is worth, and without it is as it was."""

    def written(rng: Random) -> tuple[Exercise, list[Piece]]:
        asked = rng.choice(("nothing", told))
        exercise = exercises.draw(rng, told=asked)
        return exercise, exercise.by(SKILLS if asked == "rule" else (), rng=rng)

    return _made(f"own-{told}-{seed}", student(seed), written)


def prompt_files(seed: int) -> tuple[Path, Path]:
    """Train and held-out prompts."""
    folder = KEPT / VERSION / f"prompts-{seed}"
    files = folder / "train.jsonl", folder / "held_out.jsonl"
    if not files[1].exists():
        folder.mkdir(parents=True, exist_ok=True)
        for file, rows in zip(files, exercises.prompts(seed), strict=True):
            lines = [row.model_dump_json(exclude_defaults=True) + "\n" for row in rows]
            file.write_text("".join(lines), encoding="utf-8")
    return files


def _writing(*, knows: Sequence[str]) -> Written:
    def written(rng: Random) -> tuple[Exercise, list[Piece]]:
        exercise = exercises.draw(rng)
        return exercise, exercise.by(knows, rng=rng)

    return written


def _made(name: str, parent: Path, written: Written) -> Path:
    folder = KEPT / VERSION / name
    if folder.exists():
        return folder
    words = AutoTokenizer.from_pretrained(parent)
    model = AutoModelForCausalLM.from_pretrained(parent, dtype="float32")
    rng = Random(name)

    def next_batch() -> Batch:
        return training.collate([written(rng) for _ in range(training.BATCH)], words)

    for _ in training.fit(model, next_batch, LEARNING):
        pass
    aside = folder.with_name(f".{name}.part")
    model.save_pretrained(aside)
    words.save_pretrained(aside)
    aside.rename(folder)
    return folder


def _laboratory(seed: int) -> Path:
    if seed == 0:
        return record.shipped("sums") / "student"
    folder = ROOT / "state" / "laboratories" / f"sums-{seed}"
    for _ in laboratories.build(folder, family="sums", seed=seed):
        pass
    return folder / "student"
