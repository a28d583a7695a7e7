"""Tuning a student: adapters that come and go, exact resume, schedules, weights that stand still."""

import pytest
import torch
from safetensors.torch import load_file

from opdcore.contract.distill import DistillStage
from opdcore.contract.errors import Cancelled
from opdcore.contract.participant import LocalModel, Participant
from opdcore.models import adapters, load
from opdcore.tuning import Tuning, learning_rate
from tests.opdcore.jobs import by_kind, events_of, make_job, make_recipe
from tests.opdcore.model_folders import make_folder

CPU = torch.device("cpu")
WEIGHTS = "output/model.safetensors"
QUERIES = "model.layers.0.self_attn.q_proj.weight"
LORA = {"tuning": "lora", "lora_rank": 4, "lora_learning_rate": 0.01}


def opened(folder, kind):
    participant = Participant(model=LocalModel(path=str(make_folder(folder, kind))))
    return load(participant, device=CPU, field="student")


@pytest.mark.parametrize("kind", ["qwen3", "gemma"])
def test_adapters_change_nothing_until_they_are_trained_and_merge_into_what_they_computed(
    tmp_path, kind
):
    model, ids = opened(tmp_path / kind, kind), torch.tensor([[5, 6, 7, 8, 9]])
    names = set(dict(model.model.named_parameters()))
    with torch.no_grad():
        plain = model.hidden(ids)
        adapters.attach(model.network, rank=4, alpha=8.0, seed=1)
        assert torch.equal(model.hidden(ids), plain)
        for name, parameter in model.model.named_parameters():
            assert parameter.requires_grad == ("lora_" in name)
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1)
        adapted = model.hidden(ids)
        _, logits = model.decode([(5, 6, 7, 8, 9)], rows=[0], room=4)
        assert torch.allclose(logits, model.project(adapted[:, -1]), atol=1e-5)
        adapters.merge(model.network)
        assert torch.allclose(model.hidden(ids), adapted, atol=1e-5)
        assert not torch.allclose(adapted, plain, atol=1e-3)
    assert set(dict(model.model.named_parameters())) == names
    assert all(parameter.requires_grad for parameter in model.model.parameters())


def test_the_same_seed_draws_the_same_adapters_whatever_was_drawn_before(tmp_path):
    model = opened(tmp_path / "model", "llama")
    factors = []
    for before in (1, 2):
        torch.manual_seed(before)
        adapters.attach(model.network, rank=4, alpha=8.0, seed=3)
        factors.append([p.clone() for n, p in model.model.named_parameters() if "lora_A" in n])
        adapters.merge(model.network)
    assert all(torch.equal(one, other) for one, other in zip(*factors, strict=True))


def test_a_lora_run_resumed_ends_with_the_same_weights_bit_for_bit(tmp_path):
    job = make_job(tmp_path, recipe=make_recipe(**LORA), held_out=False)
    events_of(job, tmp_path / "whole")
    stops = iter([False, False, True])
    with pytest.raises(Cancelled):
        events_of(job, tmp_path / "cut", stop=lambda: next(stops))
    started = by_kind(events_of(job, tmp_path / "cut"), "stage_started")[0]
    assert started.payload.resumed_from_step == 2
    whole, cut = (load_file(tmp_path / run / WEIGHTS) for run in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    before = load_file(f"{job.student.model.path}/model.safetensors")
    assert not torch.equal(whole[QUERIES], before[QUERIES])


def stage(**knobs):
    return DistillStage(steps=10, **knobs)


def test_the_learning_rate_warms_up_and_follows_its_schedule():
    warm = stage(learning_rate=0.1, warmup_steps=4, schedule="linear")
    assert [learning_rate(warm, step) for step in (1, 4, 5, 8)] == pytest.approx(
        [0.025, 0.1, 0.1, 0.05]
    )
    cosine = stage(learning_rate=0.1, schedule="cosine")
    assert learning_rate(cosine, 6) == pytest.approx(0.05)
    assert learning_rate(stage(**LORA), 7) == 0.01


def test_weights_that_stand_still_are_told_once(tmp_path):
    model = opened(tmp_path / "model", "llama")
    tuning = Tuning(model.network, stage(learning_rate=1e-30), seed=0, resume=None)
    told = []
    for step in range(1, 7):
        for parameter in tuning.optimizer.parameters:
            parameter.grad = torch.ones_like(parameter)
        tuning.update(step, loss=1.0)
        told.append(tuning.alarm())
    assert [bool(text) for text in told] == [False, False, True, False, False, False]
    assert "learning rate" in told[2]


@pytest.mark.parametrize("kind", ["qwen3", "gemma"])
def test_layers_in_bfloat16_leave_the_rest_in_float32_and_the_loss_close(tmp_path, kind):
    losses = {}
    for precision in ("float32", "bfloat16"):
        pair = [make_folder(tmp_path / f"{precision}-{side}", kind) for side in ("a", "b")]
        recipe = make_recipe(steps=2, precision=precision)
        job = make_job(tmp_path, pair=pair, recipe=recipe, held_out=False)
        run_dir = tmp_path / f"run-{precision}"
        steps = by_kind(events_of(job, run_dir), "metrics")
        losses[precision] = [step.payload.values["loss"] for step in steps]
        saved = load_file(run_dir / WEIGHTS)
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"][0] == pytest.approx(losses["float32"][0], rel=0.05, abs=1e-3)
