"""Build a laboratory: base, student, two teachers and their prompt sets, from a family and a seed.

The base learns both styles with half a belief about the new skill; the student forgets style K;
the teacher is the student with the skill put right (same style, new knowledge); the other teacher
learns style K alone, from scratch. Training is adaptive, restarts where a plateau holds it, and
the folder appears whole or not at all. It knows no runs and no recipes.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from opdcore.contract.errors import BadInput, EngineFailure
from opdcore.contract.events import Progress
from opdcore.lab import record, tokenizer, training
from opdcore.lab.measuring import judge, open_model, opening_mass
from opdcore.lab.record import LAB_VERSION, Accuracy, LabRecord, ModelRecord
from opdcore.lab.solutions import Knowledge, Style
from opdcore.lab.tasks import FAMILIES, FamilyName, PromptSets, prompt_sets
from opdcore.lab.training import Batch, Schedule

logger = logging.getLogger(__name__)

ATTEMPTS = 6
ROLLOUTS_PER_PROMPT = 2


@dataclass(frozen=True)
class Skill:
    """What a model can do on the held-out prompts, in all and without the new skill.

    `other_style_mass` is the mean probability that its responses open in style K.
    """

    accuracy: Accuracy
    known_accuracy: Accuracy
    other_style_mass: float


@dataclass(frozen=True)
class Lesson:
    """How one model is taught: from which model, in which styles, and when it is accepted."""

    name: str
    parent: str | None
    styles: tuple[Style, ...]
    knowledge: Knowledge
    schedule: Schedule
    typical_steps: int
    least_known_accuracy: float
    least_accuracy: float = 0.0
    most_other_style: float = 1.0

    def accepts(self, skill: Skill) -> bool:
        """Say whether a model that was taught this is good enough to keep."""
        return (
            skill.known_accuracy.value >= self.least_known_accuracy
            and skill.accuracy.value >= self.least_accuracy
            and skill.other_style_mass <= self.most_other_style
        )


LESSONS = (
    Lesson(
        name="base",
        parent=None,
        styles=("L", "K"),
        knowledge="partial",
        schedule=Schedule(learning_rate=3e-3, decay_steps=60, target=0.7, cap=900),
        typical_steps=400,
        least_known_accuracy=0.6,
    ),
    Lesson(
        name="student",
        parent="base",
        styles=("L",),
        knowledge="partial",
        # Fewer steps leave enough of style K for the mismatched pair to heal itself by luck.
        schedule=Schedule(1e-3, decay_steps=40, target=0.85, cap=400, minimum_steps=80),
        typical_steps=120,
        least_known_accuracy=0.85,
        most_other_style=0.002,
    ),
    Lesson(
        name="teacher",
        parent="student",
        styles=("L",),
        knowledge="full",
        schedule=Schedule(2e-3, decay_steps=50, target=0.85, cap=400, minimum_steps=20),
        typical_steps=90,
        least_known_accuracy=0.85,
        least_accuracy=0.9,
    ),
    Lesson(
        name="teacher_other_style",
        parent=None,
        styles=("K",),
        knowledge="full",
        schedule=Schedule(learning_rate=3e-3, decay_steps=60, target=0.75, cap=900),
        typical_steps=400,
        least_known_accuracy=0.8,
        least_accuracy=0.85,
    ),
)


@dataclass
class _Bench:
    """What the lessons of one build share."""

    folder: Path
    family: FamilyName
    seed: int
    tokenizer: PreTrainedTokenizerFast
    prompts: PromptSets
    models: dict[str, PreTrainedModel] = field(default_factory=dict)
    records: dict[str, ModelRecord] = field(default_factory=dict)


def build(directory: Path, *, family: FamilyName = "sums", seed: int = 0) -> Iterator[Progress]:
    """Build the laboratory of a family and seed in a folder, yielding progress.

    A whole folder of the same version, family and seed is left as it is. Raises BadInput
    `lab.family` or `lab.folder_taken`, and EngineFailure `lab.plateau` where no attempt learns.
    """
    directory = Path(directory)
    if family not in FAMILIES:
        names = ", ".join(FAMILIES)
        raise BadInput(
            "lab.family", f"There is no family {family!r}.", remedy=f"Use {names}.", field="family"
        )
    if not _is_current(directory, family=family, seed=seed):
        _refuse_strangers(directory)
        with _one_thread(), _aside(directory) as folder:
            yield from _build_in(folder, family=family, seed=seed)
    yield _progress("ready", 100)


def _build_in(folder: Path, *, family: FamilyName, seed: int) -> Iterator[Progress]:
    wall, cpu = time.monotonic(), time.process_time()
    words = tokenizer.train(family, context_length=training.CONTEXT_LENGTH)
    bench = _Bench(folder, family, seed, words, prompt_sets(family, seed=seed))
    total = sum(lesson.typical_steps for lesson in LESSONS)
    before, told = 0, -1
    for lesson in LESSONS:
        for done in _teach(bench, lesson):
            percent = min(99, round(100 * (before + done * lesson.typical_steps) / total))
            if percent > told:
                yield _progress(f"training {lesson.name}", percent)
                told = percent
        before += lesson.typical_steps
    _write(bench, seconds=time.monotonic() - wall, cpu_seconds=time.process_time() - cpu)


def _teach(bench: _Bench, lesson: Lesson) -> Iterator[float]:
    """Teach one model, restarting where it stays on a plateau; yields the share done."""
    start = time.monotonic()
    furthest = 0.0
    for attempt in range(ATTEMPTS):
        model = _pupil(bench, lesson, attempt)
        batches = _batches(bench, lesson, attempt)
        decaying, steps = 0, 0
        for step in training.fit(model, batches, lesson.schedule):
            steps, decaying = step.number, decaying + step.decaying
            furthest = max(furthest, _share_done(steps, decaying, lesson))
            yield furthest
        skill = _measure(bench, _save(bench, lesson.name, model))
        if decaying and lesson.accepts(skill):
            seconds = time.monotonic() - start
            bench.models[lesson.name] = model
            bench.records[lesson.name] = _recorded(skill, steps, restarts=attempt, seconds=seconds)
            return
        logger.warning("%s: attempt %d thrown away: %s", lesson.name, attempt, skill)
    raise EngineFailure(
        "lab.plateau",
        f"{lesson.name} of {bench.family} seed {bench.seed} did not learn in {ATTEMPTS} attempts.",
        remedy="Build another seed.",
    )


def _recorded(skill: Skill, steps: int, *, restarts: int, seconds: float) -> ModelRecord:
    return ModelRecord(
        accuracy=skill.accuracy,
        known_accuracy=skill.known_accuracy,
        other_style_mass=skill.other_style_mass,
        steps=steps,
        restarts=restarts,
        seconds=round(seconds, 1),
    )


def _progress(what: str, percent: int) -> Progress:
    return Progress(what=what, done=percent, total=100, unit="percent")


def _share_done(steps: int, decaying: int, lesson: Lesson) -> float:
    decay = lesson.schedule.decay_steps
    plain = max(1, lesson.typical_steps - decay)
    if decaying:
        return (plain + decaying) / lesson.typical_steps
    return min(steps, plain) / lesson.typical_steps


def _pupil(bench: _Bench, lesson: Lesson, attempt: int) -> PreTrainedModel:
    if lesson.parent is not None:
        return copy.deepcopy(bench.models[lesson.parent])
    seed = zlib.crc32(f"{bench.family} {lesson.name} {bench.seed} {attempt}".encode())
    return training.new_model(bench.family, bench.tokenizer, seed=seed)


def _batches(bench: _Bench, lesson: Lesson, attempt: int) -> Callable[[], Batch]:
    rng = Random(f"{bench.family} {lesson.name} {bench.seed} {attempt} batches")
    draw = FAMILIES[bench.family].draw

    def next_batch() -> Batch:
        rows = []
        for _ in range(training.BATCH):
            exercise = draw(rng)
            style = rng.choice(lesson.styles)
            rows.append((exercise, exercise.solution(style, lesson.knowledge, rng=rng)))
        return training.collate(rows, bench.tokenizer)

    return next_batch


def _measure(bench: _Bench, folder: Path) -> Skill:
    model = open_model(folder)
    held_out = bench.prompts.held_out
    asked = [prompt for prompt in held_out for _ in range(ROLLOUTS_PER_PROMPT)]
    right = judge(model, asked, seed=bench.seed)
    known = [ok for prompt, ok in zip(asked, right, strict=True) if "known" in prompt.tags]
    mass = opening_mass(model, held_out, openers=FAMILIES[bench.family].OPENERS["K"])
    return Skill(record.accuracy_of(right), record.accuracy_of(known), mass)


def _save(bench: _Bench, name: str, model: PreTrainedModel) -> Path:
    folder = bench.folder / name
    model.save_pretrained(folder)
    bench.tokenizer.save_pretrained(folder)
    return folder


def _write(bench: _Bench, *, seconds: float, cpu_seconds: float) -> None:
    folder, sets = bench.folder, bench.prompts
    for name, prompts in ((record.TRAIN_FILE, sets.train), (record.HELD_OUT_FILE, sets.held_out)):
        (folder / name).write_text(record.prompt_rows(prompts), encoding="utf-8")
    lab = LabRecord(
        lab_version=LAB_VERSION,
        family=bench.family,
        seed=bench.seed,
        models=bench.records,
        rollouts_per_prompt=ROLLOUTS_PER_PROMPT,
        build_seconds=round(seconds, 1),
        build_cpu_seconds=round(cpu_seconds, 1),
        files=record.hashes(folder),
    )
    text = lab.model_dump_json(indent=2) + "\n"
    (folder / record.RECORD_FILE).write_text(text, encoding="utf-8")


def _is_current(directory: Path, *, family: FamilyName, seed: int) -> bool:
    found = record.read(directory)
    if found is None:
        return False
    same = (found.lab_version, found.family, found.seed) == (LAB_VERSION, family, seed)
    return same and record.is_whole(directory, found)


def _refuse_strangers(directory: Path) -> None:
    """Raise where the folder holds something else than a laboratory, which must not be replaced."""
    if not directory.exists():
        return
    if not directory.is_dir() or (any(directory.iterdir()) and record.read(directory) is None):
        raise BadInput(
            "lab.folder_taken",
            f"{directory} exists and is no laboratory.",
            remedy="Name a new or an empty folder.",
            field="directory",
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: with these sizes a second one costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _aside(directory: Path) -> Iterator[Path]:
    """Offer a folder beside the wanted one and put it in place when all went well."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    _sweep(directory)
    folder = directory.with_name(f".{directory.name}.building-{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
        _replace(directory, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(directory: Path) -> None:
    """Remove what builds of this folder left behind when they were killed."""
    for left in directory.parent.glob(f".{directory.name}.building-*"):
        if not psutil.pid_exists(int(left.name.rpartition("-")[2])):
            shutil.rmtree(left, ignore_errors=True)


def _replace(directory: Path, folder: Path) -> None:
    """Put a finished folder in place of what is there, if anything."""
    old = directory.with_name(f".{directory.name}.replaced-{os.getpid()}")
    if directory.exists():
        directory.rename(old)
    folder.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
