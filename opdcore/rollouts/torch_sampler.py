"""Samples rollouts with torch alone: an own decode loop over the model's KV cache.

Rows end each at its own stop id and leave the batch, so a long straggler does not hold the others'
memory and time. It knows no recipe and no prompt set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from opdcore.models import LoadedModel
from opdcore.rollouts.rollout import Rollout

# KV cache of one batch of rows; more rows are sampled in further batches.
CACHE_BYTES = 4 * 2**30
# Rows leave the batch in groups, since each removal copies the cache.
KEPT_SHARE = 0.75


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn; ids at or above `vocabulary` are never drawn."""

    max_tokens: int
    temperature: float
    top_p: float
    vocabulary: int
    stop_ids: frozenset[int]


@dataclass
class _Batch:
    """The rows still being written: their cache, their last ids, and where their output goes."""

    cache: DynamicCache
    rows: list[int]
    mask: Tensor
    positions: Tensor
    written: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    stopped: list[bool] = field(default_factory=list)


@torch.inference_mode()
def sample(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    generator: torch.Generator,
) -> list[Rollout]:
    """One rollout of each prompt's ids, in the prompts' order; `prompt_index` is the row.

    `logprobs` are exact under the tempered distribution over the vocabulary, before the nucleus is
    cut.
    """
    rollouts: list[Rollout | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for rows in _batches(model, order, prompts, sampling):
        for rollout in _sample_batch(model, rows, prompts, sampling, generator):
            rollouts[rollout.prompt_index] = rollout
    return [rollout for rollout in rollouts if rollout is not None]


def _batches(
    model: LoadedModel, order: list[int], prompts: Sequence[Sequence[int]], sampling: Sampling
) -> list[list[int]]:
    """Cuts rows, shortest prompt first, into batches whose cache stays within CACHE_BYTES."""
    card = model.card
    bytes_per_token = 2 * card.layers * card.kv_heads * card.head_dim * 4
    longest = max((len(prompts[row]) for row in order), default=0) + sampling.max_tokens
    size = max(1, CACHE_BYTES // (bytes_per_token * longest))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _sample_batch(
    model: LoadedModel,
    rows: list[int],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    generator: torch.Generator,
) -> list[Rollout]:
    batch, hidden = _prefill(model, rows, prompts, sampling)
    active = list(range(len(rows)))
    for index in range(sampling.max_tokens):
        ids, logprobs = _draw(model.project(hidden), sampling, generator)
        active_rows = _write(batch, active, ids.tolist(), logprobs.tolist(), sampling)
        kept = [i for i, going in enumerate(active_rows) if going]
        if not kept or index + 1 == sampling.max_tokens:
            break
        if len(kept) <= KEPT_SHARE * len(active):
            ids = _compact(batch, kept, ids)
            active = [active[i] for i in kept]
        hidden = _decode(model, batch, ids)
    return [
        Rollout(row, tuple(batch.written[i]), tuple(batch.logprobs[i]), batch.stopped[i])
        for i, row in enumerate(rows)
    ]


def _prefill(
    model: LoadedModel, rows: list[int], prompts: Sequence[Sequence[int]], sampling: Sampling
) -> tuple[_Batch, Tensor]:
    """Runs the prompts, padded on the left; returns the batch and the last hidden states (B, H)."""
    lengths = [len(prompts[row]) for row in rows]
    width = max(lengths)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.ones(len(rows), width + sampling.max_tokens, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - lengths[i] :] = torch.tensor(prompts[row])
        mask[i, : width - lengths[i]] = 0
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask[:, :width].cumsum(1) - 1).clamp_min(0)
    batch = _Batch(DynamicCache(config=model.model.config), rows, mask, positions[:, -1:])
    batch.written = [[] for _ in rows]
    batch.logprobs = [[] for _ in rows]
    batch.stopped = [False] * len(rows)
    hidden = model.hidden(
        ids, attention_mask=_visible(batch, width), position_ids=positions, cache=batch.cache
    )
    return batch, hidden[:, -1]


def _decode(model: LoadedModel, batch: _Batch, ids: Tensor) -> Tensor:
    """Runs one token a row (B,) and returns its hidden states (B, H)."""
    batch.positions = batch.positions + 1
    width = batch.cache.get_seq_length() + 1
    hidden = model.hidden(
        ids[:, None],
        attention_mask=_visible(batch, width),
        position_ids=batch.positions,
        cache=batch.cache,
    )
    return hidden[:, -1]


def _visible(batch: _Batch, width: int) -> Tensor | None:
    """The mask of the first `width` positions; None where nothing is padded, which is faster."""
    return batch.mask[:, :width] if bool((batch.mask[:, 0] == 0).any()) else None


def _draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws one id a row from logits (B, V) by an exponential race; returns ids and logprobs (B,)."""
    logprobs = (logits[:, : sampling.vocabulary].float() / sampling.temperature).log_softmax(-1)
    weights = logprobs.exp()
    if sampling.top_p < 1:
        weights = _nucleus(weights, sampling.top_p)
    race = torch.empty_like(weights).exponential_(generator=generator)
    ids = (weights / race).argmax(-1)
    return ids, logprobs.gather(-1, ids[:, None]).squeeze(-1)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zeroes all but the fewest most probable tokens that hold `top_p` of the mass."""
    ordered, ids = probabilities.sort(-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    return probabilities.scatter(-1, ids, ordered.masked_fill(outside, 0.0))


def _write(
    batch: _Batch, active: list[int], ids: list[int], logprobs: list[float], sampling: Sampling
) -> list[bool]:
    """Appends the drawn ids to the rows that still go on; says which go on after it."""
    going = []
    for row, token, logprob in zip(active, ids, logprobs, strict=True):
        if not batch.stopped[row]:
            batch.written[row].append(token)
            batch.logprobs[row].append(logprob)
            batch.stopped[row] = token in sampling.stop_ids
        going.append(not batch.stopped[row])
    return going


def _compact(batch: _Batch, kept: list[int], ids: Tensor) -> Tensor:
    """Drops finished rows from cache and mask; returns the ids of those that stay."""
    keep = torch.tensor(kept, device=ids.device)
    batch.cache.batch_select_indices(keep)
    batch.mask = batch.mask[keep]
    batch.positions = batch.positions[keep]
    return ids[keep]
