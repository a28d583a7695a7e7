"""The sampler against the model itself and against transformers' own generation."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from opdcore.contract.participant import Participant
from opdcore.models import decoding, load
from opdcore.models.decoder_network import DecoderNetwork
from opdcore.rollouts import Sampling, sample, torch_sampler
from opdcore.rollouts.rollout import repeats
from tests.opdcore.model_folders import SHAPES, make_folder

CPU = torch.device("cpu")
PROMPTS = [(5, 6, 7), (20, 21, 22, 23, 24, 25, 26), (40, 41), (60, 61, 62, 63)]


@pytest.fixture(scope="module", params=sorted(SHAPES))
def model(request, tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("models") / request.param, request.param)
    participant = Participant.model_validate({"model": {"kind": "local", "path": str(folder)}})
    return load(participant, device=CPU, field="student")


@pytest.fixture(scope="module")
def theirs(model):
    """The same folder as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()


def drawn(model, *, seed=0, prompts=PROMPTS, **changes):
    given = {"max_tokens": 12, "temperature": 1.0, "top_p": 1.0, "vocabulary": 600}
    given |= {"stop_ids": frozenset(model.renderer.stop_ids)} | changes
    return sample(
        model, prompts, sampling=Sampling(**given), generator=torch.Generator().manual_seed(seed)
    )


def test_logprobs_are_those_of_the_model_run_over_the_whole_text(model, theirs):
    for rollout, prompt in zip(drawn(model, temperature=1.3), PROMPTS, strict=True):
        ids = torch.tensor([[*prompt, *rollout.ids]])
        with torch.inference_mode():
            logits = theirs(input_ids=ids).logits[0, len(prompt) - 1 : -1, :600]
        expected = (logits / 1.3).log_softmax(-1)[range(len(rollout.ids)), list(rollout.ids)]
        assert torch.tensor(rollout.logprobs) == pytest.approx(expected.tolist(), abs=2e-5)


def test_at_temperature_near_zero_the_text_is_that_of_greedy_generation(model, theirs):
    for rollout, prompt in zip(drawn(model, temperature=1e-6), PROMPTS, strict=True):
        greedy = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12, do_sample=False, eos_token_id=list(model.renderer.stop_ids),
            suppress_tokens=list(range(600, model.card.padded_vocabulary)) or None,
            pad_token_id=0,
        )[0, len(prompt) :]  # fmt: skip
        assert list(rollout.ids) == greedy[: len(rollout.ids)].tolist()


def test_a_row_ends_at_its_stop_id_and_others_go_on(model):
    stops = frozenset(range(0, 600, 3))
    rollouts = drawn(model, stop_ids=stops, prompts=PROMPTS * 8, max_tokens=40)
    assert {len(rollout.ids) for rollout in rollouts} != {40}
    for rollout in rollouts:
        assert rollout.stopped == (rollout.ids[-1] in stops)
        assert not stops & set(rollout.text_ids)


def test_ids_beyond_the_shared_vocabulary_are_never_drawn(model):
    rollouts = drawn(model, vocabulary=50, stop_ids=frozenset(), prompts=PROMPTS * 8)
    assert max(max(rollout.ids) for rollout in rollouts) < 50


def test_the_same_seed_draws_the_same_rollouts_and_another_seed_others(model):
    assert drawn(model, seed=3) == drawn(model, seed=3)
    assert drawn(model, seed=3) != drawn(model, seed=4)


def test_how_rows_are_batched_changes_no_rollout(model, monkeypatch):
    prompts = PROMPTS * 4
    stops = frozenset(range(0, 600, 7))
    whole = drawn(model, prompts=prompts, stop_ids=stops, max_tokens=40)
    monkeypatch.setattr(torch_sampler, "CACHE_BYTES", 1)  # a batch for every row
    alone = drawn(model, prompts=prompts, stop_ids=stops, max_tokens=40)
    assert [rollout.ids for rollout in whole] == [rollout.ids for rollout in alone]


def test_the_cache_grows_under_long_responses(model, monkeypatch):
    whole = drawn(model, max_tokens=40, stop_ids=frozenset())
    monkeypatch.setattr(decoding, "FIRST_ROOM", 2)
    assert drawn(model, max_tokens=40, stop_ids=frozenset()) == whole


def test_our_own_decoder_samples_in_bfloat16_too(model):
    if isinstance(model.network, DecoderNetwork):
        rollouts = drawn(model, precision="bfloat16")
        assert [len(rollout.ids) for rollout in rollouts] == [12] * len(PROMPTS)
    else:
        assert model.network.decodable == (torch.float32,)


def test_a_narrow_nucleus_leaves_only_the_most_probable_token(model):
    nucleus = drawn(model, top_p=1e-6)
    assert [r.ids for r in nucleus] == [r.ids for r in drawn(model, temperature=1e-6)]


def test_only_text_that_compresses_tenfold_repeats():
    assert repeats("maybe " * 400)
    assert not repeats("So a: 4 plus 3 is 2, 0 plus 2 is 2. Answer: 2")
    assert not repeats("")
