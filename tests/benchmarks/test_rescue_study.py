"""The rescue study draws its cases beforehand, hides their cause from the plan, and counts as by hand."""

import inspect

import pytest

from benchmarks.rescue import cases, pairs, study
from benchmarks.rescue.cases import CAUSES, DRAWN, FAILING, SCORED_ON, TRIED_ON, drawn
from opdcore import rescue
from opdcore.contract.outcome import judge
from opdcore.contract.recipe import Recipe
from opdcore.contract.rescue import RescuePlan
from opdcore.contract.verdicts import Verdict

BEFORE, BAD, GOOD, TEACHER = [0.0] * 90 + [1.0] * 10, [0.0] * 100, [1.0] * 100, [1.0] * 100


def case(number: int = 0):
    return list(drawn("endless"))[number]


def arm(after, before=BEFORE) -> dict:
    return {
        "outcome": judge(before, after, TEACHER).model_dump(),
        "scores": {"before": before, "after": after, "teacher": TEACHER},
        "health": [],
    }


def told(child=None) -> dict:
    """A failing run with a plan, and its rescue where one was run."""
    verdict = Verdict(code="REPETITION_COLLAPSE", go="no_go", confidence="high", explanation="")
    plan = RescuePlan(verdict=verdict, recipe=None).model_dump(mode="json")
    made = {"parent": arm(BAD), "plan": plan, "cpu_seconds": 36.0}
    return made if child is None else made | {"child": arm(child, BAD)}


def test_cases_are_drawn_before_any_is_run_and_severities_spread():
    for cause in CAUSES:
        tried, scored = (list(drawn(cause, family)) for family in (TRIED_ON, SCORED_ON))
        assert scored == list(drawn(cause))
        assert len({one.name for one in (*tried, *scored)}) == 2 * DRAWN
        severities = [one.severity for one in scored[:FAILING]]
        assert max(severities) - min(severities) > 0.4


def test_a_plan_cannot_see_a_cause():
    assert set(inspect.signature(rescue.plan).parameters) == {"verdict", "recipe", "history"}
    for cause in CAUSES:
        stage = pairs.distill(next(iter(drawn(cause))))
        assert cause not in Recipe(name="calibration", stages=(stage,)).model_dump_json()


def test_causes_turn_public_knobs_and_nothing_else():
    plain = pairs.distill(next(iter(drawn("mismatch")))).model_dump()
    turned = {
        cause: {
            key
            for key, value in pairs.distill(next(iter(drawn(cause)))).model_dump().items()
            if value != plain[key]
        }
        for cause in CAUSES
    }
    assert turned == {
        "mismatch": set(),
        "malformed": set(),
        "horizon": set(),
        "biased_top_k": {"normalisation", "k"},
        "endless": {"learning_rate"},
    }


def test_rescues_are_counted_of_the_runs_that_failed_and_none_counts_as_nothing_recovered():
    rows = [study.described(case(i), one) for i, one in enumerate([told(GOOD), told(), told(BAD)])]
    assert [row["proof"] for row in rows] == ["rescued", "not_rescued", "not_rescued"]
    assert rows[0]["recovery"] == pytest.approx(1.0)
    healthy = study.described(case(3), {"parent": arm(GOOD), "cpu_seconds": 36.0})
    summary = study.summarise({"endless": [*rows, healthy]})
    assert summary["causes"] == [
        {
            "cause": "endless",
            "runs": 3,
            "rescued": 1,
            "median_recovery": 0.0,
            "verdicts": {"REPETITION_COLLAPSE": 3},
        }
    ]
    assert summary["pooled"]["n"] == 3
    assert summary["cpu_hours"] == 0.04


def test_only_causes_that_are_known_are_offered():
    assert set(cases.COLD_STARTED) <= set(CAUSES)
