from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opdcore.comparison import compare
from opdcore.losses import position_losses, sampled
from opdcore.support import TopK, among, select, top_k_ids
from tests.opdcore import naive
from tests.opdcore.naive import (
    all_objectives,
    biased_objectives,
    make_ids,
    make_logits,
    make_objective,
    title,
)

EVERY = pytest.mark.parametrize("objective", all_objectives(), ids=title)
BIASED = pytest.mark.parametrize("objective", biased_objectives(), ids=title)
TRUNCATED = [objective for objective in all_objectives() if objective.form == "top_k"]


def losses_and_gradient(student_logits, teacher_logits, ids, objective, *, k=None):
    """Return the (N,) losses and the gradient of their sum in the student's logits."""
    logits = student_logits.clone()
    comparison = compare(logits, teacher_logits.clone(), k=k or objective.k)
    scale = torch.ones(len(logits), 1)
    losses = position_losses(comparison, ids, objective=objective, scale=scale, gradient=logits)
    return losses, logits


def naive_rows(function, student_logits, teacher_logits, ids, objective):
    sides = zip(student_logits.tolist(), teacher_logits.tolist(), ids.tolist(), strict=True)
    return torch.tensor(
        [function(naive.log_softmax(s), naive.log_softmax(t), i, objective) for s, t, i in sides]
    )


@pytest.mark.parametrize("objective", [*all_objectives(), *biased_objectives()], ids=title)
@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
def test_a_loss_and_its_gradient_are_what_the_definition_says(objective, scale):
    ids = make_ids(seed=3)
    student = make_logits(seed=3, scale=scale)
    # Related sides, so that overlaps of every size occur.
    teacher = student + make_logits(seed=4, scale=scale)
    losses, gradient = losses_and_gradient(student, teacher, ids, objective)
    expected = naive_rows(naive.loss, student, teacher, ids, objective)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)
    expected = naive_rows(naive.gradient, student, teacher, ids, objective)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


@EVERY
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(objective):
    logits = make_logits(seed=5)
    losses, gradient = losses_and_gradient(logits, logits, make_ids(), objective)
    torch.testing.assert_close(losses, torch.zeros_like(losses), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


@pytest.mark.parametrize("divergence", naive.DIVERGENCES)
@pytest.mark.parametrize("support", ["student", "teacher", "intersection", "union"])
@pytest.mark.parametrize("normalisation", naive.NORMALISATIONS)
def test_a_support_of_the_whole_vocabulary_gives_the_full_divergence(
    divergence, support, normalisation
):
    student, teacher, ids = make_logits(seed=6), make_logits(seed=7), make_ids()
    objective = make_objective(
        divergence=divergence, support=support, normalisation=normalisation, k=11
    )
    ours = losses_and_gradient(student, teacher, ids, objective)
    full = make_objective("full", divergence=divergence)
    theirs = losses_and_gradient(student, teacher, ids, full)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalisation", naive.NORMALISATIONS)
def test_nothing_differs_where_the_whole_vocabulary_is_common(normalisation):
    objective = make_objective(support="symmetric_difference", normalisation=normalisation, k=11)
    losses, gradient = losses_and_gradient(
        make_logits(seed=6), make_logits(seed=7), make_ids(), objective
    )
    assert losses.abs().max() < 1e-6
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("form", ["full", "top_k"])
@pytest.mark.parametrize("normalisation", naive.NORMALISATIONS)
def test_the_jsd_tends_to_the_forward_and_to_the_reverse_kl(form, normalisation):
    student, teacher = make_logits(seed=6, scale=0.7), make_logits(seed=7, scale=0.7)
    for beta, divergence in ((1e-3, "forward"), (1 - 1e-3, "reverse")):
        jsd = make_objective(form, divergence="jsd", normalisation=normalisation, jsd_beta=beta)
        _, gradient = losses_and_gradient(student, teacher, make_ids(), jsd)
        end = make_objective(form, divergence=divergence, normalisation=normalisation)
        _, limit = losses_and_gradient(student, teacher, make_ids(), end)
        torch.testing.assert_close(gradient / 1e-3, limit, atol=2e-3, rtol=0.02)


@pytest.mark.parametrize("support", naive.SUPPORTS)
def test_the_unnormalised_reverse_pushes_probability_mass_out_of_its_support(support):
    student, teacher, ids = make_logits(seed=8), make_logits(seed=9), make_ids()
    biased = make_objective(support=support, normalisation="unnormalised")
    sound = make_objective(support=support)
    _, pushed = losses_and_gradient(student, teacher, ids, biased)
    _, plain = losses_and_gradient(student, teacher, ids, sound)
    torch.testing.assert_close(
        pushed - plain, mass_gradient(support, student, teacher), atol=1e-5, rtol=0
    )


def mass_gradient(support, student, teacher):
    """dm_S/dz by autograd, m_S the student's mass on the support."""
    chosen = select(support, TopK(top_k_ids(student, 4), top_k_ids(teacher, 4)))
    logits = student.clone().requires_grad_()
    p = logits.softmax(-1).gather(1, chosen.ids).masked_fill(~chosen.mask, 0.0)
    return torch.autograd.grad(p.sum(), logits)[0]


@BIASED
def test_an_unnormalised_gradient_does_not_vanish_at_agreement(objective):
    logits = make_logits(seed=5)
    _, gradient = losses_and_gradient(logits, logits, make_ids(), objective)
    empty = objective.support == "symmetric_difference"
    assert (gradient.abs().max() < 1e-6) == empty


def expected_gradient(objective, *, rows=9):
    """Return the gradient in expectation over the sampled token, and the student and teacher."""
    student, teacher = make_logits(1, rows, seed=10), make_logits(1, rows, seed=11)
    _, gradients = losses_and_gradient(
        student.expand(rows, rows), teacher.expand(rows, rows), torch.arange(rows), objective
    )
    return student.softmax(-1) @ gradients, student, teacher


@pytest.mark.parametrize(
    ("sampled_loss", "divergence"),
    [("policy_gradient", "reverse"), ("k2", "reverse"), ("k3", "forward")],
)
def test_the_sampled_gradient_is_a_full_one_in_expectation(sampled_loss, divergence):
    ours, student, teacher = expected_gradient(make_objective("sampled", sampled_loss=sampled_loss))
    full = make_objective("full", divergence=divergence)
    _, theirs = losses_and_gradient(student, teacher, make_ids(1, 9), full)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_small_power_is_the_log_ratio_and_any_power_is_bounded():
    student, teacher, ids = make_logits(seed=1), make_logits(seed=2, scale=6.0), make_ids()
    plain = losses_and_gradient(student, teacher, ids, make_objective("sampled"))
    small = make_objective("sampled", reward_power=1e-3)
    torch.testing.assert_close(
        losses_and_gradient(student, teacher, ids, small), plain, atol=0.1, rtol=0.02
    )
    _, gradient = losses_and_gradient(
        student, teacher, ids, make_objective("sampled", reward_power=2.0)
    )
    assert gradient.abs().max() <= 1 / 2


def test_a_clamp_bounds_what_one_token_can_do():
    student, teacher = torch.zeros(1, 5), torch.tensor([[0.0, 0.0, 0.0, 0.0, -60.0]])
    for objective in (
        make_objective("sampled", reward_clamp=2.0),
        make_objective(reward_clamp=2.0),
    ):
        _, gradient = losses_and_gradient(student, teacher, torch.tensor([4]), objective)
        assert gradient.abs().max() <= 2.0


@pytest.mark.parametrize(
    ("estimate", "divergence"), [(sampled.k1, "reverse"), (sampled.k3, "reverse")]
)
def test_the_mean_of_an_unbiased_estimate_tends_to_the_reverse_kl(estimate, divergence):
    student, teacher = make_logits(1, 9, seed=12, scale=1), make_logits(1, 9, seed=13, scale=1)
    ids = torch.multinomial(
        student.softmax(-1)[0], 50_000, replacement=True, generator=torch.manual_seed(0)
    )
    p, q = (side.log_softmax(-1)[0][ids, None] for side in (student, teacher))
    estimates = estimate(p, q)
    objective = make_objective("full", divergence=divergence)
    full, _ = losses_and_gradient(student, teacher, ids[:1], objective)
    assert abs(estimates.mean() - full.item()) < 4 * estimates.std() / 50_000**0.5


def test_k1_carries_no_gradient():
    p = make_logits().requires_grad_().log_softmax(-1)[:, :1]
    assert not sampled.k1(p, make_logits(seed=1)[:, :1]).requires_grad


@pytest.mark.parametrize("divergence", naive.DIVERGENCES)
@pytest.mark.parametrize("support", ["student", "teacher", "intersection"])
def test_renormalising_a_single_token_teaches_nothing(support, divergence):
    objective = make_objective(
        normalisation="renormalised", support=support, divergence=divergence, k=1
    )
    losses, gradient = losses_and_gradient(
        make_logits(seed=14), make_logits(seed=15), make_ids(), objective
    )
    assert losses.abs().max() < 1e-7
    assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("normalisation", naive.NORMALISATIONS)
@pytest.mark.parametrize("divergence", naive.DIVERGENCES)
def test_an_empty_intersection_gives_nothing_to_learn(divergence, normalisation):
    objective = make_objective(
        support="intersection", divergence=divergence, normalisation=normalisation
    )
    student = torch.arange(11.0)[None]
    losses, gradient = losses_and_gradient(student, -student, torch.tensor([0]), objective)
    assert losses.item() == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("divergence", naive.DIVERGENCES)
def test_a_tail_too_small_for_float32_still_pulls(divergence):
    student = torch.tensor([[20.0, 19.0, 0.5, -1.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.5, 0.5, 0.0, 1.5]])
    objective = make_objective(normalisation="tail_bucket", divergence=divergence, k=2)
    arguments = (student, teacher, torch.tensor([0]), objective)
    _, gradient = losses_and_gradient(*arguments)
    expected = naive_rows(naive.gradient, *arguments)
    assert divergence != "forward" or expected[0, 4] < -0.1
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_a_wider_ranking_serves_a_smaller_k():
    student, teacher, ids = make_logits(seed=16), make_logits(seed=17), make_ids()
    for objective in TRUNCATED:
        ours = losses_and_gradient(student, teacher, ids, objective, k=9)
        torch.testing.assert_close(
            ours, losses_and_gradient(student, teacher, ids, objective), atol=0, rtol=0
        )


def test_a_position_is_scaled_as_it_is_told():
    student, teacher, ids = make_logits(seed=16), make_logits(seed=17), make_ids()
    scale = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, 0.0])[:, None]
    for objective in all_objectives():
        _, gradient = losses_and_gradient(student, teacher, ids, objective)
        logits = student.clone()
        comparison = compare(logits, teacher.clone(), k=4)
        position_losses(comparison, ids, objective=objective, scale=scale, gradient=logits)
        torch.testing.assert_close(logits, scale * gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (make_objective("sampled", divergence="forward"), "'sampled' with 'forward'"),
        (make_objective("sampled", divergence="jsd"), "'sampled' with 'jsd'"),
        (make_objective("sampled", sampled_loss="k1"), "'k1'"),
        (make_objective("partial"), "'partial'"),
        (make_objective(divergence="sideways"), "'sideways'"),
        (make_objective(divergence="sideways", normalisation="renormalised"), "'sideways'"),
        (make_objective(divergence="jsd", normalisation="unnormalised"), "'unnormalised'"),
        (make_objective(normalisation="none"), "'none'"),
        (make_objective(support="both"), "'both'"),
        (make_objective(k=12), "k = 12"),
        (make_objective(k=0), "k = 0"),
    ],
)
def test_an_objective_that_makes_no_sense_is_refused_with_its_value(wrong, named):
    logits = make_logits()
    with pytest.raises(ValueError, match=named):
        losses_and_gradient(logits, logits, make_ids(), wrong, k=wrong.k if wrong.k != 4 else 4)


def test_a_ranking_narrower_than_k_is_refused():
    with pytest.raises(ValueError, match="k = 4"):
        losses_and_gradient(make_logits(), make_logits(), make_ids(), make_objective(k=4), k=3)


def test_a_union_holds_a_common_token_once():
    top = TopK(torch.tensor([[3, 1, 4]]), torch.tensor([[1, 5, 3]]))
    union = select("union", top)
    assert union.ids[union.mask].tolist() == [3, 1, 4, 5]


def test_a_symmetric_difference_holds_what_one_side_alone_has():
    top = TopK(torch.tensor([[3, 1, 4]]), torch.tensor([[1, 5, 3]]))
    difference = select("symmetric_difference", top)
    assert difference.ids[difference.mask].tolist() == [4, 5]


def test_an_intersection_may_differ_in_size_from_row_to_row():
    top = TopK(torch.tensor([[0, 1], [0, 1]]), torch.tensor([[1, 0], [2, 3]]))
    intersection = select("intersection", top)
    assert intersection.mask.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("k", [3, 64, 65, 90])
def test_membership_is_the_same_compared_or_searched(k):
    ids = torch.stack([torch.randperm(100, generator=torch.manual_seed(i))[:k] for i in range(5)])
    others = torch.stack(
        [torch.randperm(100, generator=torch.manual_seed(9 + i))[:k] for i in range(5)]
    )
    rows = zip(ids.tolist(), others.tolist(), strict=True)
    assert among(ids, others).tolist() == [[one in theirs for one in ours] for ours, theirs in rows]


@pytest.mark.parametrize("vocabulary", [4096, 5000, 9999])
@pytest.mark.parametrize("k", [1, 16, 40])
def test_a_wide_row_is_ranked_as_topk_ranks_it(vocabulary, k):
    logprobs = make_logits(5, vocabulary, seed=k).log_softmax(-1)
    assert logprobs.gather(1, top_k_ids(logprobs, k)).equal(logprobs.topk(k, dim=-1).values)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 11), scale=st.floats(0.1, 6.0))
def test_merging_the_tail_never_raises_a_divergence(seed, k, scale):
    student, teacher = make_logits(seed=seed, scale=scale), make_logits(seed=seed + 1, scale=scale)
    for divergence in naive.DIVERGENCES:
        whole = make_objective("full", divergence=divergence)
        full, _ = losses_and_gradient(student, teacher, make_ids(), whole)
        for support in naive.SUPPORTS:
            merged = make_objective(
                normalisation="tail_bucket", divergence=divergence, support=support, k=k
            )
            losses, _ = losses_and_gradient(student, teacher, make_ids(), merged)
            assert (losses >= -1e-5).all()
            assert (losses <= full + 1e-4).all()
