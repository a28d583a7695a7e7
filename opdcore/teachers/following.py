"""Teachers that are a moving average of their student: theta_t <- d theta_t + (1 - d) theta_s at every step.

The average begins with the student as it enters the stage, and lies in each checkpoint, so that a resumed
run has the teacher that it had. It knows no loss and no prompt.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from opdcore import checkpoints
from opdcore.checkpoints import Saved
from opdcore.models import LoadedModel
from opdcore.teachers.roster import Teachers


def averages(teachers: Teachers) -> dict[str, nn.Module]:
    """The networks that are averages, by the name under which a checkpoint keeps them."""
    return {
        f"teacher-{index}": one.model.model
        for index, one in enumerate(teachers.members)
        if one.said.follows == "average" and isinstance(one.model, LoadedModel)
    }


def enter(teachers: Teachers, student: LoadedModel, resume: Saved | None) -> None:
    """Every average as the checkpoint left it, or else the student itself."""
    for name, network in averages(teachers).items():
        if resume is None:
            _move(network, dict(student.model.named_parameters()), decay=0.0)
        else:
            checkpoints.restore_beside(resume.folder, name, network)


def follow(teachers: Teachers, student: LoadedModel) -> None:
    """Moves every average after the student's update."""
    weights = dict(student.model.named_parameters())
    for name, network in averages(teachers).items():
        said = teachers.members[int(name.partition("-")[2])].said
        _move(network, weights, decay=said.average_decay)


@torch.no_grad()
def _move(average: nn.Module, weights: Mapping[str, torch.Tensor], *, decay: float) -> None:
    for name, parameter in average.named_parameters():
        parameter.lerp_(weights[name].to(parameter.device), 1 - decay)
