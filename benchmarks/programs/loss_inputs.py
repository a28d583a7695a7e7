"""Hidden states and heads of both sides, the same on both sides of the comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def make(spec: dict[str, Any]) -> dict[str, Tensor]:
    """Hidden states (N, H) and heads (V, H) of student and teacher, and sampled ids (N,), by seed."""
    torch.set_num_threads(spec["threads"])
    generator = torch.Generator(spec["device"]).manual_seed(0)
    sizes = {
        "student_hidden": (spec["positions"], spec["student_size"]),
        "student_head": (spec["vocabulary"], spec["student_size"]),
        "teacher_hidden": (spec["positions"], spec["teacher_size"]),
        "teacher_head": (spec["vocabulary"], spec["teacher_size"]),
    }
    made = {
        name: torch.randn(size, generator=generator, device=spec["device"])
        for name, size in sizes.items()
    }
    for side in ("student", "teacher"):
        # Logits of a standard deviation of 2: neither flat nor certain.
        made[f"{side}_head"].mul_(2 / spec[f"{side}_size"] ** 0.5)
    made["student_hidden"].requires_grad_()
    made["student_head"].requires_grad_()
    made["sampled_ids"] = torch.randint(
        spec["vocabulary"], (spec["positions"],), generator=generator, device=spec["device"]
    )
    return made
