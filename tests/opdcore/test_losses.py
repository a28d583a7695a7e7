from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opdcore.losses import position_losses, sampled_token_k1
from opdcore.support import Support, TopK, members, select, top_k, top_k_ids
from tests.opdcore import naive
from tests.opdcore.naive import all_objectives, make_ids, make_logits, make_objective, title

EVERY = pytest.mark.parametrize("objective", all_objectives(), ids=title)
TOP_K = [objective for objective in all_objectives() if objective.form == "top_k"]


def losses_and_gradient(student_logits, teacher_logits, ids, objective, *, top=None):
    """Return the (N,) losses and the gradient of their sum in the student's logits."""
    logits = student_logits.clone().requires_grad_()
    losses = position_losses(
        logits.log_softmax(-1), teacher_logits.log_softmax(-1), ids, objective=objective, top=top
    )
    losses.sum().backward()
    return losses.detach(), logits.grad


def naive_rows(function, student_logits, teacher_logits, ids, objective):
    sides = zip(student_logits.tolist(), teacher_logits.tolist(), ids.tolist(), strict=True)
    return torch.tensor(
        [function(naive.log_softmax(s), naive.log_softmax(t), i, objective) for s, t, i in sides]
    )


def biased_unnormalised_top_k(student_logprobs, teacher_logprobs, ids):
    """sum_S p log(p/q) with log p differentiated too: the form we do not offer."""
    p, q = student_logprobs.gather(1, ids), teacher_logprobs.gather(1, ids)
    return (p.exp() * (p - q)).sum(-1)


@EVERY
def test_a_loss_is_what_its_definition_says(objective):
    student, teacher, ids = make_logits(seed=1), make_logits(seed=2), make_ids()
    losses, _ = losses_and_gradient(student, teacher, ids, objective)
    expected = naive_rows(naive.loss, student, teacher, ids, objective)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)


@EVERY
def test_a_gradient_is_the_analytic_one(objective):
    student, teacher, ids = make_logits(seed=3), make_logits(seed=4), make_ids(seed=3)
    _, gradient = losses_and_gradient(student, teacher, ids, objective)
    expected = naive_rows(naive.gradient, student, teacher, ids, objective)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=0)


@EVERY
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(objective):
    logits = make_logits(seed=5)
    losses, gradient = losses_and_gradient(logits, logits, make_ids(), objective)
    torch.testing.assert_close(losses, torch.zeros_like(losses), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


@pytest.mark.parametrize("objective", all_objectives(k=11)[3:], ids=title)
def test_a_support_of_the_whole_vocabulary_gives_the_full_kl(objective):
    student, teacher, ids = make_logits(seed=6), make_logits(seed=7), make_ids()
    full = make_objective("full", divergence=objective.divergence)
    ours = losses_and_gradient(student, teacher, ids, objective)
    theirs = losses_and_gradient(student, teacher, ids, full)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("support", naive.SUPPORTS)
def test_the_unnormalised_form_pushes_probability_mass_out_of_its_support(support):
    student, teacher, ids = make_logits(seed=8), make_logits(seed=9), make_ids()
    logits = student.clone().requires_grad_()
    p, q = logits.log_softmax(-1), teacher.log_softmax(-1)
    chosen = select(support, top_k(p, q, k=4), vocabulary=11)
    inside = members(chosen, vocabulary=11)
    # One row at a time: an intersection's and a union's rows differ in size.
    for row in range(len(logits)):
        tokens = inside[row].nonzero().T
        biased_unnormalised_top_k(p[row : row + 1], q[row : row + 1], tokens).sum().backward(
            retain_graph=True
        )
    a = (p - q).detach()
    unnormalised = p.detach().exp() * ((a + 1) * inside - _inner(p, a + 1, inside))
    torch.testing.assert_close(logits.grad, unnormalised, atol=1e-5, rtol=0)

    objective = make_objective(support=support)
    _, stop_gradient = losses_and_gradient(student, teacher, ids, objective)
    bias = p.detach().exp() * (inside.float() - _inner(p, torch.ones_like(a), inside))
    torch.testing.assert_close(logits.grad - stop_gradient, bias, atol=1e-5, rtol=0)
    mass_gradient = torch.autograd.grad((p.exp() * inside).sum(), logits)[0]
    torch.testing.assert_close(bias, mass_gradient, atol=1e-5, rtol=0)


def _inner(logprobs, values, inside):
    return (logprobs.detach().exp() * values * inside).sum(-1, keepdim=True)


def test_the_sampled_gradient_is_the_full_one_in_expectation_over_the_token():
    student, teacher = make_logits(1, 9, seed=10), make_logits(1, 9, seed=11)
    every_token = torch.arange(9)
    objective = make_objective("sampled")
    _, gradients = losses_and_gradient(
        student.expand(9, 9), teacher.expand(9, 9), every_token, objective
    )
    expected = student.softmax(-1) @ gradients
    _, full = losses_and_gradient(student, teacher, every_token[:1], make_objective("full"))
    torch.testing.assert_close(expected, full, atol=1e-6, rtol=0)


def test_the_mean_of_k1_tends_to_the_reverse_kl():
    student, teacher = make_logits(1, 9, seed=12), make_logits(1, 9, seed=13)
    ids = torch.multinomial(
        student.softmax(-1)[0], 50_000, replacement=True, generator=torch.manual_seed(0)
    )
    p, q = (side.log_softmax(-1).expand(50_000, 9) for side in (student, teacher))
    k1 = sampled_token_k1(p, q, ids)
    full = position_losses(p[:1], q[:1], ids[:1], objective=make_objective("full"))
    assert abs(k1.mean() - full.item()) < 4 * k1.std() / 50_000**0.5


def test_k1_carries_no_gradient():
    p = make_logits().requires_grad_().log_softmax(-1)
    assert not sampled_token_k1(p, make_logits(seed=1).log_softmax(-1), make_ids()).requires_grad


@pytest.mark.parametrize("divergence", naive.DIVERGENCES)
@pytest.mark.parametrize("support", ["student", "teacher", "intersection"])
def test_renormalising_a_single_token_teaches_nothing(support, divergence):
    objective = make_objective(
        normalisation="renormalised", support=support, divergence=divergence, k=1
    )
    losses, gradient = losses_and_gradient(
        make_logits(seed=14), make_logits(seed=15), make_ids(), objective
    )
    assert losses.abs().max() == 0
    assert gradient.abs().max() == 0


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
    assert divergence == "reverse" or expected[0, 4] < -0.1
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_a_wider_ranking_serves_a_smaller_k():
    student, teacher, ids = make_logits(seed=16), make_logits(seed=17), make_ids()
    wide = top_k(student, teacher, k=9)
    for objective in TOP_K:
        ours = losses_and_gradient(student, teacher, ids, objective, top=wide)
        torch.testing.assert_close(
            ours, losses_and_gradient(student, teacher, ids, objective), atol=0, rtol=0
        )


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (make_objective("sampled", divergence="forward"), "'sampled' with 'forward'"),
        (make_objective("partial"), "'partial'"),
        (make_objective(divergence="sideways"), "'sideways'"),
        (make_objective(normalisation="none"), "'none'"),
        (make_objective(support="symmetric_difference"), "'symmetric_difference'"),
        (make_objective(k=12), "k = 12"),
        (make_objective(k=0), "k = 0"),
    ],
)
def test_an_objective_that_makes_no_sense_is_refused_with_its_value(wrong, named):
    logprobs = make_logits().log_softmax(-1)
    with pytest.raises(ValueError, match=named):
        position_losses(logprobs, logprobs, make_ids(), objective=wrong)


def test_a_ranking_narrower_than_k_is_refused():
    logprobs = make_logits().log_softmax(-1)
    top = top_k(logprobs, logprobs, k=3)
    with pytest.raises(ValueError, match="k = 4"):
        position_losses(logprobs, logprobs, make_ids(), objective=make_objective(k=4), top=top)


def test_a_union_holds_a_common_token_once():
    top = TopK(torch.tensor([[3, 1, 4]]), torch.tensor([[1, 5, 3]]))
    union = select("union", top, vocabulary=6)
    assert union.ids[union.mask].tolist() == [3, 1, 4, 5]
    assert members(union, vocabulary=6).tolist() == [[False, True, False, True, True, True]]


def test_an_intersection_may_differ_in_size_from_row_to_row():
    top = TopK(torch.tensor([[0, 1], [0, 1]]), torch.tensor([[1, 0], [2, 3]]))
    intersection = select("intersection", top, vocabulary=4)
    assert intersection.mask.tolist() == [[True, True], [False, False]]


def test_a_masked_slot_does_not_make_a_member():
    support = Support(torch.tensor([[2, 0]]), torch.tensor([[True, False]]))
    assert members(support, vocabulary=3).tolist() == [[False, False, True]]


@pytest.mark.parametrize("vocabulary", [4096, 5000, 9999])
@pytest.mark.parametrize("k", [1, 16, 40])
def test_a_wide_row_is_ranked_as_topk_ranks_it(vocabulary, k):
    logprobs = make_logits(5, vocabulary, seed=k).log_softmax(-1)
    assert logprobs.gather(1, top_k_ids(logprobs, k)).equal(logprobs.topk(k, dim=-1).values)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 11), scale=st.floats(0.1, 6.0))
def test_merging_the_tail_never_raises_a_divergence(seed, k, scale):
    student, teacher = make_logits(seed=seed, scale=scale), make_logits(seed=seed + 1, scale=scale)
    p, q = student.log_softmax(-1), teacher.log_softmax(-1)
    for divergence in naive.DIVERGENCES:
        full = position_losses(
            p, q, make_ids(), objective=make_objective("full", divergence=divergence)
        )
        for support in naive.SUPPORTS:
            merged = make_objective(
                normalisation="tail_bucket", divergence=divergence, support=support, k=k
            )
            losses = position_losses(p, q, make_ids(), objective=merged)
            assert (losses >= -1e-5).all()
            assert (losses <= full + 1e-4).all()
