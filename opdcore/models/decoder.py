"""A Llama-like decoder in plain torch: Llama, Qwen2 and Qwen3.

It computes what transformers' classes of these names compute, with fewer and cheaper operations, and
needs nothing but torch. Parameters carry the checkpoint's own names, so files are read and written as
they are. It knows no folder, no tokenizer and no cache; `decoding` has that. No dropout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from opdcore.contract.training import LONG_TEXT
from opdcore.models import kernels
from opdcore.models.shape import Shape, rotary_frequencies

Rotary = tuple[Tensor, Tensor]


class Linear(nn.Linear):
    """A linear map without weights of its own making: they come from a file."""

    def reset_parameters(self) -> None:
        """Leave them as they are."""


class Embedding(nn.Embedding):
    """A table of rows without weights of its own making: they come from a file."""

    def reset_parameters(self) -> None:
        """Leave them as they are."""


class Norm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.weight, self.epsilon)


class Attention(nn.Module):
    """Causal self-attention over grouped key and value heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = Linear(shape.width, queries, bias=shape.qkv_bias)
        self.k_proj = Linear(shape.width, keys, bias=shape.qkv_bias)
        self.v_proj = Linear(shape.width, keys, bias=shape.qkv_bias)
        self.o_proj = Linear(queries, shape.width, bias=shape.output_bias)
        if shape.head_norms:
            self.q_norm = Norm(shape.head_dim, shape.epsilon)
            self.k_norm = Norm(shape.head_dim, shape.epsilon)

    def forward(
        self, x: Tensor, rotary: Rotary, visible: Tensor | None, since: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output (B, T - since, width); the keys and values (B, T, kv_heads, D) that it looked at."""
        head = (len(x), -1, self.shape.heads, self.shape.head_dim)
        kv_head = (len(x), -1, self.shape.kv_heads, self.shape.head_dim)
        queries = self.q_proj(x[:, since:]).view(head)
        keys, values = self.k_proj(x).view(kv_head), self.v_proj(x).view(kv_head)
        if self.shape.head_norms:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        late = (table[..., since:, :, :] for table in rotary)
        queries, keys = kernels.rotate(queries, *late), kernels.rotate(keys, *rotary)
        mixed = functional.scaled_dot_product_attention(
            queries.transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=visible,
            is_causal=visible is None,
            enable_gqa=self.shape.heads != self.shape.kv_heads,
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), keys, values


class FeedForward(nn.Module):
    """The gated feed-forward part of a layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, inner, bias = shape.width, shape.feed_forward, shape.feed_forward_bias
        self.gate_proj = Linear(width, inner, bias=bias)
        self.up_proj = Linear(width, inner, bias=bias)
        self.down_proj = Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """The same at every position, so that a long text that nobody learns from goes by parts."""
        if torch.is_grad_enabled() or x.shape[1] <= LONG_TEXT:
            return self._of(x)
        return torch.cat([self._of(part) for part in x.split(LONG_TEXT // 4, 1)], 1)

    def _of(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(kernels.swiglu(self.gate_proj(x), self.up_proj(x)))
        return down


class Layer(nn.Module):
    """Attention and feed-forward, each normalised before and added to the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.width, shape.epsilon)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.width, shape.epsilon)
        self.mlp = FeedForward(shape)

    def forward(
        self, x: Tensor, rotary: Rotary, visible: Tensor | None, since: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed, keys, values = self.self_attn(self.input_layernorm(x), rotary, visible, since)
        x = x[:, since:] + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class Backbone(nn.Module):
    """Embedding, layers and the last normalisation."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width, shape.epsilon)


class Decoder(nn.Module):
    """The whole model; make it on the meta device and give it weights with `load_state_dict`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)
        self.lm_head = Linear(shape.width, shape.vocabulary, bias=False)
        self.tie()

    def tie(self) -> None:
        """Make the head the embedding, where the shape says so; loading weights parts them."""
        if self.shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def rotary(self, positions: Tensor) -> Rotary:
        """Tables of the rotary embedding for positions (T,) or (B, T)."""
        frequencies = torch.tensor(rotary_frequencies(self.shape), device=positions.device)
        return kernels.rotary_tables(positions, frequencies)

    def forward(self, ids: Tensor, since: int = 0, *, recompute: bool = False) -> Tensor:
        """Last hidden states (B, T - since, width) of ids (B, T); each position sees those before it.

        The last layer is computed from position `since` on alone, unless the text is so long that what
        is visible to whom would take more memory than that spares.
        """
        x = self.model.embed_tokens(ids)
        places = torch.arange(ids.shape[1], device=ids.device)
        rotary = self.rotary(places)
        *first, last = self.model.layers
        for layer in first:
            x = _computed(layer, x, rotary, recompute=recompute)
        if since == 0 or len(places) > LONG_TEXT:
            x = _computed(last, x, rotary, recompute=recompute)[:, since:]
        else:
            visible = places <= places[since:, None]
            x = _computed(last, x, rotary, visible, since, recompute=recompute)
        normalised: Tensor = self.model.norm(x)
        return normalised


def _computed(
    layer: nn.Module,
    x: Tensor,
    rotary: Rotary,
    visible: Tensor | None = None,
    since: int = 0,
    *,
    recompute: bool,
) -> Tensor:
    """A layer's output, which the backward pass computes again where that is asked for."""
    if recompute and torch.is_grad_enabled():
        output: Tensor = checkpoint(
            lambda x: layer(x, rotary, visible, since)[0],
            x,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return output
    output, _, _ = layer(x, rotary, visible, since)
    return output
