"""Loading students and teachers: a local directory or a hub id, safetensors only.

Llama-like decoders are computed by our own code, which needs neither transformers' import nor its
overhead; every other architecture goes through transformers. Nobody outside can tell which it was. It
knows no recipe and no prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from opdcore import hub
from opdcore.contract.errors import BadInput
from opdcore.contract.participant import HubModel, LocalModel, Participant
from opdcore.inspection import ModelCard, inspect
from opdcore.models import decoder_network
from opdcore.models.network import Decoding, Ids, Network
from opdcore.rendering import Renderer


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model with its tokenizer's side of the conversation."""

    network: Network
    renderer: Renderer
    card: ModelCard
    folder: Path

    @property
    def model(self) -> nn.Module:
        """The weights, under the names of the checkpoint."""
        return self.network.module

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def hidden(self, ids: Tensor, since: int = 0, *, recompute: bool = False) -> Tensor:
        """Last hidden states (B, T - since, H) of ids (B, T); each position sees those before it.

        With `recompute` a backward pass computes each layer anew and keeps its input alone.
        """
        return self.network.hidden(ids, since, recompute=recompute)

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V padded) of hidden states (..., H), soft-capped where the model is."""
        return self.network.project(hidden)

    def decode(
        self,
        prompts: Sequence[Ids],
        *,
        rows: Sequence[int],
        room: int,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Decoding, Tensor]:
        """Read each prompt once; row i goes on from prompts[rows[i]] for at most `room` tokens.

        Returns the decoding with the logits (B, V padded) of each row's first token.
        """
        return self.network.decode(prompts, rows=rows, room=room, dtype=dtype)


def load(participant: Participant, *, device: torch.device, field: str) -> LoadedModel:
    """Loads a model in float32 for training or scoring; `field` names it in errors.

    Raises BadInput where the folder cannot be used (see `inspection`), is quantised or lacks weights,
    where the hub cannot be reached, or where the architecture changes its logits in a way that we
    do not know.
    """
    folder = resolve(participant.model, field=field)
    card = inspect(folder)
    _refuse_quantised(folder, card, field)
    renderer = Renderer.from_folder(folder, participant.rendering)
    return LoadedModel(_network(folder, device, field), renderer, card, folder)


def resolve(source: LocalModel | HubModel, *, field: str) -> Path:
    """The local folder of a model, downloaded from the hub where it must be."""
    if source.kind == "local":
        return Path(source.path)
    return hub.find(source) or hub.download(source, told=lambda *_: None, field=field).folder


def _network(folder: Path, device: torch.device, field: str) -> Network:
    own = decoder_network.load(folder, device=device)
    if own is not None:
        return own
    from opdcore.models import transformers_network

    return transformers_network.load(folder, device=device, field=field)


def _refuse_quantised(folder: Path, card: ModelCard, field: str) -> None:
    if card.quantization is not None:
        raise BadInput(
            "model.quantised",
            f"{folder} is quantised ({card.quantization}); only plain weights are trained and scored.",
            remedy="Use the model that it was quantised from.",
            field=field,
        )
