"""The calibration study draws its triples beforehand and scores them as by hand."""

from itertools import product
from random import Random
from statistics import fmean

import numpy as np
import pytest

from benchmarks.calibration import pairs, scores, study
from benchmarks.calibration.pairs import Lesson
from benchmarks.calibration.triples import (
    KINDS,
    RELATIONS,
    RIGHT_CODES,
    SCORED_ON,
    TRIPLES,
    Triple,
    plan,
)
from opdcore.contract.verdicts import BEFORE
from opdcore.lab import sums
from opdcore.lab.record import read_prompts
from opdcore.lab.solutions import ANSWER_MARKS, text_of
from opdcore.lab.sums import ENDS


def test_each_kind_has_enough_triples_and_severities_spread_over_their_range():
    drawn = plan(SCORED_ON)
    assert drawn == plan(SCORED_ON)
    assert len({triple.name for triple in drawn}) == len(drawn) >= 60
    for kind in KINDS:
        severities = [triple.severity for triple in drawn if triple.kind == kind]
        assert len(severities) == TRIPLES[SCORED_ON] >= 12
        assert min(severities) < 0.25
        assert max(severities) > 0.75


def test_every_kind_has_codes_that_are_verdicts_before_a_run():
    assert set(RIGHT_CODES) == set(RELATIONS) == {*KINDS, "same_pipeline"}
    assert {code for codes in RIGHT_CODES.values() for code in codes} <= set(BEFORE)


def test_auroc_counts_pairs_and_ties_half():
    values = np.array([0.1, 0.4, 0.4, 0.8, 0.2])
    truth = np.array([False, True, False, True, False])
    against = [
        1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(values[truth], values[~truth])
    ]
    assert scores.auroc(values, truth) == pytest.approx(fmean(against))


def row(kind, *, succeeded, verdict, go, first_failing_step=None):
    return {
        "kind": kind,
        "succeeded": succeeded,
        "right_codes": ["GO"] if succeeded else list(RIGHT_CODES[kind]),
        "verdict": verdict,
        "go": go,
        "collapse_step": None,
        "first_failing_step": first_failing_step,
        "measures": dict.fromkeys(study.PREDICTORS, float(succeeded)),
        "cpu_seconds": 36.0,
    }


def test_the_summary_scores_verdicts_against_what_happened():
    rows = [
        row("learnable", succeeded=True, verdict="GO", go="go"),
        row("learnable", succeeded=True, verdict="GO", go="go", first_failing_step=40),
        row("mismatch", succeeded=False, verdict="PATTERN_MISMATCH", go="no_go", first_failing_step=9),
        row("mismatch", succeeded=True, verdict="PATTERN_MISMATCH", go="no_go"),
        row("mismatch", succeeded=False, verdict="GO", go="undecided", first_failing_step=90),
    ]  # fmt: skip
    told = study.summarise({SCORED_ON: rows})
    assert told["triples"] == 5
    assert told["verdict_accuracy"]["macro"] == pytest.approx((1 + 1 / 3) / 2, abs=1e-4)
    assert told["go_accuracy"]["value"] == pytest.approx(3 / 5)
    assert told["majority_baseline"]["value"] == pytest.approx(3 / 5)
    assert told["named_by_fifth"]["value"] == pytest.approx(1 / 2)
    assert told["false_alarms"]["value"] == pytest.approx(1 / 2)
    assert told["alarms_in_others_that_succeeded"]["value"] == 0
    signs = {entry["measure"]: entry["auroc"] for entry in told["predictors"]}
    assert signs == {key: float(sign > 0) for key, sign in study.PREDICTORS.items()}


@pytest.mark.parametrize(
    ("course", "step"),
    [
        ([0.5] * 40 + [0.2] * 40, 41),
        ([0.5] * 40 + [0.2] * 20 + [0.6] * 40, None),
        ([0.2] * 80, None),
        ([0.5] * 80, None),
    ],
)
def test_a_collapse_begins_where_accuracy_stays_low(course, step):
    found = study.onset(course)
    assert found == step if step is None else abs(found - step) <= 5


def test_a_teacher_of_the_horizon_kind_turns_within_its_solution():
    """In style L up to a step, in style K from there on, and right to the end."""
    rng, lesson = Random(0), Lesson(1, 1e-3, "full", turn=2)
    deep = next(each for each in iter(lambda: sums.draw(rng), None) if len(each.terms) == 4)
    text = text_of(pairs.written(deep, lesson, rng))
    assert text.endswith(f"{ANSWER_MARKS['K']} {deep.answer}")
    assert text.count(ENDS["L"]) == 2
    assert text.count(ENDS["K"]) == 2


def test_a_lesson_without_steps_leaves_the_ancestor_as_it_is(tmp_path):
    made = pairs.made(Triple("sums", "reverse", 0, 0, 0.99), tmp_path / "made")
    lab = pairs.laboratory("sums", 0)
    for folder, origin in ((made.student, "teacher"), (made.teacher, "student")):
        weights = (folder / "model.safetensors").read_bytes()
        assert weights == (lab / origin / "model.safetensors").read_bytes()
    assert made.train == lab / "train.jsonl"


def test_the_prompts_of_horizon_are_the_longest(tmp_path):
    for name in ("train.jsonl", "held_out.jsonl"):
        pairs.keep_longest(pairs.laboratory("sums", 0) / name, tmp_path / name)
        tags = [each.tags for each in read_prompts(tmp_path / name)]
        assert len(tags) > 50
        assert all("steps-4" in each for each in tags)
