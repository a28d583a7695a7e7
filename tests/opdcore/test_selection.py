"""The choice among candidates: a function of numbers and texts alone."""

import pytest

from opdcore.contract.errors import EngineFailure
from opdcore.contract.prompt import Prompt
from opdcore.contract.select_prompts import SelectPromptsStage
from opdcore.pool import Pool
from opdcore.selection import Measured, candidates, select


def stage(strategy, **knobs):
    return SelectPromptsStage(strategy=strategy, **knobs)


def prompts(*texts):
    return tuple(Prompt(prompt=text) for text in texts)


def pool_of(count, **others):
    return Pool(train=prompts(*(f"train {row}" for row in range(count))), **others)


def by_gap(*pairs):
    """(student, teacher) accuracies by row."""
    student, teacher = zip(*pairs, strict=True)
    return Measured(dict(enumerate(student)), dict(enumerate(teacher)), {})


def by_kl(*values):
    return Measured({}, {}, dict(enumerate(values)))


def reasons(selection):
    return {one.row: one.reason for one in selection.choices}


def test_gap_keeps_what_the_teacher_solves_more_often_the_largest_first():
    found = by_gap((0.5, 0.75), (0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (0.25, 0.75))
    chosen = select(stage("gap", share=1.0), pool_of(5), range(5), found)
    assert chosen.kept == [1, 4, 0]
    assert [one.measure for one in chosen.choices] == [1.0, 0.5, 0.25, 0.0, -1.0]
    assert reasons(chosen) == {0: "kept", 1: "kept", 2: "no_gap", 3: "no_gap", 4: "kept"}
    assert chosen.counts == {"kept": 3, "no_gap": 2}


def test_share_bounds_the_gaps_kept_and_ties_go_to_the_seeds_order():
    found = by_gap((0.0, 0.5), (0.0, 0.5), (0.0, 0.5), (0.0, 1.0))
    chosen = select(stage("gap", share=0.5), pool_of(4), [2, 0, 1, 3], found)
    assert chosen.kept == [3, 2]
    assert reasons(chosen)[0] == reasons(chosen)[1] == "smaller_gap"


def test_a_prompt_that_a_side_was_not_graded_on_is_dropped_as_such():
    found = by_gap((None, 1.0), (0.0, 1.0), (0.0, None))
    chosen = select(stage("gap", share=1.0), pool_of(3), range(3), found)
    assert (chosen.kept, chosen.counts["ungraded"]) == ([1], 2)
    assert chosen.choices[1].measure is None


def test_without_any_gap_the_failure_says_so_with_a_remedy():
    with pytest.raises(EngineFailure) as raised:
        select(stage("gap"), pool_of(2), range(2), by_gap((1.0, 1.0), (0.5, 0.25)))
    info = raised.value.info
    assert info.code == "select_prompts.nothing_left"
    assert "0 of 2 candidates are kept; dropped: 2" in info.message
    assert "nothing new to learn" in info.remedy


def test_low_kl_keeps_the_lowest_share_and_drops_what_is_not_finite():
    chosen = select(
        stage("low_kl", share=0.4), pool_of(5), range(5), by_kl(0.3, 0.1, None, 0.2, 0.4)
    )
    assert chosen.kept == [1, 3]
    assert reasons(chosen) == {
        0: "higher_kl", 1: "kept", 2: "unmeasured", 3: "kept", 4: "higher_kl"
    }  # fmt: skip


@pytest.mark.parametrize(("steps", "kept"), [(0, 2), (9, 2), (10, 4), (25, 6), (40, 10), (400, 10)])
def test_every_refresh_adds_to_the_share_until_all_are_kept(steps, kept):
    knobs = stage("low_kl", share=0.2, expand=0.2, refresh_steps=10)
    chosen = select(knobs, pool_of(10), range(10), by_kl(*range(10)), steps=steps)
    assert chosen.kept == list(range(kept))
    assert chosen.steps == steps


def test_the_random_control_keeps_as_many_and_keeps_them_when_it_grows():
    few, more = (
        select(
            stage("random", share=0.25, expand=0.25, refresh_steps=5),
            pool_of(8),
            [5, 1, 7, 0, 2, 3, 4, 6],
            steps=steps,
        )
        for steps in (0, 5)
    )
    assert (few.kept, more.kept) == ([5, 1], [5, 1, 7, 0])
    assert few.counts == {"kept": 2, "not_drawn": 6}


def test_the_template_strategy_keeps_every_candidate():
    chosen = select(stage("teacher_template", share=0.1), pool_of(4), [3, 1, 0, 2])
    assert chosen.kept == [3, 1, 0, 2]


def test_candidates_are_a_seeded_sample_of_the_train_set():
    pool = pool_of(50)
    drawn = [
        candidates(pool, stage("gap", candidates=20), seed=seed, stage_index=0)
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 20
    more = candidates(pool, stage("gap", candidates=30), seed=1, stage_index=0)
    assert more[:20] == drawn[0]


def test_teacher_content_is_mixed_with_outside_prompts_at_the_share_asked_for():
    content = prompts(*(f"content number {row} about nothing" for row in range(30)))
    outside = prompts(*(f"outside number {row} about nothing" for row in range(100)))
    pool = pool_of(5, teacher_content=content, outside=outside)
    knobs = stage("teacher_content", candidates=80, outside_share=0.25)
    rows = candidates(pool, knobs, seed=0, stage_index=0)
    assert len(rows) == 30 + 20
    chosen = select(knobs, pool, rows)
    kept = [one.source for one in chosen.choices if one.reason == "kept"]
    assert (kept.count("teacher_content"), kept.count("outside")) == (30, 10)
    assert chosen.counts == {"kept": 40, "beyond_outside_share": 10}


def test_without_an_outside_set_the_train_set_stands_in():
    pool = pool_of(10, teacher_content=prompts(*(f"content {row}" for row in range(10))))
    knobs = stage("teacher_content", candidates=20, outside_share=0.5)
    chosen = select(knobs, pool, candidates(pool, knobs, seed=0, stage_index=0))
    assert {one.source for one in chosen.choices} == {"teacher_content", "train"}
    assert len(chosen.kept) == 20


def test_an_outside_prompt_that_repeats_the_teachers_content_is_left_out_with_its_row():
    text = "A farmer has twelve sheep and sells five of them at the market on Monday morning"
    pool = Pool(
        train=prompts("unused"),
        teacher_content=prompts(text),
        outside=prompts(text.upper(), f"{text} early", "How far is the moon?"),
    )
    knobs = stage("teacher_content", candidates=10, outside_share=0.5)
    chosen = select(knobs, pool, candidates(pool, knobs, seed=3, stage_index=1))
    found = {one.row: (one.reason, one.like_row, one.source_row) for one in chosen.choices}
    assert found == {
        1: ("kept", None, 0),
        2: ("duplicate", 1, 0),
        3: ("near_duplicate", 1, 1),
        4: ("kept", None, 2),
    }


def test_a_pool_tells_where_each_row_comes_from():
    pool = Pool(train=prompts("a", "b"), teacher_content=prompts("c"), outside=prompts("d", "e"))
    assert [pool[row].prompt for row in range(5)] == ["a", "b", "c", "d", "e"]
    assert [pool.place(row) for row in (1, 2, 4)] == [
        ("train", 1), ("teacher_content", 0), ("outside", 1)
    ]  # fmt: skip
