"""Checkpoints: what is put back, where, and which one counts."""

import torch
from torch import nn

from opdcore import checkpoints
from opdcore.optimizer import AdamW, Decay

DECAY = Decay(beta1=0.9, beta2=0.999, weights=0.01)


def trained():
    """A layer and its optimizer after one step."""
    layer = nn.Linear(3, 2)
    optimizer = AdamW(layer, DECAY)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step(0.1)
    return layer, optimizer


def test_optimizer_state_is_put_back_whole_on_the_device_of_its_parameter(tmp_path):
    layer, optimizer = trained()
    state = checkpoints.optimizer_tensors(layer, optimizer)
    saved, _ = checkpoints.save(tmp_path, layer, state, stage_index=0, step=1, recipe_sha256="one")
    elsewhere = nn.Linear(3, 2, device="meta")
    fresh = AdamW(elsewhere, DECAY)
    checkpoints.restore_optimizer(saved, elsewhere, fresh)
    for parameter in elsewhere.parameters():
        state = fresh.state[parameter]
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert {value.device.type for value in state.values()} == {"meta"}


def test_the_checkpoint_that_a_failing_run_can_go_back_to_is_kept_whatever_its_age(tmp_path):
    for step in (10, 20, 30, 40):
        (tmp_path / f"stage-01-step-{step:07d}").mkdir()
    spare = checkpoints.newest_until(tmp_path, stage_index=1, step=25)
    removed = checkpoints.prune(tmp_path, keep=1, spare=spare)
    assert [folder.name[-2:] for folder in removed] == ["10", "30"]
    assert checkpoints.newest_until(tmp_path, stage_index=1, step=9) is None
    assert checkpoints.newest_until(tmp_path, stage_index=0, step=99) is None
