"""Makes a triple's student, teacher and prompts from a laboratory's models, by training alone.

Nobody edits weights or plants text: every pair comes from data and a number of steps. It knows no
probe and no verdict.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from benchmarks.calibration.triples import Triple
from benchmarks.records import ROOT
from opdcore.lab import build, record, training
from opdcore.lab.solutions import Exercise, Knowledge, Piece
from opdcore.lab.tasks import FAMILIES, FamilyName
from opdcore.lab.training import Batch, Schedule

LABORATORIES = ROOT / "state" / "laboratories"
STUDENT, TEACHER = "student", "teacher"
# Steps of the longest exercises, of which the prompts of kind horizon are made.
DEEPEST = 4
# How many times as wide as its student a larger teacher of the same data is.
LARGER = 2
# Pieces of a solution's step, in either family; the answer is one more.
PIECES = 4


@dataclass(frozen=True)
class Made:
    """Folders of a triple's models, and the files of its prompts."""

    student: Path
    teacher: Path
    train: Path
    held_out: Path


@dataclass(frozen=True)
class Lesson:
    """So many steps of further training in style L; from step `turn` of a solution on, in style K."""

    steps: int
    learning_rate: float
    knowledge: Knowledge
    turn: float = DEEPEST


def made(triple: Triple, folder: Path) -> Made:
    """The triple in `folder`, from what lies there or made now, whole or not at all."""
    if not folder.exists():
        aside = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        make(triple, aside)
        aside.rename(folder)
    return _where(triple, folder)


def make(triple: Triple, folder: Path) -> None:
    """Trains what the triple needs into `folder`, from the laboratory of its seed."""
    lab, u = laboratory(triple.family, triple.seed), triple.severity
    student, teacher = folder / STUDENT, folder / TEACHER
    match triple.kind:
        case "learnable":
            _teach(lab / STUDENT, Lesson(round(80 - 72 * u), 2e-3, "full"), triple, teacher)
        case "mismatch":
            _teach(lab / "base", Lesson(round(10 + 190 * u), 1e-3, "partial"), triple, student)
            shutil.copytree(lab / "teacher_other_style", teacher)
        case "nothing_new":
            _teach_the_same(triple, lab, teacher)
        case "reverse":
            shutil.copytree(lab / TEACHER, student)
            _teach(lab / STUDENT, Lesson(round(25 * (1 - u)), 1e-3, "full"), triple, teacher)
        case "horizon":
            lesson = Lesson(400, 2e-3, "full", turn=DEEPEST - 2.5 * u)
            _teach(lab / "teacher_other_style", lesson, triple, teacher)
        case "same_pipeline":
            _teach(lab / "base", Lesson(round(10 + 30 * u), 1e-3, "partial"), triple, student)
            _teach_more(triple, student, teacher)
    for name in (record.TRAIN_FILE, record.HELD_OUT_FILE):
        if triple.kind == "horizon":
            keep_longest(lab / name, folder / name)


def _where(triple: Triple, folder: Path) -> Made:
    """What was not made for the triple is the laboratory's."""
    lab = laboratory(triple.family, triple.seed)
    names = (STUDENT, TEACHER, record.TRAIN_FILE, record.HELD_OUT_FILE)
    return Made(*(folder / n if (folder / n).exists() else lab / n for n in names))


def laboratory(family: FamilyName, seed: int) -> Path:
    """The laboratory's folder; seed 0 is shipped, others are built once."""
    if seed == 0:
        return record.shipped(family)
    folder = LABORATORIES / f"{family}-{seed}"
    for _ in build.build(folder, family=family, seed=seed):
        pass
    return folder


def _teach_the_same(triple: Triple, lab: Path, folder: Path) -> None:
    """A teacher of the student's own data: trained longer, in another order, or from another start."""
    steps = round(20 + 130 * triple.severity)
    match triple.number % 3:
        case 0:
            _teach(lab / "student", Lesson(steps, 1e-3, "partial"), triple, folder)
        case 1:
            _teach(lab / "base", Lesson(60 + steps, 1e-3, "partial"), triple, folder)
        case _:
            other = laboratory(triple.family, (triple.seed + 1) % 5)
            _teach(other / "student", Lesson(steps, 1e-3, "partial"), triple, folder)


def _teach_more(triple: Triple, student: Path, folder: Path) -> None:
    """A teacher of the student's own data that should score higher: trained far longer, or larger."""
    if triple.number % 2 == 0:
        _teach(student, Lesson(400, 1e-3, "partial"), triple, folder)
        return
    words = AutoTokenizer.from_pretrained(student)
    width = LARGER * training.WIDTH
    model = training.new_model(triple.family, words, seed=100 + triple.number, width=width)
    # From scratch at the base's own rate, for as long as its longest lessons.
    _fit(model, words, Lesson(700, 3e-3, "partial"), triple, folder)


def _teach(parent: Path, lesson: Lesson, triple: Triple, folder: Path) -> None:
    """Writes the parent after a lesson; itself where the lesson is empty."""
    if lesson.steps < 2:
        shutil.copytree(parent, folder)
        return
    words = AutoTokenizer.from_pretrained(parent)
    _fit(
        AutoModelForCausalLM.from_pretrained(parent, dtype="float32"), words, lesson, triple, folder
    )


def _fit(
    model: PreTrainedModel,
    words: PreTrainedTokenizerFast,
    lesson: Lesson,
    triple: Triple,
    folder: Path,
) -> None:
    """Writes the model after a lesson, over whose last half the rate decays."""
    rng, draw = Random(f"{triple.name} batches"), FAMILIES[triple.family].draw

    def next_batch() -> Batch:
        exercises = [draw(rng) for _ in range(training.BATCH)]
        return training.collate([(each, written(each, lesson, rng)) for each in exercises], words)

    decay = max(1, lesson.steps // 2)
    schedule = Schedule(lesson.learning_rate, decay, 0.0, lesson.steps, lesson.steps - decay)
    for _ in training.fit(model, next_batch, schedule):
        pass
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def written(exercise: Exercise, lesson: Lesson, rng: Random) -> list[Piece]:
    """A solution in style L, which turns to K after a whole number of steps whose mean is `turn`."""
    solution = exercise.solution("L", lesson.knowledge, rng=rng)
    kept = int(lesson.turn + rng.random()) * PIECES
    if lesson.knowledge == "partial" or kept >= len(solution) - 1:
        return solution
    # What a step leads to is settled in full knowledge, so the other style goes on from it.
    return solution[:kept] + exercise.solution("K", "full", rng=rng)[kept:]


def keep_longest(prompts: Path, file: Path) -> None:
    """Writes the prompts with the most steps."""
    kept = [each for each in record.read_prompts(prompts) if f"steps-{DEEPEST}" in each.tags]
    file.write_text(record.prompt_rows(kept), encoding="utf-8")
