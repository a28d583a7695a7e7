"""One process' place among those of its run: what is told to all, collected from all, and its devices.

torch.distributed carries it: gloo between the processes, and NCCL between GPUs for FSDP's own sums. The
first process is the leader. It knows no run and no model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

T = TypeVar("T")

LEADER = 0
# The others wait while the first one grades, evaluates and writes; they end with it whatever happens.
PATIENCE = timedelta(days=7)


class Group:
    """This process as number `rank` of `count`; they meet by a file, or where a launcher says."""

    def __init__(
        self, meeting: Path | None, *, rank: int, count: int, device: torch.device
    ) -> None:
        self.rank, self.count, self.device = rank, count, device
        on_gpus = device.type == "cuda"
        if on_gpus:
            torch.cuda.set_device(device)
        with _on_this_machine():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
                store=None if meeting is None else dist.FileStore(str(meeting), count),
                rank=rank,
                world_size=count,
                timeout=None if on_gpus else PATIENCE,
            )
            self._talk = dist.new_group(backend="gloo", timeout=PATIENCE)
            self.mesh: DeviceMesh = init_device_mesh(device.type, (count,))

    def tell(self, order: object) -> None:
        """Tell the others what is next; the leader's part of `hear`."""
        dist.broadcast_object_list([order], src=LEADER, group=self._talk)

    def hear(self) -> Any:  # noqa: ANN401 - whatever was told
        """What the leader tells, once it does."""
        told: list[Any] = [None]
        dist.broadcast_object_list(told, src=LEADER, group=self._talk)
        return told[0]

    def collect(self, mine: T) -> list[T]:
        """What every process has, by rank, on the CPU; empty but for the leader."""
        every: list[Any] | None = [None] * self.count if self.rank == LEADER else None
        dist.gather_object(_on_cpu(mine), every, dst=LEADER, group=self._talk)
        return every or []

    def leave(self) -> None:
        """Forget the others; nothing can be told or summed any more."""
        dist.destroy_process_group()


def _on_cpu(value: Any) -> Any:  # noqa: ANN401 - lists and dataclasses of tensors
    """The value with every tensor in it on the CPU, where all processes can read it."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_on_cpu(one) for one in value)
    if isinstance(value, dict):
        return {key: _on_cpu(one) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _on_cpu(getattr(value, f.name)) for f in fields(value)})
    return value


@contextmanager
def _on_this_machine() -> Iterator[None]:
    """Have gloo listen on the loopback device, unless somebody has named another."""
    if "GLOO_SOCKET_IFNAME" in os.environ or sys.platform != "linux":
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        yield
    finally:
        del os.environ["GLOO_SOCKET_IFNAME"]
