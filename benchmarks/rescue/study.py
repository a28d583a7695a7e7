"""The study's rows and their summary: of the runs that failed, how many their rescue made succeed.

It knows what was measured of a case, not how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from benchmarks.calibration import scores
from benchmarks.records import Row, Rows
from benchmarks.rescue import click, knowledge, selections
from benchmarks.rescue.arms import mean, measured
from benchmarks.rescue.cases import CAUSES, FAILING, Case, Cause, drawn
from opdcore.contract.outcome import Outcome
from opdcore.contract.rescue import RescuePlan
from opdcore.rescue import prove

# Arms beside a rescue that starts cold, each for as many updates as its two stages.
ALONE = ("distilled", "fine_tuned")


def rows(cause: Cause) -> list[Row]:
    """A row for each case of a cause until enough have failed; what was not run yet is run now."""
    return [described(case, told) for case, told in tried(cause)]


def tried(cause: Cause) -> Iterator[tuple[Case, Mapping[str, Any]]]:
    """Cases with their arms, in order, until enough have failed."""
    failed = 0
    for case in drawn(cause):
        if failed == FAILING:
            return
        told = measured(case)
        failed += "plan" in told
        yield case, told


def described(case: Case, told: Mapping[str, Any]) -> Row:
    """A case's row: how it was made, what was planned, and what became of each arm."""
    parent = told["parent"]
    row: dict[str, Any] = {
        "name": case.name,
        "cause": case.cause,
        "seed": case.seed,
        "severity": round(case.severity, 3),
        "parent": parent["outcome"]["code"],
        "before": mean(parent["scores"]["before"]),
        "teacher": mean(parent["scores"]["teacher"]),
        "parent_after": mean(parent["scores"]["after"]),
        "failed": "plan" in told,
        "cpu_seconds": told["cpu_seconds"],
    }
    if "plan" not in told:
        return row
    planned = RescuePlan.model_validate(told["plan"])
    row |= {
        "verdict": planned.verdict.code,
        "called_at": next((said["step"] for said in parent["health"] if said["failing"]), None),
        "start": planned.start.step if planned.start else 0,
        "changes": [f"{change.path} {change.after}" for change in planned.changes],
        "offers": [offer.kind for offer in planned.offers],
    }
    return {**row, **_proof(told)}


def _proof(told: Mapping[str, Any]) -> dict[str, Any]:
    """Both students at their ends against the parent's start."""
    if "child" not in told:
        return {"proof": "not_rescued", "rescued": False, "recovery": None}
    parent, child = told["parent"]["scores"], told["child"]["scores"]
    proof = prove(
        Outcome.model_validate(told["child"]["outcome"]),
        before_scores=parent["before"],
        child_scores=child["after"],
        parent_scores=parent["after"],
        teacher_scores=parent["teacher"],
    )
    return {
        "child_after": mean(child["after"]),
        "proof": proof.code,
        "rescued": proof.code == "rescued",
        "recovery": proof.outcome.recovery,
        **{f"{arm}_after": mean(told[arm]["scores"]["after"]) for arm in ALONE if arm in told},
    }


def summarise(rows: Rows) -> dict[str, Any]:
    """By cause and pooled: how many failing runs were rescued, and how much of the gap they closed."""
    failed = {cause: [row for row in part if row.get("failed")] for cause, part in rows.items()}
    failed = {cause: part for cause, part in failed.items() if cause in CAUSES}
    everyone = [row for part in failed.values() for row in part]
    return {
        "causes": [_cause(cause, part) for cause, part in failed.items() if part],
        "pooled": scores.share([row["rescued"] for row in everyone]),
        "median_recovery": _recovery(everyone),
        knowledge.PART: knowledge.summarise(rows.get(knowledge.PART, ())),
        selections.PART: selections.summarise(rows.get(selections.PART, ())),
        "click_to_first_point_seconds_median": click.summarise(rows.get(click.PART, ())),
        "cpu_hours": round(
            sum(row.get("cpu_seconds", 0) for part in rows.values() for row in part) / 3600, 2
        ),
    }


def _cause(cause: str, rows: Sequence[Row]) -> dict[str, Any]:
    told = {
        "cause": cause,
        "runs": len(rows),
        "rescued": sum(row["rescued"] for row in rows),
        "median_recovery": _recovery(rows),
        "verdicts": scores.counted([row["verdict"] for row in rows]),
    }
    beside = [row for row in rows if all(f"{arm}_after" in row for arm in ALONE)]
    arms = (*ALONE, "child")
    return told | (
        {f"median_{arm}_after": _median(beside, f"{arm}_after") for arm in arms} if beside else {}
    )


def _recovery(rows: Sequence[Row]) -> float | None:
    """The median over all failing runs, those without a rescue counted as none."""
    return round(median(row["recovery"] or 0.0 for row in rows), 3) if rows else None


def _median(rows: Sequence[Row], key: str) -> float:
    return round(median(row[key] for row in rows), 3)


PARTS: dict[str, Callable[[], list[Row]]] = {
    **{cause: partial(rows, cause) for cause in CAUSES},
    knowledge.PART: knowledge.rows,
    selections.PART: selections.rows,
    click.PART: click.rows,
}
