"""Drawing one token a row from a table of logits by inverting its distribution.

One uniform number a row decides, so a draw costs three passes over the table where the usual race
between exponentials needs a random number for every token of the vocabulary. It knows no model.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Tokens that are summed together, and then the drawn one is looked for in one such block alone; a
# small vocabulary is looked through at once.
_BLOCK = 128
_SMALL = 4096
# A nucleus is looked for among this many most probable tokens before the whole row is sorted.
_CANDIDATES = 512
_JUST_BELOW_ONE = 1 - 1e-15


def draw(
    logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """Draw an id (B,) from logits (B, V) by uniforms (B,) in [0, 1); its logprob under temperature.

    The nucleus of mass `top_p` cuts what can be drawn, not the logprobs.
    """
    scaled = logits.float() if temperature == 1 else logits.float() / temperature
    peak = scaled.amax(-1, keepdim=True)
    weights = (scaled - peak).exp_()
    total = weights.sum(-1, keepdim=True)
    drawable = weights if top_p == 1 else _nucleus(weights, top_p * total)
    ids = _invert(drawable, uniforms)
    chosen = scaled.gather(1, ids[:, None])
    return ids, (chosen - peak - total.log()).squeeze(1)


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The token (B,) in which each row's cumulative weight passes its share of the whole."""
    rows, vocabulary = weights.shape
    if vocabulary <= _SMALL:
        upto = weights.cumsum(-1, dtype=torch.float64)
        return _first_above(upto, uniforms.double() * upto[:, -1])
    whole = vocabulary - vocabulary % _BLOCK
    sums = weights[:, :whole].view(rows, -1, _BLOCK).sum(-1)
    sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], -1)
    upto = sums.double().cumsum(-1)
    target = uniforms.double() * upto[:, -1]
    block = _first_above(upto, target)
    before = (upto - sums).gather(1, block[:, None]).squeeze(1)
    ids = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(1, ids.clamp_max(vocabulary - 1)).masked_fill(ids >= vocabulary, 0.0)
    return block * _BLOCK + _first_above(inside.double().cumsum(-1), target - before)


def _first_above(upto: Tensor, target: Tensor) -> Tensor:
    """Index (B,) of the first of rising sums (B, N) that passes the target, and so of a positive weight."""
    within = torch.minimum(target, upto[:, -1] * _JUST_BELOW_ONE).clamp_min(0.0)
    return torch.searchsorted(upto, within[:, None], right=True).squeeze(1)


def _nucleus(weights: Tensor, mass: Tensor) -> Tensor:
    """Zero all but the fewest most probable tokens that hold `mass` (B, 1) of the weights (B, V)."""
    ordered, ids = weights.topk(min(_CANDIDATES, weights.shape[1]), -1)
    if bool((ordered.sum(-1, keepdim=True) < mass).any()):
        ordered, ids = weights.sort(-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= mass
    return torch.zeros_like(weights).scatter_(-1, ids, ordered.masked_fill_(outside, 0.0))
