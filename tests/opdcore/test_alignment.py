from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opdcore.alignment import COLUMNS, by_position, concatenate, summarise
from opdcore.alignment import measure as measure_comparison
from opdcore.comparison import compare
from opdcore.contract.metrics import POSITION_METRICS
from tests.opdcore import naive
from tests.opdcore.naive import make_ids, make_logits


def measure(student_logits, teacher_logits, ids, *, k, ranked=None):
    """Return the alignment of two tables of logits, which stay as they are."""
    comparison = compare(student_logits.clone(), teacher_logits.clone(), k=ranked or k)
    return measure_comparison(comparison, ids, k=k)


def make_alignment(rows=6, vocabulary=11, *, k=4, seed=0, scale=2.0):
    student = make_logits(rows, vocabulary, seed=seed, scale=scale).log_softmax(-1)
    teacher = make_logits(rows, vocabulary, seed=seed + 1, scale=scale).log_softmax(-1)
    return measure(student, teacher, make_ids(rows, vocabulary, seed=seed), k=k)


def columns_of(alignment):
    """Return the metrics as lists, with None where a value is not defined."""
    return {
        name: [None if math.isnan(x) else x for x in getattr(alignment, name).tolist()]
        for name in COLUMNS
    }


def opposite_sides():
    """Return one position whose sides share no likely token."""
    logits = torch.arange(11.0)[None]
    return logits.log_softmax(-1), (-logits).log_softmax(-1), torch.tensor([3])


def test_the_columns_are_the_contracts_metrics_by_position():
    assert set(COLUMNS) == set(POSITION_METRICS)


@pytest.mark.parametrize("scale", [0.05, 1.0, 4.0, 12.0])
@pytest.mark.parametrize("k", [1, 4, 11])
def test_every_metric_is_what_its_definition_says(k, scale):
    rows, vocabulary = 12, 11
    student = make_logits(rows, vocabulary, seed=k, scale=scale)
    # Related sides, so that overlaps of every size occur.
    teacher = student + make_logits(rows, vocabulary, seed=k + 1, scale=scale)
    ids = make_ids(rows, vocabulary, seed=k)
    measured = measure(student.log_softmax(-1), teacher.log_softmax(-1), ids, k=k)
    for row in range(rows):
        expected = naive.metrics(
            naive.log_softmax(student[row].tolist()),
            naive.log_softmax(teacher[row].tolist()),
            ids[row].item(),
            k,
        )
        got = {name: getattr(measured, name)[row].item() for name in COLUMNS}
        assert got == pytest.approx(expected, abs=2e-5, rel=1e-5, nan_ok=True)


def test_identical_models_agree_in_everything():
    logprobs = make_logits(40, 50).log_softmax(-1)
    means = summarise(measure(logprobs, logprobs.clone(), make_ids(40, 50), k=16))
    ones = ["overlap_ratio", "effective_overlap", "overlap_at_uncertain", "top1_agreement"]
    zeros = ["entropy_gap", "reverse_kl", "forward_kl", "overlap_kl", "overlap_token_advantage"]
    assert [means[name] for name in ones] == [1, 1, 1, 1]
    assert [means[name] for name in zeros] == [0, 0, 0, 0, 0]
    assert means["token_reward"] == means["empty_overlap_share"] == 0
    assert means["overlap_mass_student"] == means["overlap_mass_teacher"]


def test_an_empty_overlap_has_no_advantage_and_no_divergence():
    means = summarise(measure(*opposite_sides(), k=4))
    assert means["overlap_token_advantage"] is None
    assert means["overlap_kl"] is None
    assert means["empty_overlap_share"] == 1
    assert means["overlap_ratio"] == 0
    assert means["overlap_mass_student"] == means["overlap_mass_teacher"] == 0
    assert means["effective_overlap"] == 0
    assert means["top1_agreement"] == 0


def test_no_token_above_a_thousandth_leaves_the_effective_overlap_undefined():
    uniform = torch.zeros(2, 2000).log_softmax(-1)
    means = summarise(measure(uniform, uniform, torch.tensor([0, 1]), k=16))
    assert means["effective_overlap"] is None
    assert means["overlap_ratio"] == 1


def test_certain_positions_are_left_out_of_the_overlap_at_uncertain_ones():
    student, teacher, ids = opposite_sides()
    peaked, flat = torch.zeros(1, 11), torch.zeros(1, 11)
    peaked[0, 0] = 30
    alignment = measure(
        torch.cat([peaked, flat]).log_softmax(-1),
        torch.cat([peaked, flat]).log_softmax(-1),
        torch.tensor([0, 0]),
        k=4,
    )
    assert columns_of(alignment)["overlap_at_uncertain"] == [None, 1]
    assert columns_of(measure(student, teacher, ids, k=4))["overlap_at_uncertain"] == [0]


def test_the_advantage_is_minus_the_divergence_over_the_size_of_the_overlap():
    alignment = make_alignment(60, k=6)
    sizes = alignment.overlap_ratio * 6
    expected = -alignment.overlap_kl / sizes
    torch.testing.assert_close(alignment.overlap_token_advantage, expected, equal_nan=True)


def test_a_mean_skips_the_positions_where_a_metric_is_not_defined():
    parts = [make_alignment(5, k=4), measure(*opposite_sides(), k=4)]
    alone, together = summarise(parts[0]), summarise(concatenate(parts))
    assert together["overlap_kl"] == pytest.approx(alone["overlap_kl"])
    assert together["overlap_ratio"] == pytest.approx(alone["overlap_ratio"] * 5 / 6)
    assert together["empty_overlap_share"] == pytest.approx(1 / 6)


def test_no_position_has_no_mean():
    assert set(summarise(make_alignment(0)).values()) == {None}


def test_a_broken_model_shows_as_nan_and_not_as_missing():
    logprobs = make_logits(3).log_softmax(-1)
    means = summarise(measure(logprobs * torch.nan, logprobs, make_ids(3), k=4))
    assert math.isnan(means["reverse_kl"])
    assert math.isnan(means["student_entropy"])


def test_chunks_hold_the_means_of_their_positions():
    alignment = make_alignment(30)
    positions = torch.arange(30) % 10
    chunks = by_position(alignment, positions, edges=[0, 4, 10])
    for name, column in columns_of(alignment).items():
        early = [x for x, at in zip(column, positions.tolist(), strict=True) if at < 4]
        late = [x for x, at in zip(column, positions.tolist(), strict=True) if at >= 4]
        expected = [_mean(early), _mean(late)]
        assert chunks[name] == pytest.approx(expected, abs=1e-6)


def _mean(values):
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def test_a_chunk_without_positions_is_missing_and_outsiders_are_left_out():
    alignment = make_alignment(4)
    chunks = by_position(alignment, torch.tensor([1, 5, 9, 25]), edges=[4, 6, 8, 20])
    ratios = alignment.overlap_ratio.tolist()
    assert chunks["overlap_ratio"] == [pytest.approx(ratios[1]), None, pytest.approx(ratios[2])]


def test_one_chunk_over_everything_is_the_summary():
    alignment = make_alignment(20)
    chunks = by_position(alignment, torch.arange(20), edges=[0, 20])
    assert {name: means[0] for name, means in chunks.items()} == summarise(alignment)


@pytest.mark.parametrize("edges", [[], [3], [0, 4, 4], [5, 2]])
def test_edges_that_do_not_rise_are_refused(edges):
    with pytest.raises(ValueError, match="do not rise"):
        by_position(make_alignment(2), torch.tensor([0, 1]), edges=edges)


def test_k_above_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="k = 12"):
        make_alignment(k=12)


def test_a_wider_ranking_serves_a_smaller_k():
    student, teacher = (make_logits(seed=seed).log_softmax(-1) for seed in (0, 1))
    wide = measure(student, teacher, make_ids(), k=4, ranked=9)
    assert columns_of(wide) == columns_of(measure(student, teacher, make_ids(), k=4))


def test_concatenating_nothing_is_refused():
    with pytest.raises(ValueError, match="no alignment"):
        concatenate([])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 11), scale=st.floats(0.1, 8.0))
def test_swapping_the_sides_swaps_what_belongs_to_a_side_and_keeps_the_rest(seed, k, scale):
    student, teacher = (
        make_logits(seed=seed + side, scale=scale).log_softmax(-1) for side in (0, 1)
    )
    ours = measure(student, teacher, make_ids(), k=k)
    theirs = measure(teacher, student, make_ids(), k=k)
    for name in ("overlap_ratio", "effective_overlap", "entropy_gap", "top1_agreement"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), equal_nan=True)
    torch.testing.assert_close(ours.reverse_kl, theirs.forward_kl, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.overlap_mass_student, theirs.overlap_mass_teacher)
    torch.testing.assert_close(ours.token_reward, -theirs.token_reward)
    assert (ours.reverse_kl > -1e-5).all()
    assert (ours.overlap_mass_student <= 1 + 1e-6).all()
    assert not (ours.overlap_token_advantage > 1e-6).any()
