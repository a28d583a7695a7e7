"""What the engine asks of any causal language model, whichever code computes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

Ids = Sequence[int]


class Decoding(Protocol):
    """Rows being continued token by token over what the model keeps of them; made by `decode`.

    It reads the weights as they were when it was made.
    """

    def step(self, ids: Tensor) -> Tensor:
        """Append one id to each row (B,); the logits (B, V) of what follows."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order; each row moves to a place not above its own."""
        ...


class Network(Protocol):
    """A model as a backbone and a projection, so that nothing ever holds (B, T, V)."""

    @property
    def module(self) -> nn.Module:
        """The weights, under the names of the checkpoint."""
        ...

    @property
    def head(self) -> nn.Module:
        """What makes logits of hidden states; a tied one is the embedding."""
        ...

    @property
    def decodable(self) -> tuple[torch.dtype, ...]:
        """What `decode` can compute in."""
        ...

    def hidden(self, ids: Tensor, since: int = 0, *, recompute: bool = False) -> Tensor:
        """Last hidden states (B, T - since, H) of ids (B, T); each position sees those before it.

        With `recompute` a backward pass computes each layer anew and keeps its input alone.
        """
        ...

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V padded) of hidden states (..., H), which are (N, H) where it is trained."""
        ...

    def decode(
        self, prompts: Sequence[Ids], *, rows: Sequence[int], room: int, dtype: torch.dtype
    ) -> tuple[Decoding, Tensor]:
        """Read each prompt once; row i goes on from prompts[rows[i]] for at most `room` tokens.

        Returns the decoding with the logits (B, V) of each row's first token; `dtype` is one of
        `decodable`.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write weights and configuration as `AutoModelForCausalLM.from_pretrained` reads them."""
        ...
