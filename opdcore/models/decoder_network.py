"""Folders as networks of our own decoder: which ones it can compute, their weights in and out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from opdcore.files import write_bytes, write_tensors
from opdcore.json_files import read_object
from opdcore.models.decoder import Decoder
from opdcore.models.decoding import DecoderDecoding, decode
from opdcore.models.network import Ids
from opdcore.models.shape import Shape
from opdcore.projection import through
from opdcore.weights_files import SINGLE, read_weights

CONFIG = "config.json"


class DecoderNetwork:
    """Our own decoder as a network."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    @property
    def module(self) -> nn.Module:
        return self.decoder

    @property
    def head(self) -> nn.Module:
        return self.decoder.lm_head

    @property
    def decodable(self) -> tuple[torch.dtype, ...]:
        return torch.float32, torch.bfloat16

    def hidden(self, ids: Tensor, since: int = 0, *, recompute: bool = False) -> Tensor:
        hidden: Tensor = self.decoder(ids, since, recompute=recompute)
        return hidden

    def project(self, hidden: Tensor) -> Tensor:
        return through(self.decoder.lm_head, hidden)

    def decode(
        self, prompts: Sequence[Ids], *, rows: Sequence[int], room: int, dtype: torch.dtype
    ) -> tuple[DecoderDecoding, Tensor]:
        return decode(self.decoder, prompts, rows=rows, room=room, dtype=dtype)

    def save(self, folder: Path) -> None:
        """Weights as they are, in float32, beside the configuration that lies in the folder already."""
        config = read_object(folder / CONFIG, "model.broken_config")
        kept = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
        text = json.dumps({**kept, "dtype": "float32"}, indent=2)
        write_bytes(folder / CONFIG, text.encode())
        write_tensors(folder / SINGLE, dict(self.decoder.named_parameters()))


def load(folder: Path, *, device: torch.device) -> DecoderNetwork | None:
    """The folder in float32; None where it is not one of ours, or where its tensors are not all there.

    What is wrong with such a folder, transformers' loader says.
    """
    shape = _shape(folder)
    if shape is None:
        return None
    with torch.device("meta"):
        decoder = Decoder(shape)
    wanted = {name: parameter.shape for name, parameter in decoder.named_parameters()}
    weights = read_weights(folder)
    found = {name: entry.shape for name, entry in weights.tensors.items()}
    if any(found.get(name) != tuple(shape) for name, shape in wanted.items()):
        return None
    tensors = {
        name: tensor.to(device=device, dtype=torch.float32, copy=True)
        for file in weights.files
        for name, tensor in load_file(file).items()
        if name in wanted
    }
    decoder.load_state_dict(tensors, strict=False, assign=True)
    decoder.tie()
    return DecoderNetwork(decoder.eval())


def _shape(folder: Path) -> Shape | None:
    config = read_object(folder / CONFIG, "model.broken_config")
    try:
        return Shape.of(config)
    except (KeyError, TypeError, ValueError):
        return None
