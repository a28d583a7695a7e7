"""The study's parts and their summary: verdicts drawn from what was measured, against what happened.

A failed run is a collapse where its own accuracy fell, and a stall where it did not. A healthy run is
one of kind learnable that succeeded; others that succeeded were often ill on their way.

It knows how a triple is described and scored, not how one is made, probed or run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from benchmarks.calibration import replays, scores
from benchmarks.calibration.runs import STEPS, distill_stage, measured, ran
from benchmarks.calibration.triples import (
    FITTED_ON,
    KINDS,
    RIGHT_CODES,
    SCORED_ON,
    Triple,
    attempts,
    more_healthy,
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
    "student_nll_on_teacher": -1,
    "reward_auroc": 1,
}
FIFTH = STEPS // 5
HEALTHY, ATTEMPTED = "healthy", "same_pipeline"


# A collapse begins with the first of so many steps whose mean accuracy is so far below the start's,
# and is named in time within so many steps. Fixed before the study was made.
ONSET_STEPS, ONSET_FALL, IN_TIME = 10, 0.15, 15


def rows(family: FamilyName) -> list[Row]:
    """A row for each triple of a family; what was not run yet is run now."""
    return [described(triple, measured(triple)) for triple in plan(family)]


def healthy_rows() -> list[Row]:
    """A row for each further learnable run, without a verdict before it."""
    return [_run(triple, ran(triple)) for triple in more_healthy(SCORED_ON)]


def attempt_rows() -> list[Row]:
    """A row for each attempt at a same-pipeline teacher that scores higher and teaches nothing."""
    return [described(triple, measured(triple)) for triple in attempts(SCORED_ON)]


def described(triple: Triple, told: dict[str, Any]) -> Row:
    """A triple's row: how it was made, what was foretold, and what became of it."""
    probe = Diagnosis.model_validate(told["diagnosis"]).probe
    verdict, run = replays.before(probe, distill_stage()), _run(triple, told)
    return {
        **run,
        "right_codes": ["GO"] if run["succeeded"] else list(RIGHT_CODES[triple.kind]),
        "verdict": verdict.code,
        "go": verdict.go,
        "confidence": verdict.confidence,
        "measures": {
            key: _short(probe.measures[key].value) if key in probe.measures else None
            for key in PREDICTORS
        },
        "probe_prompts": probe.prompts,
        "probe_tokens": probe.student_tokens + probe.teacher_tokens,
        "probe_seconds": round(probe.seconds, 1),
    }


def _run(triple: Triple, told: dict[str, Any]) -> Row:
    """What became of a run, and what the monitor said while it went on."""
    health, outcome = replays.during(told, distill_stage()), told["outcome"]
    return {
        "name": triple.name,
        "family": triple.family,
        "kind": triple.kind,
        "seed": triple.seed,
        "severity": round(triple.severity, 3),
        "outcome": outcome["code"],
        **{key: _short(outcome[key]) for key in ("before", "after", "teacher", "recovery")},
        "succeeded": outcome["code"] == "success",
        "collapse_step": onset(told["series"]["rollout_accuracy"]),
        "first_failing_step": next((said.step for said in health if said.failing), None),
        "health": [f"{said.verdict.code} {said.step}" for said in health],
        "run_tokens": round(sum(told["series"]["generated_tokens"])),
        "cpu_seconds": told["cpu_seconds"],
    }


def onset(accuracies: Sequence[float | None]) -> int | None:
    """The step at which a run's own accuracy begins to be far below its start for good."""
    known = [0.0 if value is None else value for value in accuracies]
    start = fmean(known[:5])
    low = [
        fmean(known[first : first + ONSET_STEPS]) < start - ONSET_FALL
        for first in range(len(known) - ONSET_STEPS + 1)
    ]
    if not low or not low[-1]:
        return None
    return max((first for first, one in enumerate(low) if not one), default=-1) + 2


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def summarise(rows: Rows) -> dict[str, Any]:
    """Accuracy of verdicts and of go or no-go on the family that thresholds were not set on."""
    held_out = list(rows.get(SCORED_ON, ()))
    if not held_out:
        return {"triples": 0}
    successes = [row["succeeded"] for row in held_out]
    failures = [row for row in held_out if not row["succeeded"]]
    collapses = [row for row in failures if row["collapse_step"] is not None]
    stalls = [row for row in failures if row["collapse_step"] is None]
    well_made = [row for row in held_out if row["kind"] == "learnable"] + [*rows.get(HEALTHY, ())]
    healthy = [row for row in well_made if row["succeeded"]]
    others = [row for row in held_out if row["succeeded"] and row["kind"] != "learnable"]
    return {
        "triples": len(held_out),
        "cpu_hours": round(sum(r["cpu_seconds"] for part in rows.values() for r in part) / 3600, 2),
        "verdict_accuracy": scores.macro(held_out, by="kind", right=_right_code),
        "go_accuracy": scores.share([_right_go(row) for row in held_out]),
        "majority_baseline": scores.share([one == _majority(successes) for one in successes]),
        "named_by_fifth": scores.share([_named_by(row, FIFTH) for row in stalls]),
        "collapses_named_in_time": scores.share(
            [_named_by(row, row["collapse_step"] + IN_TIME) for row in collapses]
        ),
        "false_alarms": scores.share([_alarmed(row) for row in healthy]),
        "alarms_in_others_that_succeeded": scores.share([_alarmed(row) for row in others]),
        "kinds": [_kind(held_out, kind) for kind in KINDS],
        "predictors": scores.ranked(held_out, PREDICTORS),
        "same_pipeline": [_attempt(row) for row in rows.get(ATTEMPTED, ())],
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


def _attempt(row: Row) -> dict[str, Any]:
    told = ("name", "before", "teacher", "after", "outcome", "verdict", "go", "confidence")
    return {key: row[key] for key in told}


def _right_code(row: Row) -> bool:
    return row["verdict"] in row["right_codes"]


def _right_go(row: Row) -> bool:
    """Undecided is never right: a run either succeeds or it does not."""
    return bool(row["go"] == ("go" if row["succeeded"] else "no_go"))


def _alarmed(row: Row) -> bool:
    return row["first_failing_step"] is not None


def _named_by(row: Row, step: int) -> bool:
    return row["first_failing_step"] is not None and row["first_failing_step"] <= step


def _majority(successes: Sequence[bool]) -> bool:
    return 2 * sum(successes) >= len(successes)


PARTS: dict[str, Callable[[], list[Row]]] = {
    **{family: partial(rows, family) for family in (FITTED_ON, SCORED_ON)},
    HEALTHY: healthy_rows,
    ATTEMPTED: attempt_rows,
}
