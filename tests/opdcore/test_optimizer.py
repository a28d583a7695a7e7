"""The optimizer against torch's own."""

import subprocess
import sys

import torch
from torch import nn

from opdcore.optimizer import AdamW, Decay


def test_updates_are_those_of_torch_bit_for_bit():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(7, 5), nn.Linear(7, 5)
    theirs.load_state_dict(ours.state_dict())
    optimizer = AdamW(ours, Decay(beta1=0.9, beta2=0.98, weights=0.1))
    reference = torch.optim.AdamW(
        theirs.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.1, fused=True
    )
    for step in range(5):
        inputs = torch.randn(4, 7)
        for model, forget in ((ours, optimizer.forget_gradients), (theirs, reference.zero_grad)):
            forget()
            model(inputs).square().sum().backward()
        rate = 1e-2 / (step + 1)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        optimizer.step(rate)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_frozen_parameters_are_left_alone():
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(requires_grad=False)
    before = model.bias.clone()
    optimizer = AdamW(model, Decay(beta1=0.9, beta2=0.999, weights=0.5))
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step(1.0)
    assert torch.equal(model.bias, before)


def test_a_step_does_not_import_the_compiler():
    program = (
        "import sys, torch; from torch import nn; from opdcore.optimizer import AdamW, Decay;"
        "model = nn.Linear(2, 2); optimizer = AdamW(model, Decay(0.9, 0.999, 0.0));"
        "model(torch.ones(1, 2)).sum().backward(); optimizer.step(0.1);"
        "print('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
