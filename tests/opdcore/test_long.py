"""Long responses: written in bounded memory, given up where they loop, and learned from layer by layer."""

import pytest
import torch
from torch import nn

from opdcore.contract.distill import DistillStage
from opdcore.contract.training import LONG_TEXT
from opdcore.lab import record
from opdcore.lab.measuring import open_model
from opdcore.models import decoder, decoding
from opdcore.rollouts import Sampling, torch_sampler
from opdcore.rollouts.rollout import is_loop
from tests.opdcore.jobs import events_of, make_job, make_recipe
from tests.opdcore.model_folders import make_folder, make_pair

LAB = record.shipped("sums")


@pytest.fixture(scope="module")
def model():
    return open_model(LAB / "student")


def texts(count, *, longest=40):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, longest, (count,), generator=generator).tolist()
    return [tuple(torch.randint(3, 300, (n,), generator=generator).tolist()) for n in lengths]


def sampled(model, prompts, **knobs):
    fields = {"max_tokens": 90, "temperature": 1.0, "top_p": 1.0, "stop_repeating": 0}
    sampling = Sampling(
        vocabulary=model.card.vocabulary, stop_ids=frozenset(), **{**fields, **knobs}
    )
    generator = torch.Generator().manual_seed(7)
    return torch_sampler.sample(model, prompts, sampling=sampling, generator=generator)


def bytes_per_token(model):
    card = model.card
    return 2 * card.layers * card.kv_heads * card.head_dim * 4


def test_rows_that_are_set_aside_write_what_they_would_have_written(model, monkeypatch):
    prompts = texts(12)
    whole = sampled(model, prompts)
    monkeypatch.setattr(torch_sampler, "EXPECTED_TOKENS", 8)
    monkeypatch.setattr(torch_sampler, "CACHE_BYTES", 600 * bytes_per_token(model))
    asked = []
    decode = model.network.decode
    monkeypatch.setattr(
        model.network, "decode", lambda *a, **k: asked.append(len(k["rows"])) or decode(*a, **k)
    )
    parted = sampled(model, prompts)
    assert len(asked) > 4
    assert max(asked) * 2 * (40 + 8) <= 12 * 2 * 48
    assert [one.ids for one in parted] == [one.ids for one in whole]
    for ours, theirs in zip(parted, whole, strict=True):
        torch.testing.assert_close(
            torch.tensor(ours.logprobs), torch.tensor(theirs.logprobs), atol=1e-5, rtol=0
        )


def test_the_cache_stays_within_its_bounds(model, monkeypatch):
    bound = 900 * bytes_per_token(model)
    monkeypatch.setattr(torch_sampler, "EXPECTED_TOKENS", 8)
    monkeypatch.setattr(torch_sampler, "CACHE_BYTES", bound)
    monkeypatch.setattr(decoding, "FIRST_ROOM", 8)
    sizes = []
    grow = decoding.DecoderDecoding._grow

    def watched(self):
        grow(self)
        sizes.append(self.keys.nbytes + self.values.nbytes)

    monkeypatch.setattr(decoding.DecoderDecoding, "_grow", watched)
    sampled(model, texts(40))
    assert sizes
    assert max(sizes) <= bound


def test_long_prompts_are_read_one_by_one_and_leave_the_same_cache(model, monkeypatch):
    prompts = [text for text in texts(5) for _ in range(2)]
    together = sampled(model, prompts, max_tokens=20)
    monkeypatch.setattr(decoding, "LONG_TEXT", 4)
    apart = sampled(model, prompts, max_tokens=20)
    assert [one.ids for one in apart] == [one.ids for one in together]
    for ours, theirs in zip(apart, together, strict=True):
        torch.testing.assert_close(
            torch.tensor(ours.logprobs), torch.tensor(theirs.logprobs), atol=1e-5, rtol=0
        )


def test_a_long_text_is_scored_as_a_short_one_is(model, monkeypatch):
    ids = torch.randint(3, 300, (3, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        short = model.hidden(ids, 20)
        monkeypatch.setattr(decoder, "LONG_TEXT", 16)
        long = model.hidden(ids, 20)
    torch.testing.assert_close(long, short, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["qwen3", "gpt_neox"])
def test_layers_that_are_computed_anew_leave_the_same_gradients(kind, tmp_path):
    loaded = open_model(make_folder(tmp_path / kind, kind))
    ids = torch.randint(3, 60, (2, 24), generator=torch.Generator().manual_seed(2))
    calls = []
    layers = next(part for part in loaded.model.modules() if isinstance(part, nn.ModuleList))
    layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients(**asked):
        calls.clear()
        loaded.model.zero_grad()
        loaded.hidden(ids, 8, **asked).square().sum().backward()
        found = {name: p.grad for name, p in loaded.model.named_parameters()}
        return {name: grad.clone() for name, grad in found.items() if grad is not None}, len(calls)

    (kept, once), (again, twice) = gradients(), gradients(recompute=True)
    assert (once, twice) == (1, 2)
    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("ids", "times", "loops"),
    [
        ([7] * 8, 8, True),
        ([7] * 7, 8, False),
        ([1, 2, 3] * 8, 8, True),
        ([9, 9, 1, 2, 3] + [1, 2, 3] * 7, 8, True),
        ([1, 2, 3] * 8 + [1], 8, True),
        ([1, 2, 3] * 8 + [4], 8, False),
        (list(range(32)) * 8, 8, True),
        (list(range(33)) * 8, 8, False),
        ([7] * 100, 0, False),
        (list(range(500)), 8, False),
        ([], 8, False),
    ],
)
def test_a_loop_is_the_same_few_tokens_again_and_again_at_the_end(ids, times, loops):
    assert is_loop(ids, times) is loops


def test_a_rollout_in_a_loop_is_cut_and_the_others_go_on(model, monkeypatch):
    """A temperature near 0 makes the untrained continuation circle; the others are as they were."""
    prompts = texts(6)
    free = sampled(model, prompts, max_tokens=400, temperature=0.05)
    cut = sampled(model, prompts, max_tokens=400, temperature=0.05, stop_repeating=16)
    collapsed = [one for one in cut if one.collapsed]
    assert collapsed
    for before, after in zip(free, cut, strict=True):
        assert after.ids == before.ids[: len(after.ids)]
        assert after.collapsed == (len(after.ids) < 400)
        assert not after.stopped
        assert after.collapsed == any(
            is_loop(before.ids[:upto], 16)
            for upto in range(torch_sampler.LOOK_EVERY, 400, torch_sampler.LOOK_EVERY)
        )


def test_a_step_tells_how_many_rollouts_collapsed(tmp_path):
    recipe = make_recipe(
        steps=1, max_response_tokens=128, temperature=0.05, stop_repeating=8, evaluate_steps=0
    )
    events = events_of(
        make_job(tmp_path, pair=make_pair(tmp_path), recipe=recipe), tmp_path / "run"
    )
    (values,) = [one.payload.values for one in events if one.kind == "metrics"]
    assert values["collapsed_rate"] > 0
    assert values["truncation_rate"] >= values["collapsed_rate"]
    assert values["response_tokens_mean"] < 128


def test_few_repetitions_are_no_loop():
    with pytest.raises(ValueError, match="3 repetitions are no loop; give 8 or more, or 0"):
        DistillStage(stop_repeating=3)
    assert DistillStage(stop_repeating=0).stop_repeating == 0


@pytest.mark.parametrize(
    ("knob", "tokens", "again"),
    [
        ("auto", LONG_TEXT, False), ("auto", LONG_TEXT + 1, True),
        ("always", 1, True), ("never", 10 * LONG_TEXT, False),
    ],
)  # fmt: skip
def test_long_texts_are_computed_anew_unless_somebody_says_otherwise(knob, tokens, again):
    assert DistillStage(gradient_checkpointing=knob).recomputes(tokens) is again
