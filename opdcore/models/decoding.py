"""Decodes with our own decoder: prompts once, then a token a row at a time over a preallocated cache.

Rows stand right-aligned, so that all write their next key and value in the same place; where prompts
differ in length the room on the left is hidden. Keys are kept transposed, as the product with one
query wants them. It knows no sampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from opdcore.contract.training import LONG_TEXT
from opdcore.estimate import COPIED_BYTES
from opdcore.models import kernels
from opdcore.models.adapters import effective_weight
from opdcore.models.decoder import Attention, Decoder, Layer, Norm
from opdcore.models.network import Ids

# The cache grows by doubling, from this many positions of responses.
FIRST_ROOM = 256
# Finite, since a score of -inf everywhere would make a softmax of nothing.
_HIDDEN = -1e30


@dataclass(frozen=True)
class _Product:
    """Linear maps of one input, their outputs side by side; matrices are (inputs, outputs)."""

    matrices: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, *linears: nn.Module, dtype: torch.dtype, copied: bool) -> _Product:
        matrices = tuple(effective_weight(linear).to(dtype).t() for linear in linears)
        biases = tuple(None if linear.bias is None else linear.bias.to(dtype) for linear in linears)
        if not copied:
            return cls(matrices, biases)
        bias = None if biases[0] is None else torch.cat(biases)
        return cls((torch.cat(matrices, 1).contiguous(),), (bias,))

    def __call__(self, x: Tensor) -> Tensor:
        outputs = [
            x @ matrix if bias is None else torch.addmm(bias, x, matrix)
            for matrix, bias in zip(self.matrices, self.biases, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


@dataclass(frozen=True)
class _Scale:
    """Root-mean-square normalisation in four operations: x / |(|x|, sqrt(n epsilon))| * sqrt(n) w."""

    weight: Tensor
    floor: Tensor

    @classmethod
    def of(cls, weight: Tensor, epsilon: float) -> _Scale:
        size = weight.shape[-1]
        floor = torch.tensor((size * epsilon) ** 0.5, device=weight.device)
        return cls(weight.float() * size**0.5, floor)

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x / torch.hypot(length, self.floor)).mul_(self.weight)


@dataclass(frozen=True)
class _LayerWeights:
    """A layer as decoding reads it; `heads` normalises queries and keys (heads + kv_heads, D)."""

    before_attention: _Scale
    qkv: _Product
    heads: _Scale | None
    output: _Product
    before_feed_forward: _Scale
    gate_up: _Product
    down: _Product

    @classmethod
    def of(cls, layer: Layer, *, dtype: torch.dtype, copied: bool) -> _LayerWeights:
        attention, feed_forward = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        product = partial(_Product.of, dtype=dtype, copied=copied)
        return cls(
            before_attention=_scale(layer.input_layernorm),
            qkv=product(*projections),
            heads=_head_scale(attention),
            output=product(attention.o_proj),
            before_feed_forward=_scale(layer.post_attention_layernorm),
            gate_up=product(feed_forward.gate_proj, feed_forward.up_proj),
            down=product(feed_forward.down_proj),
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
        self.limit, self.dtype = self.width + room, dtype
        size = sum(parameter.nbytes for parameter in decoder.parameters())
        copied = size <= COPIED_BYTES
        self.layers = [
            _LayerWeights.of(layer, dtype=dtype, copied=copied) for layer in decoder.model.layers
        ]
        self.norm = _scale(decoder.model.norm)
        self.head = _Product.of(decoder.lm_head, dtype=torch.float32, copied=copied)
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
        rotary = self._rotary()
        x = self.decoder.model.embed_tokens(ids)
        for weights, (key, value, keys, values) in zip(self.layers, self._places(), strict=True):
            heads = self._heads(weights, x)
            turned = kernels.turned(heads[:, : -self.shape.kv_heads], *rotary)
            key.copy_(turned[:, self.shape.heads :])
            value.copy_(heads[:, -self.shape.kv_heads :])
            x = x + weights.output(self._gather(turned[:, : self.shape.heads], keys, values))
            inner = weights.gate_up(weights.before_feed_forward(x).to(self.dtype))
            gate, up = inner.chunk(2, -1)
            x = x + weights.down(functional.silu(gate).mul_(up))
        self.width += 1
        return self.head(self.norm(x))

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

    def fill(
        self, index: int, keys: Tensor, values: Tensor, *, rows: Tensor | slice = slice(None)
    ) -> None:
        """Put a layer's keys and values (B, T, K, D) of the prompts in place, or one prompt's of some rows."""
        since = self.width - keys.shape[1]
        self.keys[index, rows, :, :, since : self.width] = keys.permute(0, 2, 3, 1).to(self.dtype)
        self.values[index, rows, :, since : self.width] = values.transpose(1, 2).to(self.dtype)

    def clear(self) -> None:
        """Zeros where a shorter prompt leaves room on its left: hidden, but it must be a number."""
        self.keys[..., : self.width].zero_()
        self.values[..., : self.width, :].zero_()

    def _rotary(self) -> tuple[Tensor, Tensor]:
        cosines, signed_sines = self.tables
        place = self.width - self.padding if self.padded else self.width
        return cosines[place], signed_sines[place]

    def _places(self) -> Iterator[tuple[Tensor, ...]]:
        """Each layer's next key and value (B, K, D), and with them all keys and values (B * K, ...)."""
        key, value = self.row_keys.select(4, self.width), self.row_values.select(3, self.width)
        keys = self.row_keys.flatten(1, 2).narrow(3, 0, self.width + 1)
        values = self.row_values.flatten(1, 2).narrow(2, 0, self.width + 1)
        return zip(key, value, keys, values, strict=True)

    def _heads(self, weights: _LayerWeights, x: Tensor) -> Tensor:
        """Queries, keys and values (B, heads + 2 K, D) of the residual stream x (B, width)."""
        shape = self.shape
        heads = weights.qkv(weights.before_attention(x).to(self.dtype))
        heads = heads.view(self.rows, -1, shape.head_dim)
        if weights.heads is not None:
            turning = heads[:, : -shape.kv_heads]
            turning.copy_(weights.heads(turning))
        return heads

    def _gather(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What the queries (B, heads, D) find in a layer's cache, (B, heads * D)."""
        asked = queries.to(self.dtype).reshape(len(keys), -1, self.shape.head_dim)
        scores = torch.baddbmm(
            self.hidden[..., : self.width + 1] if self.padded else self.hidden,
            asked,
            keys,
            beta=int(self.padded),
            alpha=self.shape.head_dim**-0.5,
        )
        return torch.bmm(scores.softmax(-1), values).view(self.rows, -1)

    def _grow(self) -> None:
        more = min(2 * self.width, self.limit) - self.width
        self.keys = functional.pad(self.keys[:, : self.rows], (0, more))
        self.values = functional.pad(self.values[:, : self.rows], (0, 0, 0, more))
        self._view()

    def _view(self) -> None:
        """Look anew at the rows that go on: their part of the cache, and what is hidden from each row.

        `hidden` is (B * K, 1, T) where prompts differ in length, and otherwise only a place holder.
        """
        self.row_keys, self.row_values = self.keys[:, : self.rows], self.values[:, : self.rows]
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
    if width > LONG_TEXT:
        return decoding, _read_apart(decoder, prompts, decoding, chosen)[chosen]
    x = decoder.model.embed_tokens(ids)
    for index, layer in enumerate(decoder.model.layers):
        x, keys, values = layer(x, rotary, visible)
        decoding.fill(index, keys[chosen], values[chosen])
    logits: Tensor = decoder.lm_head(decoder.model.norm(x[:, -1]))
    return decoding, logits[chosen]


def _read_apart(
    decoder: Decoder, prompts: Sequence[Ids], decoding: DecoderDecoding, chosen: Tensor
) -> Tensor:
    """Fills the decoding prompt by prompt; the logits (P, V) of what follows each.

    One long text is work enough, and alone it needs no padding, for which a table of who sees whom would
    be larger than all else.
    """
    decoding.clear()
    logits = []
    for place, prompt in enumerate(prompts):
        rows = (chosen == place).nonzero().squeeze(1)
        x = decoder.model.embed_tokens(torch.tensor([prompt], device=chosen.device))
        rotary = decoder.rotary(torch.arange(len(prompt), device=chosen.device))
        for index, layer in enumerate(decoder.model.layers):
            x, keys, values = layer(x, rotary, None)
            decoding.fill(index, keys, values, rows=rows)
        logits.append(decoder.lm_head(decoder.model.norm(x[:, -1])))
    return torch.cat(logits)


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


def _scale(norm: Norm) -> _Scale:
    return _Scale.of(norm.weight, norm.epsilon)


def _head_scale(attention: Attention) -> _Scale | None:
    shape = attention.shape
    if not shape.head_norms:
        return None
    queries = attention.q_norm.weight.expand(shape.heads, -1)
    keys = attention.k_norm.weight.expand(shape.kv_heads, -1)
    return _Scale.of(torch.cat([queries, keys]), shape.epsilon)
