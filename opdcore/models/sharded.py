"""A network in pieces among several processes, by torch's FSDP2, for the passes that train it.

The whole network stays where it is: rollouts, evaluations and files read it as they would alone. Beside
it lies a copy whose weights, gradients and optimizer state are cut among the processes: a layer's
weights are gathered for its pass and dropped after it, its gradients are summed over the processes and
cut again. After an update the new weights are gathered into the whole network. Embedding, last norm and
head stay gathered from a pass's beginning to the end of its backward pass, since the loss goes through
the head chunk by chunk and leaves the head's gradient where FSDP then finds it. It knows no loss and no
recipe.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from opdcore.known_gradient import carry_back
from opdcore.models.network import Decoding, Ids, Network


class ShardedNetwork:
    """A network in pieces; `module` holds this process' share under the names of the checkpoint."""

    def __init__(self, whole: Network, mesh: DeviceMesh) -> None:
        # The keys and values that a layer returns beside its output are views, which nobody changes.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self.whole = whole
        self._pieces = deepcopy(whole)
        self._root = _Root(self._pieces)
        for layer in _layers(self._pieces.module):
            fully_shard(layer, mesh=mesh)
        fully_shard(self._root, mesh=mesh, reshard_after_forward=False)
        for part in self._root.modules():
            if isinstance(part, FSDPModule):
                # The loss is divided by the whole step's weight already: gradients are summed.
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(enable=True)
        # A process whose tokens met no expert of a mixture takes part in its sum all the same.
        self._root.set_reduce_scatter_unused_params(reduce_scatter_unused_params=True)

    @property
    def module(self) -> nn.Module:
        return self._pieces.module

    @property
    def head(self) -> nn.Module:
        return self._pieces.head

    @property
    def decodable(self) -> tuple[torch.dtype, ...]:
        return self.whole.decodable

    def hidden(self, ids: Tensor, since: int = 0, *, recompute: bool = False) -> Tensor:
        hidden: Tensor = self._root(ids, since, recompute)
        return hidden

    def project(self, hidden: Tensor) -> Tensor:
        return self._pieces.project(hidden)

    def decode(
        self, prompts: Sequence[Ids], *, rows: Sequence[int], room: int, dtype: torch.dtype
    ) -> tuple[Decoding, Tensor]:
        return self.whole.decode(prompts, rows=rows, room=room, dtype=dtype)

    def save(self, folder: Path) -> None:
        self.whole.save(folder)

    def idle(self, device: torch.device) -> None:
        """A pass that adds nothing to any gradient, for a process with less to do than another."""
        hidden = self.hidden(torch.zeros(1, 1, dtype=torch.long, device=device))
        leaf = hidden.detach().flatten(0, 1).requires_grad_()
        logits = self.project(leaf)
        carry_back(logits, torch.zeros_like(logits))
        carry_back(hidden, torch.zeros_like(hidden))

    @torch.no_grad()
    def gather(self) -> None:
        """Give the whole network the weights that an update has changed."""
        whole = dict(self.whole.module.named_parameters())
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                whole[name].copy_(parameter.full_tensor())


class _Root(nn.Module):
    """The network's backbone as one forward call, which is where FSDP gathers weights."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.module = network.module
        self._hidden = network.hidden

    def forward(self, ids: Tensor, since: int, recompute: bool) -> Tensor:  # noqa: FBT001 - FSDP's call
        return self._hidden(ids, since, recompute=recompute)


def cut_like(parameter: DTensor, value: Tensor) -> Tensor:
    """This process' piece of a whole tensor, cut as the parameter is; a mere number is not cut."""
    if value.shape != parameter.shape:
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value, mesh, placements, src_data_rank=None)


def _layers(module: nn.Module) -> nn.ModuleList:
    """The decoder's layers: of the lists of modules the one with the most weights."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=lambda part: sum(p.numel() for p in part.parameters()))
