from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from opdcore.alignment import COLUMNS
from opdcore.known_gradient import carry_back
from opdcore.logits_chunks import rows_per_chunk
from opdcore.projection import linear
from opdcore.scoring import score
from opdcore.sides import Side
from tests.opdcore.naive import all_objectives, make_ids, make_logits, make_objective, title
from tests.opdcore.test_alignment import measure
from tests.opdcore.test_losses import losses_and_gradient

VOCABULARY = 13
ROWS = 10


def make_pair(*, rows=ROWS, extra_logits=0, seed=0):
    """Return a tiny student (body and head), a teacher's head and hidden states, and ids.

    `extra_logits` widens both heads with padding rows that no token uses.
    """
    torch.manual_seed(seed)
    body, head, teacher_head = nn.Linear(4, 6), nn.Linear(6, VOCABULARY), nn.Linear(5, VOCABULARY)
    return SimpleNamespace(
        body=body,
        head=_widened(head, extra_logits),
        teacher_head=_widened(teacher_head, 2 * extra_logits),
        inputs=make_logits(rows, 4, seed=seed + 1, scale=3.0),
        teacher_hidden=make_logits(rows, 5, seed=seed + 2, scale=3.0),
        ids=make_ids(rows, VOCABULARY, seed=seed),
    )


def _widened(head, extra):
    wide = nn.Linear(head.in_features, head.out_features + extra)
    nn.init.constant_(wide.bias, 7.0)
    with torch.no_grad():
        wide.weight[: head.out_features] = head.weight
        wide.bias[: head.out_features] = head.bias
    return wide


def run(pair, **overrides):
    plain = {
        "objective": make_objective(),
        "k": 4,
        "vocabulary": VOCABULARY,
        "temperature": 1.0,
        "loss_scale": 1.0,
    }
    return score(
        Side(pair.body(pair.inputs), pair.head),
        Side(pair.teacher_hidden, pair.teacher_head),
        pair.ids,
        **(plain | overrides),
    )


def gradients(pair):
    parameters = [*pair.body.parameters(), *pair.head.parameters()]
    return [parameter.grad[:VOCABULARY].clone() for parameter in parameters]


def columns(alignment):
    return torch.stack([getattr(alignment, name) for name in COLUMNS])


def dense(pair, objective, *, temperature=1.0, loss_scale=1.0):
    """Return what one pass over whole tables computes, back-propagated by autograd."""
    student = pair.head(pair.body(pair.inputs)) / temperature
    teacher = pair.teacher_head(pair.teacher_hidden).detach() / temperature
    losses, gradient = losses_and_gradient(student.detach(), teacher, pair.ids, objective)
    student.backward(gradient * loss_scale)
    return losses.sum().item(), measure(student.detach(), teacher, pair.ids, k=4)


@pytest.mark.parametrize("objective", all_objectives(), ids=title)
def test_the_pass_equals_whole_tables(objective):
    chunked, whole = make_pair(), make_pair()
    scored = run(chunked, objective=objective, temperature=0.7, loss_scale=0.3, chunk_rows=3)
    loss_sum, alignment = dense(whole, objective, temperature=0.7, loss_scale=0.3)
    assert scored.loss_sum == pytest.approx(loss_sum, abs=1e-5)
    assert scored.positions == scored.trained == ROWS
    torch.testing.assert_close(gradients(chunked), gradients(whole), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        columns(scored.alignment), columns(alignment), atol=1e-6, rtol=1e-5, equal_nan=True
    )


@pytest.mark.parametrize("chunk_rows", [1, 3, 7, ROWS, 1000])
def test_the_result_does_not_depend_on_the_chunks(chunk_rows):
    chunked, whole = make_pair(), make_pair()
    ours, theirs = run(chunked, chunk_rows=chunk_rows), run(whole)
    assert ours.loss_sum == pytest.approx(theirs.loss_sum, abs=1e-6)
    torch.testing.assert_close(gradients(chunked), gradients(whole), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        columns(ours.alignment), columns(theirs.alignment), atol=1e-6, rtol=1e-6, equal_nan=True
    )


def test_padded_widths_have_no_influence():
    padded, plain = make_pair(extra_logits=3), make_pair()
    ours, theirs = run(padded), run(plain)
    assert ours.loss_sum == pytest.approx(theirs.loss_sum, abs=1e-6)
    torch.testing.assert_close(gradients(padded), gradients(plain), atol=1e-6, rtol=1e-5)
    assert padded.head.weight.grad[VOCABULARY:].abs().max() == 0
    torch.testing.assert_close(columns(ours.alignment), columns(theirs.alignment), equal_nan=True)


def test_two_halves_accumulate_to_the_whole():
    halves, whole = make_pair(), make_pair()
    inputs, hidden, ids = halves.inputs, halves.teacher_hidden, halves.ids
    total = 0.0
    for rows in (slice(0, 4), slice(4, ROWS)):
        halves.inputs, halves.teacher_hidden, halves.ids = inputs[rows], hidden[rows], ids[rows]
        total += run(halves, loss_scale=1 / ROWS).loss_sum
    assert total == pytest.approx(run(whole, loss_scale=1 / ROWS).loss_sum, abs=1e-6)
    torch.testing.assert_close(gradients(halves), gradients(whole), atol=1e-6, rtol=1e-5)


def test_the_scale_reaches_the_gradient_and_not_the_reported_loss():
    double, single = make_pair(), make_pair()
    assert run(double, loss_scale=2.0).loss_sum == run(single, loss_scale=1.0).loss_sum
    doubled = [2 * gradient for gradient in gradients(single)]
    torch.testing.assert_close(gradients(double), doubled)


def test_the_teacher_receives_no_gradient():
    pair = make_pair()
    pair.teacher_hidden.requires_grad_()
    run(pair)
    assert pair.teacher_hidden.grad is None
    assert pair.teacher_head.weight.grad is None


def test_a_frozen_body_still_trains_the_head():
    pair = make_pair()
    pair.body.requires_grad_(requires_grad=False)
    run(pair)
    assert pair.head.weight.grad.abs().max() > 0


def test_no_more_logits_exist_than_a_chunk_holds():
    pair, seen = make_pair(), []
    head = pair.head

    def watched(hidden):
        seen.append(len(hidden))
        return head(hidden)

    pair.head = watched
    run(pair, chunk_rows=4)
    assert seen == [4, 4, 2]


def test_a_head_may_soften_its_logits():
    capped, plain = make_pair(), make_pair()
    head = capped.head
    capped.head = lambda hidden: 2 * torch.tanh(head(hidden) / 2)
    ours = run(capped, objective=make_objective("full"), chunk_rows=3)
    student = (2 * torch.tanh(plain.head(plain.body(plain.inputs)) / 2)).log_softmax(-1)
    teacher = plain.teacher_head(plain.teacher_hidden).log_softmax(-1).detach()
    expected = (student.exp() * (student - teacher)).sum()
    expected.backward()
    capped.head = head
    assert ours.loss_sum == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(gradients(capped), gradients(plain), atol=1e-6, rtol=1e-5)


def test_a_tied_head_gathers_both_gradients():
    torch.manual_seed(0)
    ours, plain = nn.Embedding(VOCABULARY, 6), nn.Embedding(VOCABULARY, 6)
    plain.load_state_dict(ours.state_dict())
    ids, teacher = make_ids(ROWS, VOCABULARY), make_logits(ROWS, VOCABULARY, seed=3)
    score(
        Side(ours(ids), lambda hidden: linear(hidden, ours.weight)), Side(teacher, torch.clone), ids,
        objective=make_objective("full"), k=4, vocabulary=VOCABULARY, temperature=1.0,
        loss_scale=1.0, chunk_rows=3,
    )  # fmt: skip
    student = (plain(ids) @ plain.weight.T).log_softmax(-1)
    (student.exp() * (student - teacher.log_softmax(-1))).sum().backward()
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_that_sums_its_own_gradient_equals_autograd(bias):
    head, same = nn.Linear(6, VOCABULARY, bias=bias), nn.Linear(6, VOCABULARY, bias=bias)
    same.load_state_dict(head.state_dict())
    hidden = make_logits(ROWS, 6).requires_grad_()
    twin = hidden.detach().clone().requires_grad_()
    for _ in range(2):
        linear(hidden, head.weight, head.bias).square().sum().backward()
        same(twin).square().sum().backward()
    torch.testing.assert_close(hidden.grad, twin.grad)
    for ours, theirs in zip(head.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_frozen_head_gets_no_gradient_and_passes_one_on():
    head = nn.Linear(6, VOCABULARY).requires_grad_(requires_grad=False)
    hidden = make_logits(ROWS, 6).requires_grad_()
    linear(hidden, head.weight, head.bias).sum().backward()
    assert head.weight.grad is None
    torch.testing.assert_close(hidden.grad, head.weight.sum(0).expand(ROWS, 6))


def test_half_precision_heads_are_compared_in_float32():
    pair = make_pair()
    for part in (pair.body, pair.head, pair.teacher_head):
        part.bfloat16()
    pair.inputs, pair.teacher_hidden = pair.inputs.bfloat16(), pair.teacher_hidden.bfloat16()
    scored = run(pair, objective=make_objective("full"), chunk_rows=4)
    assert scored.alignment.reverse_kl.dtype == torch.float32
    assert scored.loss_sum == pytest.approx(scored.alignment.reverse_kl.sum().item(), abs=1e-4)
    assert pair.body.weight.grad.dtype == torch.bfloat16


def test_a_loss_with_a_wider_support_than_the_metrics_gets_it():
    pair, same = make_pair(), make_pair()
    wide, full = make_objective(k=VOCABULARY), make_objective("full")
    ours, theirs = run(pair, objective=wide, k=2), run(same, objective=full, k=2)
    assert ours.loss_sum == pytest.approx(theirs.loss_sum, abs=1e-5)
    assert ours.alignment.overlap_ratio.equal(theirs.alignment.overlap_ratio)


def test_no_position_gives_no_loss_and_no_gradient():
    pair = make_pair(rows=0)
    scored = run(pair)
    assert (scored.loss_sum, scored.positions) == (0.0, 0)
    assert pair.body.weight.grad.abs().max() == 0


def test_a_head_narrower_than_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="13 logits, fewer than 14"):
        run(make_pair(), vocabulary=14)


def test_chunks_hold_enough_rows_for_a_matrix_product_at_any_vocabulary():
    assert [rows_per_chunk(v, "cpu") for v in (400, 32_000, 152_000, 10**7)] == [
        256, 256, 193, 32,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "objective",
    [make_objective(), make_objective("full"), make_objective("sampled")],
    ids=title,
)
def test_a_position_of_weight_two_counts_as_if_it_came_twice(objective):
    weighed, twice = make_pair(), make_pair()
    weights = 1.0 + (torch.arange(ROWS) % 2)
    ours = run(weighed, objective=objective, weights=weights, chunk_rows=4)
    rows = torch.arange(ROWS).repeat_interleave(weights.long())
    twice.inputs, twice.ids = twice.inputs[rows], twice.ids[rows]
    twice.teacher_hidden = twice.teacher_hidden[rows]
    theirs = run(twice, objective=objective)
    assert ours.loss_sum == pytest.approx(theirs.loss_sum, abs=1e-5)
    torch.testing.assert_close(gradients(weighed), gradients(twice), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("objective", [make_objective(), make_objective("full")], ids=title)
def test_a_masked_position_is_measured_and_has_no_influence(objective):
    masked, short = make_pair(), make_pair()
    trained = torch.arange(ROWS) % 3 != 0
    ours = run(masked, objective=objective, weights=trained.float(), chunk_rows=4)
    short.inputs, short.ids = short.inputs[trained], short.ids[trained]
    short.teacher_hidden = short.teacher_hidden[trained]
    theirs = run(short, objective=objective)
    assert (ours.positions, ours.trained) == (ROWS, int(trained.sum()))
    assert ours.loss_sum == pytest.approx(theirs.loss_sum, abs=1e-6)
    torch.testing.assert_close(gradients(masked), gradients(short), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        columns(ours.alignment)[:, trained], columns(theirs.alignment),
        atol=1e-6, rtol=1e-6, equal_nan=True,
    )  # fmt: skip


def initial_of(pair, *, seed=9):
    """Return another head on the student's own hidden states, as the student was once."""
    torch.manual_seed(seed)
    head = nn.Linear(6, VOCABULARY)
    return Side(pair.body(pair.inputs).detach(), head), head


def logprobs_of(pair, head):
    student = pair.head(pair.body(pair.inputs)).log_softmax(-1)
    teacher = pair.teacher_head(pair.teacher_hidden).log_softmax(-1).detach()
    start = head(pair.body(pair.inputs)).log_softmax(-1).detach()
    return student, teacher, start


def test_the_kl_to_the_initial_student_is_added_with_its_weight():
    pair, plain = make_pair(), make_pair()
    objective = make_objective("full", initial_kl_weight=0.4)
    initial, head = initial_of(pair)
    scored = run(pair, objective=objective, initial=initial, chunk_rows=3)
    student, teacher, start = logprobs_of(plain, head)
    kl = (student.exp() * (student - start)).sum()
    expected = (student.exp() * (student - teacher)).sum() + 0.4 * kl
    expected.backward()
    assert scored.initial_kl_sum == pytest.approx(kl.item(), abs=1e-5)
    assert scored.loss_sum == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(gradients(pair), gradients(plain), atol=1e-6, rtol=1e-5)


def test_the_forward_kl_is_added_where_the_teacher_is_uncertain():
    pair, plain = make_pair(), make_pair()
    objective = make_objective("full", high_entropy_forward_weight=0.6, high_entropy_nats=1.5)
    scored = run(pair, objective=objective, chunk_rows=3)
    student = plain.head(plain.body(plain.inputs)).log_softmax(-1)
    teacher = plain.teacher_head(plain.teacher_hidden).log_softmax(-1).detach()
    high = -(teacher.exp() * teacher).sum(-1) >= 1.5
    assert 0 < high.sum() < ROWS
    forward = (teacher.exp() * (teacher - student)).sum(-1)
    expected = (student.exp() * (student - teacher)).sum() + 0.6 * forward[high].sum()
    expected.backward()
    assert scored.loss_sum == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(gradients(pair), gradients(plain), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", ["full", "sampled", "top_k"])
def test_an_extrapolated_teacher_is_moved_on_from_the_initial_student(form):
    pair, plain = make_pair(), make_pair()
    initial, head = initial_of(pair)
    run(pair, objective=make_objective(form, extrapolation=1.5), initial=initial, chunk_rows=3)
    student, teacher, start = (side.detach() for side in logprobs_of(plain, head))
    moved = teacher + 0.5 * (teacher - start)
    _, gradient = losses_and_gradient(student, moved, plain.ids, make_objective(form))
    plain.head(plain.body(plain.inputs)).backward(gradient)
    torch.testing.assert_close(gradients(pair), gradients(plain), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("selection", ["entropy", "divergence", "either"])
def test_only_the_chosen_tokens_are_trained_on(selection):
    pair, plain = make_pair(), make_pair()
    objective = make_objective(
        "full", token_selection=selection, selection_entropy_nats=2.3, selection_kl_nats=1.5
    )
    scored = run(pair, objective=objective)
    student = plain.head(plain.body(plain.inputs)).log_softmax(-1)
    teacher = plain.teacher_head(plain.teacher_hidden).log_softmax(-1).detach()
    kl = (student.exp() * (student - teacher)).sum(-1)
    uncertain = -(student.exp() * student).sum(-1) >= 2.3
    trained = {
        "entropy": uncertain, "divergence": kl >= 1.5, "either": uncertain | (kl >= 1.5)
    }[selection]  # fmt: skip
    assert 0 < trained.sum() < ROWS
    kl[trained].sum().backward()
    assert scored.trained == trained.sum()
    assert scored.loss_sum == pytest.approx(kl[trained].sum().item(), abs=1e-5)
    torch.testing.assert_close(gradients(pair), gradients(plain), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("offset", [0.0, -150.0])
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_float32_is_exact_to_its_last_digits(spread, offset):
    student = make_logits(8, 20_000, seed=1, scale=3.0) + offset
    teacher = student + make_logits(8, 20_000, seed=2, scale=spread) - offset / 3
    ids = make_ids(8, 20_000)
    got = measure(student, teacher, ids, k=16)
    p, q = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    exact = {
        "reverse_kl": (p.exp() * (p - q)).sum(-1),
        "forward_kl": (q.exp() * (q - p)).sum(-1),
        "student_entropy": -(p.exp() * p).sum(-1),
        "teacher_entropy": -(q.exp() * q).sum(-1),
    }
    for name, expected in exact.items():
        torch.testing.assert_close(
            getattr(got, name).double(), expected, atol=2e-6, rtol=2e-6, msg=name
        )
    _, gradient = losses_and_gradient(student, teacher, ids, make_objective("full"), k=16)
    a = p - q
    expected = p.exp() * (a - exact["reverse_kl"][:, None])
    assert (gradient.double() - expected).norm() / expected.norm() < 1e-4


def test_a_known_gradient_is_carried_back_as_torch_carries_it():
    weight, inputs = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    gradient = torch.randn(5, 4)
    (inputs @ weight.T).backward(gradient)
    expected = inputs.grad, weight.grad
    inputs.grad = weight.grad = None
    carry_back(inputs @ weight.T, gradient)
    assert torch.equal(inputs.grad, expected[0])
    assert torch.equal(weight.grad, expected[1])
