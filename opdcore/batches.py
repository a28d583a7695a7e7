"""Micro-batches: rollouts of like length together, each side's prompt before the same response.

It knows ids and lengths, no loss and no recipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdcore.contract.training import Precision
from opdcore.models import LoadedModel
from opdcore.rollouts import Rollout

Ids = Sequence[int]

# What one more forward and backward pass costs, in tokens that a small model could have read instead.
PASS_TOKENS = 192


@dataclass(frozen=True)
class Batch:
    """Rollouts that go through the models together, their N response positions row after row."""

    rollouts: tuple[int, ...]
    lengths: tuple[int, ...]
    sampled_ids: Tensor  # (N,)
    logprobs: Tensor  # (N,) as sampled
    positions: Tensor  # (N,) index within the response
    ids: tuple[Tensor, ...]  # by side: (B, T) prompt and response, padded on the right
    since: tuple[int, ...]  # by side: the first position that predicts a sampled id
    columns: tuple[Tensor, ...]  # by side: (N,) index into B * (T - since) that predicts each

    @property
    def longest(self) -> int:
        """Tokens of the longest text that the student reads."""
        return self.ids[0].shape[1]

    @property
    def size(self) -> int:
        """Tokens that the models read, padding included."""
        return sum(ids.numel() for ids in self.ids)


def cut(
    rollouts: Sequence[Rollout],
    prompts: Sequence[Sequence[Ids]],
    *,
    tokens: int,
    among: Sequence[int] | None = None,
    parts: int = 1,
) -> Iterator[Batch]:
    """Cuts rollouts into batches of at most `tokens` tokens, padding included, longest first.

    Where it is cut makes padding and passes together as cheap as they can be. `prompts` gives each
    side's prompt ids of each rollout; only the rollouts at the places `among` are cut where it is given.
    One rollout longer than `tokens` is a batch of its own. `parts` processes share the batches, so that
    each is at most that part of all tokens.
    """
    places = range(len(rollouts)) if among is None else among
    widths = {i: max(len(side[i]) for side in prompts) + len(rollouts[i].ids) for i in places}
    order = sorted(places, key=lambda i: -widths[i])
    if parts > 1:
        tokens = min(tokens, math.ceil(sum(widths.values()) / parts))
    for start, end in _cuts([widths[i] for i in order], tokens):
        yield _batch(rollouts, prompts, order[start:end])


def _cuts(widths: Sequence[int], tokens: int) -> list[tuple[int, int]]:
    """Spans of falling widths with the least tokens, padding and passes together counted."""
    least, begins = [0.0], [0]
    for end in range(1, len(widths) + 1):
        least.append(math.inf)
        begins.append(end - 1)
        for start in range(end - 1, -1, -1):
            padded = widths[start] * (end - start)
            if padded > tokens and end - start > 1:
                break
            cost = least[start] + padded + PASS_TOKENS
            if cost < least[end]:
                least[end], begins[end] = cost, start
    spans, end = [], len(widths)
    while end > 0:
        spans.append((begins[end], end))
        end = begins[end]
    return spans[::-1]


def sequences(batch: Batch, *, side: int) -> list[tuple[list[int], int]]:
    """Each row's prompt and response without padding, and where the response begins."""
    ids, since, columns = batch.ids[side], batch.since[side], batch.columns[side]
    width, first, found = ids.shape[1] - since, 0, []
    for row, length in enumerate(batch.lengths):
        # The state before the first response token is the prompt's last.
        start = int(columns[first]) - row * width + since + 1 if length else ids.shape[1]
        found.append((ids[row, : start + length].tolist(), start))
        first += length
    return found


def spans(batches: Sequence[Batch]) -> dict[int, slice]:
    """Where each rollout's positions lie in the concatenated columns of the batches."""
    found, start = {}, 0
    for batch in batches:
        for index, length in zip(batch.rollouts, batch.lengths, strict=True):
            found[index] = slice(start, start + length)
            start += length
    return found


def response_hidden(
    model: LoadedModel,
    batch: Batch,
    *,
    side: int,
    precision: Precision = "float32",
    recompute: bool = False,
) -> Tensor:
    """Hidden states (N, H), float32, from which each response token of the batch is predicted.

    Padding is on the right, where no valid position can see it, so that no mask is needed. With
    `recompute` a backward pass computes each layer anew.
    """
    lower = precision != "float32"
    ids, since = batch.ids[side].to(model.device), batch.since[side]
    with torch.autocast(model.device.type, getattr(torch, precision), enabled=lower):
        hidden = model.hidden(ids, since, recompute=recompute).float()
    return hidden.reshape(-1, hidden.shape[-1])[batch.columns[side].to(model.device)]


def _batch(
    rollouts: Sequence[Rollout], prompts: Sequence[Sequence[Ids]], chosen: Sequence[int]
) -> Batch:
    responses = [rollouts[i].ids for i in chosen]
    given = [[side[i] for i in chosen] for side in prompts]
    since = tuple(min(len(prompt) for prompt in side) - 1 for side in given)
    return Batch(
        rollouts=tuple(chosen),
        lengths=tuple(len(ids) for ids in responses),
        sampled_ids=torch.tensor([token for ids in responses for token in ids]),
        logprobs=torch.tensor([value for i in chosen for value in rollouts[i].logprobs]),
        positions=torch.cat([torch.arange(len(ids)) for ids in responses]),
        ids=tuple(_padded(side, responses) for side in given),
        since=since,
        columns=tuple(
            _columns(side, responses, first) for side, first in zip(given, since, strict=True)
        ),
    )


def _padded(prompts: Sequence[Ids], responses: Sequence[Ids]) -> Tensor:
    rows = [[*prompt, *ids] for prompt, ids in zip(prompts, responses, strict=True)]
    width = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def _columns(prompts: Sequence[Ids], responses: Sequence[Ids], since: int) -> Tensor:
    """The state before a token predicts it: the first one is predicted by the prompt's last."""
    pairs = list(zip(prompts, responses, strict=True))
    width = max(len(prompt) + len(ids) for prompt, ids in pairs) - since
    return torch.cat(
        [
            torch.arange(len(ids)) + row * width + len(prompt) - 1 - since
            for row, (prompt, ids) in enumerate(pairs)
        ]
    )
