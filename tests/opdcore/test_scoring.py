from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from opdcore.alignment import COLUMNS, measure
from opdcore.losses import position_losses
from opdcore.scoring import rows_per_chunk, score
from tests.opdcore.naive import all_objectives, make_ids, make_logits, make_objective, title

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
        pair.body(pair.inputs),
        pair.head,
        pair.teacher_hidden,
        pair.teacher_head,
        pair.ids,
        **(plain | overrides),
    )


def gradients(pair):
    parameters = [*pair.body.parameters(), *pair.head.parameters()]
    return [parameter.grad[:VOCABULARY].clone() for parameter in parameters]


def columns(alignment):
    return torch.stack([getattr(alignment, name) for name in COLUMNS])


def dense(pair, objective, *, temperature=1.0, loss_scale=1.0):
    """Return what one plain autograd pass over whole tables of logits computes."""
    student = (pair.head(pair.body(pair.inputs)) / temperature).log_softmax(-1)
    with torch.no_grad():
        teacher = (pair.teacher_head(pair.teacher_hidden) / temperature).log_softmax(-1)
    losses = position_losses(student, teacher, pair.ids, objective=objective)
    (losses.sum() * loss_scale).backward()
    return losses.sum().item(), measure(student, teacher, pair.ids, k=4)


@pytest.mark.parametrize("objective", all_objectives(), ids=title)
def test_the_pass_equals_dense_autograd(objective):
    chunked, whole = make_pair(), make_pair()
    scored = run(chunked, objective=objective, temperature=0.7, loss_scale=0.3, chunk_rows=3)
    loss_sum, alignment = dense(whole, objective, temperature=0.7, loss_scale=0.3)
    assert scored.loss_sum == pytest.approx(loss_sum, abs=1e-5)
    assert scored.positions == ROWS
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
    objective = make_objective("full")
    ours = run(capped, objective=objective)
    student = (2 * torch.tanh(plain.head(plain.body(plain.inputs)) / 2)).log_softmax(-1)
    teacher = plain.teacher_head(plain.teacher_hidden).log_softmax(-1)
    expected = position_losses(student, teacher, plain.ids, objective=objective).sum().item()
    assert ours.loss_sum == pytest.approx(expected, abs=1e-5)


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


def test_a_small_vocabulary_is_scored_in_one_piece_and_a_large_one_in_chunks():
    assert rows_per_chunk(400, torch.device("cpu")) > 10_000
    assert 16 <= rows_per_chunk(152_000, torch.device("cpu")) <= 128
