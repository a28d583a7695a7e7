"""Makes a triple's student, teacher and prompts from a laboratory's models, by training alone.

Nobody edits weights or plants text: every pair comes from data and a number of steps. It knows no
probe and no verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.calibration.triples import Triple
from benchmarks.records import ROOT
from opdcore.contract.prompt import Prompt
from opdcore.lab import build, record, training
from opdcore.lab.solutions import Knowledge
from opdcore.lab.tasks import FAMILIES, FamilyName
from opdcore.lab.training import Batch, Schedule

LABORATORIES = ROOT / "state" / "laboratories"
# Steps of the longest exercises, of which the prompts of kind horizon are made.
DEEPEST = 4


@dataclass(frozen=True)
class Made:
    """Folders of a triple's models, and the files of its prompts."""

    student: Path
    teacher: Path
    train: Path
    held_out: Path


@dataclass(frozen=True)
class Lesson:
    """So many steps of further training in style L; knowledge holds for the first `deepest` steps."""

    steps: int
    learning_rate: float
    knowledge: Knowledge
    deepest: float | None = None


def make(triple: Triple, folder: Path) -> Made:
    """Trains what the triple needs into `folder`, from the laboratory of its seed."""
    lab = laboratory(triple.family, triple.seed)
    student, teacher = lab / "student", lab / "teacher"
    u = triple.severity
    match triple.kind:
        case "learnable":
            lesson = Lesson(round(80 - 72 * u), 2e-3, "full")
            teacher = _taught(lab / "student", lesson, triple, folder / "teacher")
        case "mismatch":
            lesson = Lesson(round(10 + 190 * u), 1e-3, "partial")
            student = _taught(lab / "base", lesson, triple, folder / "student")
            teacher = lab / "teacher_other_style"
        case "nothing_new":
            teacher = _same_pipeline(triple, lab, folder / "teacher")
        case "reverse":
            lesson = Lesson(round(25 * (1 - u)), 1e-3, "full")
            student = lab / "teacher"
            teacher = _taught(lab / "student", lesson, triple, folder / "teacher")
        case "horizon":
            lesson = Lesson(80, 2e-3, "full", deepest=DEEPEST * (1 - u))
            teacher = _taught(lab / "student", lesson, triple, folder / "teacher")
    train, held_out = lab / record.TRAIN_FILE, lab / record.HELD_OUT_FILE
    if triple.kind == "horizon":
        train, held_out = longest(train, folder), longest(held_out, folder)
    return Made(student, teacher, train, held_out)


def laboratory(family: FamilyName, seed: int) -> Path:
    """The laboratory's folder; seed 0 is shipped, others are built once."""
    if seed == 0:
        return record.shipped(family)
    folder = LABORATORIES / f"{family}-{seed}"
    for _ in build.build(folder, family=family, seed=seed):
        pass
    return folder


def _same_pipeline(triple: Triple, lab: Path, folder: Path) -> Path:
    """A teacher of the student's own data: trained longer, in another order, or from another start."""
    steps = round(20 + 130 * triple.severity)
    match triple.number % 3:
        case 0:
            return _taught(lab / "student", Lesson(steps, 1e-3, "partial"), triple, folder)
        case 1:
            return _taught(lab / "base", Lesson(60 + steps, 1e-3, "partial"), triple, folder)
        case _:
            other = laboratory(triple.family, (triple.seed + 1) % 5)
            return _taught(other / "student", Lesson(steps, 1e-3, "partial"), triple, folder)


def _taught(parent: Path, lesson: Lesson, triple: Triple, folder: Path) -> Path:
    """The parent after a lesson, the last half of which the rate decays; itself where there is none."""
    if lesson.steps < 2:
        return parent
    words = AutoTokenizer.from_pretrained(parent)
    model = AutoModelForCausalLM.from_pretrained(parent, dtype="float32")
    rng, draw = Random(f"{triple.name} batches"), FAMILIES[triple.family].draw

    def next_batch() -> Batch:
        rows = []
        for _ in range(training.BATCH):
            exercise = draw(rng)
            deepest = _drawn(lesson.deepest, rng)
            solution = exercise.solution("L", lesson.knowledge, rng=rng, deepest=deepest)
            rows.append((exercise, solution))
        return training.collate(rows, words)

    decay = max(1, lesson.steps // 2)
    schedule = Schedule(lesson.learning_rate, decay, 0.0, lesson.steps, lesson.steps - decay)
    for _ in training.fit(model, next_batch, schedule):
        pass
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _drawn(deepest: float | None, rng: Random) -> int | None:
    """A whole number of steps whose mean is `deepest`."""
    return None if deepest is None else int(deepest + rng.random())


def longest(prompts: Path, folder: Path) -> Path:
    """The prompts with the most steps, as a file of the same name."""
    kept = [each for each in record.read_prompts(prompts) if f"steps-{DEEPEST}" in each.tags]
    path = folder / prompts.name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [Prompt(prompt=each.prompt, answer=each.answer, tags=each.tags) for each in kept]
    path.write_text(record.prompt_rows(rows), encoding="utf-8")
    return path
