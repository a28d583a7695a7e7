"""Decodes with our own decoder: prompts once, then a token a row at a time over a preallocated cache.

Rows stand right-aligned, so that all write their next key and value in the same place; where prompts
differ in length the room on the left is hidden. Keys are kept transposed, as the product with one
query wants them. It knows no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from opdcore.models import kernels
from opdcore.models.adapters import effective_weight
from opdcore.models.decoder import Attention, Decoder, Layer
from opdcore.models.network import Ids

# Weights that read the same input are joined, one product for two or three, where copying is cheap.
JOINED_BYTES = 64 * 2**20
# The cache grows by doubling, from this many positions of responses.
FIRST_ROOM = 256
# Finite, since a score of -inf everywhere would make a softmax of nothing.
_HIDDEN = -1e30


@dataclass(frozen=True)
class _Product:
    """Linear maps of one input, their outputs side by side."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, *linears: nn.Module, dtype: torch.dtype) -> _Product:
        weights = tuple(effective_weight(linear).to(dtype) for linear in linears)
        biases = tuple(None if linear.bias is None else linear.bias.to(dtype) for linear in linears)
        if len(weights) == 1 or sum(weight.nbytes for weight in weights) > JOINED_BYTES:
            return cls(weights, biases)
        return cls((torch.cat(weights),), (None if biases[0] is None else torch.cat(biases),))

    def __call__(self, x: Tensor) -> Tensor:
        outputs = [
            functional.linear(x, weight, bias)
            for weight, bias in zip(self.weights, self.biases, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


@dataclass(frozen=True)
class _LayerWeights:
    """A layer as decoding reads it; `head_norm` (heads + kv_heads, D) scales queries and keys."""

    before_attention: Tensor
    qkv: _Product
    head_norm: Tensor | None
    output: _Product
    before_feed_forward: Tensor
    gate_up: _Product
    down: _Product

    @classmethod
    def of(cls, layer: Layer, dtype: torch.dtype) -> _LayerWeights:
        attention, feed_forward = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        return cls(
            before_attention=layer.input_layernorm.weight,
            qkv=_Product.of(*projections, dtype=dtype),
            head_norm=_head_norm(attention),
            output=_Product.of(attention.o_proj, dtype=dtype),
            before_feed_forward=layer.post_attention_layernorm.weight,
            gate_up=_Product.of(feed_forward.gate_proj, feed_forward.up_proj, dtype=dtype),
            down=_Product.of(feed_forward.down_proj, dtype=dtype),
        )


class DecoderDecoding:
    """Rows (B) of a decoder with keys (L, B, K, D, T) and values (L, B, K, T, D) of L layers, K heads.

    The layers' products and the cache are of `dtype`, norms and logits of float32.
    """

    def __init__(
        self, decoder: Decoder, widths: Sequence[int], *, room: int, dtype: torch.dtype
    ) -> None:
        shape = decoder.shape
        self.decoder, self.shape, self.rows, self.width = decoder, shape, len(widths), max(widths)
        self.limit = self.width + room
        self.layers = [_LayerWeights.of(layer, dtype) for layer in decoder.model.layers]
        self.head = _Product.of(decoder.lm_head, dtype=torch.float32)
        weight = torch.empty(0, dtype=dtype, device=decoder.lm_head.weight.device)
        capacity = self.width + min(room, FIRST_ROOM)
        heads = (shape.layers, self.rows, shape.kv_heads)
        self.keys = weight.new_empty(*heads, shape.head_dim, capacity)
        self.values = weight.new_empty(*heads, capacity, shape.head_dim)
        self.padding = torch.tensor([self.width - width for width in widths], device=weight.device)
        self.padded = bool(self.padding.any())
        self.tables = decoder.rotary(torch.arange(self.limit, device=weight.device))
        self._view()

    def step(self, ids: Tensor) -> Tensor:
        """Append one id to each row (B,); the logits (B, V) of what follows."""
        if self.width == self.values.shape[3]:
            self._grow()
        cosines, signed_sines = (table[self.width - self.padding] for table in self.tables)
        x = self.decoder.model.embed_tokens(ids)
        for weights, keys, values in zip(self.layers, self.row_keys, self.row_values, strict=True):
            heads = self._heads(weights, x)
            turned = kernels.turned(heads[:, : -self.shape.kv_heads], cosines, signed_sines)
            keys.select(3, self.width).copy_(turned[:, self.shape.heads :])
            values.select(2, self.width).copy_(heads[:, -self.shape.kv_heads :])
            x = x + weights.output(self._gather(turned[:, : self.shape.heads], keys, values))
            inner = weights.gate_up(self._normalised(x, weights.before_feed_forward))
            gate, up = inner.chunk(2, -1)
            x = x + weights.down(functional.silu(gate).mul_(up))
        self.width += 1
        return self.head(self.decoder.model.norm(x))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order; only rows that change their place are copied."""
        moved = [(old, new) for new, old in enumerate(rows) if old != new]
        self.rows = len(rows)
        if moved:
            old, new = torch.tensor(moved, device=self.keys.device).unbind(1)
            self.keys[:, new, :, :, : self.width] = self.keys[:, old, :, :, : self.width]
            self.values[:, new, :, : self.width] = self.values[:, old, :, : self.width]
        self.padding = self.padding[torch.tensor(rows, device=self.keys.device)]
        self._view()

    def fill(self, index: int, keys: Tensor, values: Tensor) -> None:
        """Put a layer's keys and values (B, T, K, D) of the prompts in place."""
        self.keys[index, :, :, :, : self.width] = keys.permute(0, 2, 3, 1)
        self.values[index, :, :, : self.width] = values.transpose(1, 2)

    def _heads(self, weights: _LayerWeights, x: Tensor) -> Tensor:
        """Queries, keys and values (B, heads + 2 K, D) of the residual stream x (B, width)."""
        shape = self.shape
        heads = weights.qkv(self._normalised(x, weights.before_attention))
        heads = heads.view(self.rows, -1, shape.head_dim)
        if weights.head_norm is not None:
            turning = heads[:, : -shape.kv_heads]
            inverse = kernels.inverse_rms(turning.float(), shape.epsilon)
            turning.copy_((turning * inverse).mul_(weights.head_norm))
        return heads

    def _gather(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What the queries (B, heads, D) find in a layer's cache, (B, heads * D)."""
        asked = queries.to(keys.dtype).reshape(
            self.rows * self.shape.kv_heads, -1, queries.shape[2]
        )
        end = self.width + 1
        scores = torch.baddbmm(
            self.hidden[..., :end] if self.padded else self.hidden,
            asked,
            keys.flatten(0, 1).narrow(2, 0, end),
            beta=int(self.padded),
            alpha=self.shape.head_dim**-0.5,
        )
        found = torch.bmm(scores.softmax(-1), values.flatten(0, 1).narrow(1, 0, end))
        return found.view(self.rows, -1)

    def _normalised(self, x: Tensor, weight: Tensor) -> Tensor:
        normalised = functional.rms_norm(x, weight.shape, weight, self.shape.epsilon)
        return normalised.to(self.keys.dtype)

    def _grow(self) -> None:
        more = min(2 * self.width, self.limit) - self.width
        self.keys = functional.pad(self.keys[:, : self.rows], (0, more))
        self.values = functional.pad(self.values[:, : self.rows], (0, 0, 0, more))
        self._view()

    def _view(self) -> None:
        """Look anew at the rows that go on: each layer's cache, and what is hidden from each row.

        `hidden` is (B * K, 1, T) where prompts differ in length, and otherwise only a place holder.
        """
        self.row_keys = [keys[: self.rows] for keys in self.keys]
        self.row_values = [values[: self.rows] for values in self.values]
        self.hidden = self.keys.new_zeros(1, 1, 1)
        if self.padded:
            places = torch.arange(self.limit, device=self.keys.device)
            outside = (places < self.padding[:, None]).to(self.keys.dtype) * _HIDDEN
            self.hidden = outside.repeat_interleave(self.shape.kv_heads, 0)[:, None]


def decode(
    decoder: Decoder,
    prompts: Sequence[Ids],
    *,
    rows: Sequence[int],
    room: int,
    dtype: torch.dtype,
) -> tuple[DecoderDecoding, Tensor]:
    """Read each prompt once; row i goes on from prompts[rows[i]] for at most `room` tokens.

    Returns the decoding with the logits (B, V) of each row's first token. Prompts are read in the
    model's own precision, what follows in `dtype`.
    """
    widths = [len(prompt) for prompt in prompts]
    decoding = DecoderDecoding(decoder, [widths[row] for row in rows], room=room, dtype=dtype)
    device, width = decoding.keys.device, decoding.width
    ids = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts], device=device)
    padding = width - torch.tensor(widths, device=device)
    positions = (torch.arange(width, device=device) - padding[:, None]).clamp_min(0)
    visible, rotary = _visible(padding, width), decoder.rotary(positions)
    chosen = torch.tensor(rows, device=device)
    x = decoder.model.embed_tokens(ids)
    for index, layer in enumerate(decoder.model.layers):
        x, keys, values = layer(x, rotary, visible)
        decoding.fill(index, keys[chosen], values[chosen])
    logits: Tensor = decoder.lm_head(decoder.model.norm(x[:, -1]))
    return decoding, logits[chosen]


def _visible(padding: Tensor, width: int) -> Tensor | None:
    """Which places each place may look at, (B, 1, T, T); None where it is all those before it.

    The room on the left sees itself, since a softmax over nothing is not a number.
    """
    if not bool(padding.any()):
        return None
    places = torch.arange(width, device=padding.device)
    real = places >= padding[:, None]
    causal = places <= places[:, None]
    alone = torch.eye(width, dtype=torch.bool, device=padding.device)
    return ((causal & real[:, None, :]) | alone)[:, None]


def _head_norm(attention: Attention) -> Tensor | None:
    shape = attention.shape
    if not shape.head_norms:
        return None
    queries = attention.q_norm.weight.expand(shape.heads, -1)
    return torch.cat([queries, attention.k_norm.weight.expand(shape.kv_heads, -1)])
