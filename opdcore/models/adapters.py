"""Low-rank adapters (LoRA, arXiv 2106.09685) put on a model's linear maps for a stage, by peft.

While they are on, only they are trained; when the stage is over they are merged into the weights they
stand on, so that everything after it meets a plain model again. It knows no stage and no optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from opdcore.contract.errors import BadInput
from opdcore.models.network import Network

_NAME = "default"


def targets(network: Network, *, field: str) -> list[str]:
    """Names of the linear maps that get an adapter: all but the head.

    Raises BadInput, naming `field`, where the architecture has none.
    """
    names = [
        name
        for name, module in network.module.named_modules()
        if isinstance(module, nn.Linear) and module is not network.head
    ]
    if not names:
        raise BadInput(
            "recipe.no_linear_maps",
            f"{type(network.module).__name__} has no linear maps that an adapter could stand on.",
            remedy="Choose full tuning.",
            field=field,
        )
    return names


def attach(network: Network, *, rank: int, alpha: float, seed: int) -> None:
    """Put an adapter on every linear map but the head; the update is alpha / rank times B A.

    A is drawn from the seed and B is zero, so the model's outputs do not change. Raises BadInput where
    the architecture has no linear maps to adapt.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = targets(network, field="recipe.stages")
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network.module, _NAME)


@torch.no_grad()
def merge(network: Network) -> None:
    """Add the adapters to the weights that they stand on, take them off, and thaw the model."""
    for name, adapted in list(_adapted(network.module)):
        plain = adapted.get_base_layer()
        plain.weight += adapted.get_delta_weight(_NAME)
        network.module.set_submodule(name, plain)
    del network.module.peft_config  # the mark that peft leaves
    network.module.requires_grad_(requires_grad=True)


def plain_weights(module: nn.Module) -> dict[str, Tensor]:
    """Every weight by its name in the checkpoint, adapters' shares included; tied ones once."""
    if not hasattr(module, "peft_config"):
        return dict(module.named_parameters())
    adapted = dict(_adapted(module))
    found = {
        name: value
        for name, value in module.named_parameters()
        if not any(name.startswith(f"{one}.") for one in adapted)
    }
    with torch.no_grad():
        for name, part in adapted.items():
            found[f"{name}.weight"] = effective_weight(part)
            if part.get_base_layer().bias is not None:
                found[f"{name}.bias"] = part.get_base_layer().bias
    return found


def effective_weight(linear: nn.Module) -> Tensor:
    """The weight that a linear map computes with, its adapter's share included."""
    if isinstance(linear, nn.Linear):
        return linear.weight
    return linear.get_base_layer().weight + linear.get_delta_weight(_NAME)


def _adapted(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    from peft.tuners.lora import LoraLayer

    return ((name, part) for name, part in module.named_modules() if isinstance(part, LoraLayer))
