"""Any architecture that transformers can load, as a network: its backbone, its head and its own cache.

transformers draws absent weights at random and changes logits in ways of its own; both are refused
here. It knows no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from opdcore.contract.errors import BadInput
from opdcore.device import is_out_of_memory
from opdcore.models.network import Ids
from opdcore.projection import through

# Largest difference allowed between our projection and the model's own logits, in nats.
PROJECTION_TOLERANCE = 1e-3
# What transformers raises over a configuration or weights that do not fit together.
UNLOADABLE = (
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


class TransformersNetwork:
    """A model of transformers as a network; its logits are soft-capped where its configuration says."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.can_recompute = False
        self.soft_cap: float | None = model.config.to_dict().get("final_logit_softcapping")

    @property
    def module(self) -> nn.Module:
        return self.model

    @property
    def head(self) -> nn.Module:
        head: nn.Module = self.model.get_output_embeddings()
        return head

    @property
    def decodable(self) -> tuple[torch.dtype, ...]:
        return (self.model.dtype,)

    def hidden(self, ids: Tensor, since: int = 0, *, recompute: bool = False) -> Tensor:
        self._recompute(asked=recompute)
        hidden: Tensor = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden[:, since:]

    def _recompute(self, *, asked: bool) -> None:
        """Layers that are told to recompute do so while they think that they train; their parts do not."""
        if asked and not self.can_recompute:
            if not self.model.supports_gradient_checkpointing:
                raise BadInput(
                    "model.no_recomputing",
                    f"{type(self.model).__name__} cannot compute its layers anew in a backward pass.",
                    remedy="Set gradient_checkpointing to never, or shorten the responses.",
                    field="gradient_checkpointing",
                )
            # Its name since 5.18; the other one warns there.
            enable = getattr(self.model, "activation_checkpointing_enable", None)
            enable = enable or self.model.gradient_checkpointing_enable
            enable({"use_reentrant": False, "preserve_rng_state": False})
            self.can_recompute = True
        for part in self.model.modules():
            if isinstance(part, GradientCheckpointingLayer):
                part.training = asked

    def project(self, hidden: Tensor) -> Tensor:
        logits = through(self.head, hidden)
        cap = self.soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def decode(
        self, prompts: Sequence[Ids], *, rows: Sequence[int], room: int, dtype: torch.dtype
    ) -> tuple[TransformersDecoding, Tensor]:
        if dtype not in self.decodable:
            raise ValueError(f"{type(self.model).__name__} cannot be decoded in {dtype}.")
        decoding = TransformersDecoding(self, [len(prompt) for prompt in prompts], room=room)
        width = decoding.mask.shape[1] - room
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        logits = decoding.read(ids.to(self.model.device))
        decoding.keep(rows)
        return decoding, logits[torch.tensor(rows, device=logits.device)]

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


class TransformersDecoding:
    """Rows of a transformers model over its dynamic cache, padded on the left."""

    def __init__(self, network: TransformersNetwork, widths: Sequence[int], *, room: int) -> None:
        self.network, self.cache = network, DynamicCache(config=network.model.config)
        longest = max(widths)
        self.padded = len(set(widths)) > 1
        places = torch.arange(longest + room)
        before = torch.tensor([longest - width for width in widths])
        self.mask = (places >= before[:, None]).long().to(network.model.device)

    def read(self, ids: Tensor) -> Tensor:
        """Append ids (B, T) to the rows; the logits (B, V) of what follows the last."""
        start = self.cache.get_seq_length()
        mask = self.mask[:, : start + ids.shape[1]]
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, start:]
        output = self.network.model.base_model(
            input_ids=ids,
            # Where nothing is padded no mask is needed, and none is faster.
            attention_mask=mask if self.padded else None,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return self.network.project(output.last_hidden_state[:, -1])

    def step(self, ids: Tensor) -> Tensor:
        """Append one id to each row (B,); the logits (B, V) of what follows."""
        return self.read(ids[:, None])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order."""
        chosen = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(chosen)
        self.mask = self.mask[chosen]


def load(folder: Path, *, device: torch.device, field: str) -> TransformersNetwork:
    """The folder in float32 with every weight from it; raises BadInput where it cannot be had so."""
    disable_progress_bar()  # the job's own progress events say how far it is
    model = _whole_model(folder, field)
    model.to(device)
    network = TransformersNetwork(model.eval())
    _check_projection(network, field)
    _check_decoding(network, field)
    return network


def _whole_model(folder: Path, field: str) -> PreTrainedModel:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except UNLOADABLE as error:
        if is_out_of_memory(error):
            raise
        raise BadInput(
            "model.unloadable",
            f"transformers cannot load {folder}: {type(error).__name__}: {error}.",
            remedy="Check config.json against the weights, or save the model again with "
            "`model.save_pretrained(folder)`.",
            field=field,
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise BadInput(
            "model.missing_tensor",
            f"{folder} lacks {missing[0]} ({len(missing)} missing).",
            remedy="Copy the weights again, or save the model again with "
            "`model.save_pretrained(folder)`.",
            field=field,
        )
    loaded: PreTrainedModel = model
    return loaded


@torch.inference_mode()
def _check_projection(network: TransformersNetwork, field: str) -> None:
    ids = torch.tensor([[0, 1, 2, 3]], device=network.model.device)
    ours = network.project(network.hidden(ids))
    theirs = network.model(input_ids=ids).logits
    if (ours - theirs).abs().max().item() > PROJECTION_TOLERANCE:
        raise BadInput(
            "model.logits_transformed",
            f"{type(network.model).__name__} transforms its logits in a way that is not supported.",
            remedy="Use a Llama, Qwen, GPT-NeoX, Gemma or similar architecture.",
            field=field,
        )


@torch.inference_mode()
def _check_decoding(network: TransformersNetwork, field: str) -> None:
    """Whether rows can be continued and dropped; recurrent and hybrid layers keep something else."""
    text = (0, 1, 2, 3)
    try:
        decoding, _ = network.decode(
            [text[:3], text[1:3]], rows=[0, 1], room=1, dtype=network.model.dtype
        )
        ours = decoding.step(torch.tensor([3, 3], device=network.model.device))[0]
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise _undecodable(network, field) from error
    theirs = network.model(input_ids=torch.tensor([text], device=network.model.device)).logits[
        0, -1
    ]
    if (ours - theirs).abs().max().item() > PROJECTION_TOLERANCE:
        raise _undecodable(network, field)


def _undecodable(network: TransformersNetwork, field: str) -> BadInput:
    return BadInput(
        "model.undecodable",
        f"{type(network.model).__name__} does not keep plain keys and values of what it has read.",
        remedy="Use a model whose layers all attend, such as Llama, Qwen, GPT-NeoX or Gemma.",
        field=field,
    )
