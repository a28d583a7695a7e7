"""Draws against the distribution that they are drawn from."""

import pytest
import torch

from opdcore.rollouts.draws import draw

DRAWS = 200_000


def uniforms(count=DRAWS):
    """Numbers that fill [0, 1) evenly, so that frequencies are exact to 1 / count for each token."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("vocabulary", [2, 127, 128, 129, 700])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_each_token_is_drawn_as_often_as_it_is_probable(vocabulary, temperature):
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 2
    ids, _ = draw(logits.expand(DRAWS, -1), uniforms(), temperature=temperature, top_p=1.0)
    expected = (logits / temperature).softmax(-1)
    frequencies = ids.bincount(minlength=vocabulary) / DRAWS
    assert torch.allclose(frequencies.float(), expected, atol=2e-5)


def test_logprobs_are_of_the_whole_tempered_distribution():
    logits = torch.randn(64, 300) * 3
    ids, logprobs = draw(logits, torch.rand(64), temperature=0.7, top_p=0.5)
    expected = (logits / 0.7).log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
    assert torch.allclose(logprobs, expected, atol=1e-5)


@pytest.mark.parametrize("vocabulary", [40, 2000])
def test_the_nucleus_is_the_fewest_tokens_that_hold_its_mass(vocabulary):
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(0))
    ids, _ = draw(logits.expand(20_000, -1), uniforms(20_000), temperature=1.0, top_p=0.9)
    ordered, tokens = logits.softmax(-1).sort(descending=True)
    inside = tokens[ordered.cumsum(-1) - ordered < 0.9]
    assert set(ids.tolist()) <= set(inside.tolist())
    assert len(ids.unique()) >= 0.9 * len(inside)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_a_token_that_can_be_drawn(uniform):
    logits = torch.full((1, 500), -float("inf"))
    logits[0, [7, 300]] = 0.0
    ids, logprobs = draw(
        logits, torch.tensor([uniform], dtype=torch.float64), temperature=1.0, top_p=1.0
    )
    assert ids.item() == (7 if uniform == 0 else 300)
    assert logprobs.item() == pytest.approx(-0.6931, abs=1e-4)
