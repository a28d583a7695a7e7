"""Micro-batches: every response position is predicted by the state before it, however it is cut."""

import pytest
import torch

from opdcore.batches import cut, response_hidden
from opdcore.contract.participant import Participant
from opdcore.models import load
from opdcore.rollouts import Rollout
from tests.opdcore.model_folders import make_folder


def rollout(index, ids):
    return Rollout(index, tuple(ids), tuple(-float(token) for token in ids), stopped=True)


PROMPTS = [(5, 6, 7), (20, 21, 22, 23, 24), (40,)]
ROLLOUTS = [rollout(0, [8, 9, 10, 11]), rollout(1, [25]), rollout(2, [41, 42, 43])]


@pytest.mark.parametrize("tokens", [1, 8, 10_000])
def test_each_token_is_predicted_by_the_state_before_it(tmp_path, tokens):
    folder = make_folder(tmp_path / "model", "qwen3")
    participant = Participant.model_validate({"model": {"kind": "local", "path": str(folder)}})
    model = load(participant, device=torch.device("cpu"), field="student")
    seen = set()
    for batch in cut(ROLLOUTS, [PROMPTS, PROMPTS[::-1]], tokens=tokens):
        logits = model.project(response_hidden(model, batch, side=0))
        start = 0
        for index, length in zip(batch.rollouts, batch.lengths, strict=True):
            ids = ROLLOUTS[index].ids
            whole = model.project(model.hidden(torch.tensor([[*PROMPTS[index], *ids]])))[0]
            expected = whole[len(PROMPTS[index]) - 1 : -1]
            torch.testing.assert_close(logits[start : start + length], expected, atol=1e-5, rtol=0)
            assert batch.sampled_ids[start : start + length].tolist() == list(ids)
            assert batch.positions[start : start + length].tolist() == list(range(length))
            assert batch.logprobs[start : start + length].tolist() == [-t for t in ids]
            start += length
            seen.add(index)
    assert seen == {0, 1, 2}


def test_no_batch_exceeds_its_tokens_unless_one_rollout_does():
    for batch in cut(ROLLOUTS, [PROMPTS, PROMPTS], tokens=12):
        assert batch.ids[0].numel() <= 12 or len(batch.rollouts) == 1


def test_rollouts_of_like_length_share_a_batch_where_padding_would_cost_more_than_a_pass():
    lengths = [1000, 990, 980, 20, 15, 10]
    rollouts = [rollout(0, [7] * length) for length in lengths]
    batches = list(cut(rollouts, [[(5,)] * 6], tokens=100_000))
    assert [batch.lengths for batch in batches] == [(1000, 990, 980), (20, 15, 10)]


def test_rollouts_of_one_length_are_one_batch():
    batches = list(cut([rollout(0, [7] * 30)] * 50, [[(5,)] * 50], tokens=100_000))
    assert [len(batch.rollouts) for batch in batches] == [50]
