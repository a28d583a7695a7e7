"""The study's parts and their summary: verdicts drawn from what was measured, against what happened.

It knows how a triple is described and scored, not how one is made, probed or run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.calibration import replays, scores
from benchmarks.calibration.runs import STEPS, distill_stage, measured
from benchmarks.calibration.triples import (
    FITTED_ON,
    KINDS,
    RIGHT_CODES,
    SCORED_ON,
    Triple,
    plan,
)
from benchmarks.records import Row, Rows
from opdcore.contract.probe import Diagnosis
from opdcore.lab.tasks import FamilyName

# Single measures that are ranked as predictors of success: more of it should mean more success, or less.
PREDICTORS = {
    "hand_off_min": 1,
    "hand_off_50": 1,
    "overlap_ratio": 1,
    "effective_overlap": 1,
    "overlap_mass_student": 1,
    "overlap_mass_teacher": 1,
    "top1_agreement": 1,
    "reverse_kl": -1,
    "accuracy_gap": 1,
    "teacher_on_failed": 1,
    "style_mass": 1,
    "reward_auroc": 1,
}
FIFTH = STEPS // 5


def rows(family: FamilyName) -> list[Row]:
    """A row for each triple of a family that was run; those that were not are run now."""
    return [described(triple, measured(triple)) for triple in plan(family)]


def described(triple: Triple, told: dict[str, Any]) -> Row:
    """A triple's row: how it was made, what was foretold, and what became of it."""
    probe, stage = Diagnosis.model_validate(told["diagnosis"]).probe, distill_stage()
    verdict, health = replays.before(probe, stage), replays.during(told, stage)
    outcome = told["outcome"]
    succeeded = outcome["code"] == "success"
    failing = [said.step for said in health if said.failing]
    return {
        "name": triple.name,
        "family": triple.family,
        "kind": triple.kind,
        "seed": triple.seed,
        "severity": round(triple.severity, 3),
        "outcome": outcome["code"],
        **{key: _short(outcome[key]) for key in ("before", "after", "teacher", "recovery")},
        "succeeded": succeeded,
        "right_codes": ["GO"] if succeeded else list(RIGHT_CODES[triple.kind]),
        "verdict": verdict.code,
        "go": verdict.go,
        "confidence": verdict.confidence,
        "first_failing_step": failing[0] if failing else None,
        "health": list(dict.fromkeys(said.verdict.code for said in health)),
        "measures": {
            key: _short(probe.measures[key].value) if key in probe.measures else None
            for key in PREDICTORS
        },
        "probe_prompts": probe.prompts,
        "probe_tokens": probe.student_tokens + probe.teacher_tokens,
        "run_tokens": round(sum(told["series"]["generated_tokens"])),
        "probe_seconds": round(probe.seconds, 1),
        "cpu_seconds": told["cpu_seconds"],
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def summarise(rows: Rows) -> dict[str, Any]:
    """Accuracy of verdicts and of go or no-go on the family that thresholds were not set on."""
    held_out = list(rows.get(SCORED_ON, ()))
    if not held_out:
        return {"triples": 0}
    successes = [row["succeeded"] for row in held_out]
    return {
        "triples": len(held_out),
        "cpu_hours": round(sum(r["cpu_seconds"] for part in rows.values() for r in part) / 3600, 2),
        "verdict_accuracy": scores.macro(held_out, by="kind", right=_right_code),
        "go_accuracy": scores.share([_right_go(row) for row in held_out]),
        "majority_baseline": scores.share([one == _majority(successes) for one in successes]),
        "named_by_fifth": scores.share(
            [_named_by(row, FIFTH) for row in held_out if not row["succeeded"]]
        ),
        "false_alarms": scores.share(
            [row["first_failing_step"] is not None for row in held_out if row["succeeded"]]
        ),
        "kinds": [_kind(held_out, kind) for kind in KINDS],
        "predictors": scores.ranked(held_out, PREDICTORS),
    }


def _kind(rows: Sequence[Row], kind: str) -> dict[str, Any]:
    own = [row for row in rows if row["kind"] == kind]
    return {
        "kind": kind,
        "triples": len(own),
        "succeeded": sum(row["succeeded"] for row in own),
        "right_code": sum(_right_code(row) for row in own),
        "right_go": sum(_right_go(row) for row in own),
        "verdicts": scores.counted([row["verdict"] for row in own]),
    }


def _right_code(row: Row) -> bool:
    return row["verdict"] in row["right_codes"]


def _right_go(row: Row) -> bool:
    """Undecided is never right: a run either succeeds or it does not."""
    return bool(row["go"] == ("go" if row["succeeded"] else "no_go"))


def _named_by(row: Row, step: int) -> bool:
    return row["first_failing_step"] is not None and row["first_failing_step"] <= step


def _majority(successes: Sequence[bool]) -> bool:
    return 2 * sum(successes) >= len(successes)


PARTS = {family: partial(rows, family) for family in (FITTED_ON, SCORED_ON)}
