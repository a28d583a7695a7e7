"""Our own decoder against transformers, layer by layer of what it offers: outputs, gradients, files."""

import json
from functools import partial

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from opdcore.models import decoder_network, decoding, kernels
from opdcore.models.decoder_network import DecoderNetwork
from opdcore.models.shape import Shape

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama3_scaling": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3}),
    "llama_biases": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "qwen2_tied": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 20, "rope_theta": 1e6}),
    "one_kv_head": (Qwen3Config, Qwen3ForCausalLM, {"num_key_value_heads": 1, "head_dim": 8}),
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def folder(request, tmp_path_factory):
    configuration, architecture, changes = MODELS[request.param]
    torch.manual_seed(0)
    model = architecture(configuration(**{**SIZES, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, which start at 1 and 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("model") / request.param
    model.save_pretrained(path)
    return path


@pytest.fixture
def ours(folder):
    return decoder_network.load(folder, device=torch.device("cpu"))


@pytest.fixture
def theirs(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_logits_are_those_of_transformers(ours, theirs):
    ids = torch.randint(0, 97, (3, 200))
    with torch.no_grad():
        assert torch.allclose(ours.project(ours.hidden(ids)), theirs(ids).logits, atol=2e-5)


@pytest.mark.parametrize("since", [1, 4, 8])
def test_the_last_layer_is_computed_where_it_is_asked_for(ours, since):
    ids = torch.randint(0, 97, (3, 9))
    hidden, whole = ours.hidden(ids, since), ours.hidden(ids)[:, since:]
    assert torch.allclose(hidden, whole, atol=1e-6)

    parameters = [one for one in ours.module.parameters() if one is not ours.head.weight]
    gradients = torch.autograd.grad(hidden.square().sum(), parameters)
    expected = torch.autograd.grad(whole.square().sum(), parameters)
    assert all(map(partial(torch.allclose, atol=1e-4), gradients, expected))


def test_the_head_gathers_its_weight_gradient_in_place(ours):
    logits = ours.project(torch.randn(5, 48, requires_grad=True))
    assert type(logits.grad_fn).__name__ == "_LinearBackward"


def test_gradients_are_those_of_transformers_under_the_same_names(ours, theirs):
    ids = torch.randint(0, 97, (3, 40))
    weight = torch.randn(3, 40, 97)
    logits = ours.project(ours.hidden(ids).flatten(0, 1)).view_as(weight)
    (logits * weight).sum().backward()
    (theirs(ids).logits * weight).sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found = {name: parameter.grad for name, parameter in ours.module.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 2e-5 * gradient.norm(), name


@pytest.mark.parametrize("lengths", [(6, 6, 6), (2, 9, 5)])
def test_decoding_gives_the_logits_of_the_whole_text_while_rows_come_and_go(ours, theirs, lengths):
    prompts = [torch.randint(0, 97, (length,)).tolist() for length in lengths]
    rows = [0, 1, 2, 2, 0]
    texts = [list(prompts[row]) for row in rows]
    with torch.inference_mode():
        decoding, logits = ours.decode(prompts, rows=rows, room=12, dtype=torch.float32)
        for step in range(12):
            expected = torch.stack([theirs(torch.tensor([text])).logits[0, -1] for text in texts])
            assert torch.allclose(logits, expected, atol=2e-5)
            ids = torch.randint(0, 97, (len(texts),))
            for text, token in zip(texts, ids.tolist(), strict=True):
                text.append(token)
            if step in (3, 7):
                kept = [0, len(texts) - 1, *range(2, len(texts) - 1)]
                decoding.keep(kept)
                texts, ids = [texts[place] for place in kept], ids[kept]
            logits = decoding.step(ids)


def test_a_decoder_too_large_to_be_copied_decodes_the_same(ours, monkeypatch):
    prompt = torch.randint(0, 97, (9,)).tolist()
    logits = []
    for limit in (decoding.COPIED_BYTES, 0):
        monkeypatch.setattr(decoding, "COPIED_BYTES", limit)
        with torch.inference_mode():
            going, _ = ours.decode([prompt], rows=[0, 0], room=2, dtype=torch.float32)
            logits.append(going.step(torch.tensor([3, 5])))
    assert len(going.layers[0].qkv.matrices) == 3
    assert torch.allclose(*logits, atol=1e-5)


def test_decoding_in_bfloat16_stays_close_and_keeps_its_cache_in_half_the_memory(ours, theirs):
    text = torch.randint(0, 97, (20,)).tolist()
    with torch.inference_mode():
        decoding, _ = ours.decode([text[:8]], rows=[0], room=12, dtype=torch.bfloat16)
        for end in range(8, 20):
            logits = decoding.step(torch.tensor([text[end]]))
        expected = theirs(torch.tensor([text])).logits[0, -1]
    assert decoding.keys.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    difference = (logits[0].log_softmax(-1) - expected.log_softmax(-1)).abs()
    assert 0 < difference.max() < 0.2


def test_a_saved_network_opens_with_transformers_and_again_with_ours(
    ours, theirs, folder, tmp_path
):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    ours.save(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(0, 97, (2, 30))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, theirs(ids).logits)
    assert isinstance(decoder_network.load(tmp_path, device=ids.device), DecoderNetwork)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mistral"},
        {"hidden_act": "gelu"},
        {"use_sliding_window": True},
        {"layer_types": ["sliding_attention"] * 3},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_our_decoder_does_not_compute_is_left_to_transformers(change):
    config = json.loads(Qwen2Config(**SIZES).to_json_string(use_diff=False))
    assert Shape.of(config) is not None
    assert Shape.of(config | change) is None


def test_a_folder_whose_tensors_do_not_fit_is_left_to_transformers_to_refuse(folder):
    config = json.loads((folder / "config.json").read_text())
    wider = folder.parent / f"{folder.name}-wider"
    wider.mkdir(exist_ok=True)
    (wider / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (wider / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    assert decoder_network.load(wider, device=torch.device("cpu")) is None


def test_closed_form_gradients_are_the_true_ones():
    torch.manual_seed(0)
    x, gate, up = (torch.randn(4, 3, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    tables = kernels.rotary_tables(torch.arange(4), torch.rand(4))
    assert torch.autograd.gradcheck(lambda x, w: kernels.rms_norm(x, w, 1e-3), (x, weight))
    assert torch.autograd.gradcheck(kernels.swiglu, (gate, up))
    assert torch.autograd.gradcheck(lambda x: kernels.rotate(x, *(t.double() for t in tables)), x)
