"""Loading students and teachers: a local directory or a hub id, safetensors only.

Offers each model as a backbone (ids to hidden states) and a projection (hidden states to logits), so
that nothing ever holds (B, T, V). It knows no recipe and no prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils.logging import disable_progress_bar

from opdcore.contract.errors import BadInput
from opdcore.contract.job import HubModel, LocalModel, Participant
from opdcore.device import is_out_of_memory
from opdcore.inspection import ModelCard, inspect
from opdcore.rendering import Renderer

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
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


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model with its tokenizer's side of the conversation."""

    model: PreTrainedModel
    renderer: Renderer
    card: ModelCard
    folder: Path
    soft_cap: float | None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def hidden(
        self,
        ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states (B, T, H) of ids (B, T); fills `cache` where one is given."""
        output = self.model.base_model(
            input_ids=ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V padded) of hidden states (..., H), soft-capped where the model is."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        cap = self.soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)


def load(participant: Participant, *, device: torch.device, field: str) -> LoadedModel:
    """Loads a model in float32 for training or scoring; `field` names it in errors.

    Raises BadInput where the folder cannot be used (see `inspection`), is quantised or lacks weights,
    where the hub cannot be reached, or where the architecture changes its logits in a way that we
    do not know.
    """
    disable_progress_bar()  # the job's own progress events say how far it is
    folder = resolve(participant.model, field=field)
    card = inspect(folder)
    _refuse_quantised(folder, card, field)
    renderer = Renderer.from_folder(folder, participant.rendering)
    model = _whole_model(folder, field)
    model.to(device)
    cap = model.config.to_dict().get("final_logit_softcapping")
    loaded = LoadedModel(model.eval(), renderer, card, folder, cap)
    _check_projection(loaded, field)
    return loaded


def resolve(source: LocalModel | HubModel, *, field: str) -> Path:
    """The local folder of a model, downloaded from the hub where it must be."""
    if source.kind == "local":
        return Path(source.path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(source.repo, revision=source.revision, allow_patterns=HUB_FILES)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BadInput(
            "model.unreachable",
            f"{source.repo} at {source.revision} could not be fetched: {type(error).__name__}.",
            remedy="Check the id, the revision, HF_TOKEN for gated models and the network, or "
            "register a local directory.",
            field=field,
        ) from error


def _refuse_quantised(folder: Path, card: ModelCard, field: str) -> None:
    if card.quantization is not None:
        raise BadInput(
            "model.quantised",
            f"{folder} is quantised ({card.quantization}); only plain weights are trained and scored.",
            remedy="Use the model that it was quantised from.",
            field=field,
        )


def _whole_model(folder: Path, field: str) -> PreTrainedModel:
    """The model with every weight from the folder: transformers would draw absent ones at random."""
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
def _check_projection(loaded: LoadedModel, field: str) -> None:
    ids = torch.tensor([[0, 1, 2, 3]], device=loaded.device)
    ours = loaded.project(loaded.hidden(ids))
    theirs = loaded.model(input_ids=ids).logits
    if (ours - theirs).abs().max().item() > PROJECTION_TOLERANCE:
        raise BadInput(
            "model.logits_transformed",
            f"{loaded.card.architecture} transforms its logits in a way that is not supported.",
            remedy="Use a Llama, Qwen, GPT-NeoX, Gemma or similar architecture.",
            field=field,
        )
