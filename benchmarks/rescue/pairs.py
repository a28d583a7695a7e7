"""A case's models, prompts and recipe, by training and public knobs alone. It knows no rescue."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import opdcore
from benchmarks.calibration import pairs, runs
from benchmarks.calibration.pairs import Made
from benchmarks.calibration.triples import Kind, Triple
from benchmarks.rescue.cases import Case
from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.distill import DistillStage

STEPS = 80
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
    garbled = folder / "student"
    if not garbled.exists():
        _garble(case, pair, garbled)
    return replace(pair, student=garbled)


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


def _garble(case: Case, pair: Made, folder: Path) -> None:
    """The student after a few supervised steps at far too high a learning rate."""
    stage = ColdStartStage(
        prompts=96,
        held_out_prompts=8,
        steps=6,
        learning_rate=0.012 * 1.5**case.severity,
        warmup_steps=0,
        schedule="constant",
        weight_decay=0.0,
        max_prompt_tokens=runs.LONGEST,
        max_response_tokens=runs.LONGEST,
    )
    with tempfile.TemporaryDirectory() as run_dir:
        for _ in opdcore.run(runs.job(triple(case), pair, (stage,)), Path(run_dir)):
            pass
        shutil.copytree(Path(run_dir) / "output", folder)
