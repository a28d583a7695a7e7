"""A case's models, prompts and recipe, by training and public knobs alone. It knows no rescue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.calibration import pairs, runs
from benchmarks.calibration.pairs import Made
from benchmarks.calibration.triples import Kind, Triple
from benchmarks.rescue.cases import Case
from opdcore.contract.distill import DistillStage
from opdcore.lab import training
from opdcore.lab.solutions import Exercise, Piece
from opdcore.lab.tasks import FAMILIES
from opdcore.lab.training import Batch, Schedule

STEPS = 80
PIECES_IN_CIRCLES = 30
KINDS: dict[str, Kind] = {"mismatch": "mismatch", "horizon": "horizon"}


def triple(case: Case) -> Triple:
    """The pair that a case starts from, as the calibration study describes one."""
    kind = KINDS.get(case.cause, "learnable")
    # Not the milder half of what calibration draws, of which more succeed than fail.
    severity = 0.4 + 0.6 * case.severity if kind != "learnable" else 0.1
    return Triple(case.family, kind, case.number, case.seed, severity)


def made(case: Case, folder: Path) -> Made:
    """The case's models and prompts in `folder`, from what lies there or made now."""
    pair = pairs.made(triple(case), folder / "pair")
    if case.cause != "malformed":
        return pair
    spoiled = folder / "student"
    if not spoiled.exists():
        _spoil(case, pair, spoiled)
    return replace(pair, student=spoiled)


def plain() -> DistillStage:
    """The calibration's run, shorter; every checkpoint is kept."""
    told = runs.distill_stage().model_dump() | {
        "steps": STEPS, "evaluate_steps": STEPS // 2, "checkpoint_steps": 5, "keep_checkpoints": 100,
        "trace_steps": STEPS, "trace_rollouts": 1,
    }  # fmt: skip
    return DistillStage.model_validate(told)


def distill(case: Case) -> DistillStage:
    """The plain run with what the cause turns."""
    u = case.severity
    turned: dict[str, dict[str, object]] = {
        "biased_top_k": {"normalisation": "unnormalised", "k": 4 + round(4 * u)},
        "endless": {"learning_rate": 3e-3 * 2**u},
    }
    return DistillStage.model_validate(plain().model_dump() | turned.get(case.cause, {}))


def _spoil(case: Case, pair: Made, folder: Path) -> None:
    """The student after supervised steps on responses that go round in circles and never end."""
    words = AutoTokenizer.from_pretrained(pair.student)
    model = AutoModelForCausalLM.from_pretrained(pair.student, dtype="float32")
    rng, draw = Random(f"{case.name} circles"), FAMILIES[case.family].draw

    def next_batch() -> Batch:
        exercises = [draw(rng) for _ in range(training.BATCH)]
        return training.collate([(one, _in_circles(one, rng)) for one in exercises], words)

    steps = 60 + round(80 * case.severity)
    for _ in training.fit(model, next_batch, Schedule(1e-3, 1, 0.0, steps, steps - 1)):
        pass
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def _in_circles(exercise: Exercise, rng: Random) -> list[Piece]:
    """The student's own solution without its answer, over and over: longer than any response may be."""
    solution = exercise.solution("L", "partial", rng=rng)[:-1]
    return (solution * PIECES_IN_CIRCLES)[:PIECES_IN_CIRCLES]
