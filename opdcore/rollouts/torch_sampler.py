"""Samples rollouts with torch alone: a decode loop whose rows leave the batch as they end.

A long straggler does not hold the others' time, and a prompt with several rollouts is read
once. Every token of a row is drawn with a number that depends on the row and the position alone, so
that how rows are batched changes nothing. It knows no recipe and no prompt set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from opdcore.estimate import CACHE_BYTES
from opdcore.models import LoadedModel
from opdcore.rollouts.draws import draw
from opdcore.rollouts.rollout import Rollout
from opdcore.rollouts.sampling import Sampling

# Positions for which numbers are drawn at once.
DRAWN_AHEAD = 128


@torch.inference_mode()
def sample(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    generator: torch.Generator,
    among: Sequence[int] | None = None,
) -> list[Rollout]:
    """One rollout of each prompt's ids, in the prompts' order; `prompt_index` is the row.

    `logprobs` are exact under the tempered distribution over the vocabulary, before the nucleus is
    cut. `generator` is on the CPU, whatever the model's device. Only the rows `among` are sampled where
    they are given, as they would be among all.
    """
    rollouts: list[Rollout | None] = [None] * len(prompts)
    rows = range(len(prompts)) if among is None else among
    order = sorted(rows, key=lambda row: len(prompts[row]))
    seed = int(torch.randint(2**62, (1,), generator=generator))
    for some in _batches(model, order, prompts, sampling):
        for row, rollout in zip(some, _batch(model, some, prompts, sampling, seed), strict=True):
            rollouts[row] = rollout
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


def _batch(
    model: LoadedModel,
    rows: list[int],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int,
) -> list[Rollout]:
    """The rollouts of some rows; `going` are those whose response is not over, in the batch's order."""
    distinct = {tuple(prompts[row]): None for row in rows}
    places = {prompt: place for place, prompt in enumerate(distinct)}
    which = [places[tuple(prompts[row])] for row in rows]
    decoding, logits = model.decode(
        list(distinct),
        rows=which,
        room=sampling.max_tokens,
        dtype=getattr(torch, sampling.precision),
    )
    written = _Written(rows)
    going = list(range(len(rows)))
    for uniforms in _uniforms(len(prompts), sampling.max_tokens, seed):
        ids, logprobs = draw(
            logits[:, : sampling.vocabulary],
            uniforms[[rows[row] for row in going]].to(logits.device),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        tokens = ids.tolist()
        written.append(going, tokens, logprobs.tolist())
        left = _left([token in sampling.stop_ids for token in tokens])
        if not left or written.length == sampling.max_tokens:
            break
        if len(left) < len(going):
            decoding.keep(left)
            going = [going[place] for place in left]
            ids = ids[torch.tensor(left, device=ids.device)]
        logits = decoding.step(ids)
    return written.rollouts(sampling.stop_ids)


class _Written:
    """What the rows of a batch have written so far."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = rows
        self.ids: list[list[int]] = [[] for _ in rows]
        self.logprobs: list[list[float]] = [[] for _ in rows]
        self.length = 0

    def append(self, going: Sequence[int], ids: Sequence[int], logprobs: Sequence[float]) -> None:
        self.length += 1
        for row, token, logprob in zip(going, ids, logprobs, strict=True):
            self.ids[row].append(token)
            self.logprobs[row].append(logprob)

    def rollouts(self, stop_ids: frozenset[int]) -> list[Rollout]:
        return [
            Rollout(row, tuple(ids), tuple(logprobs), ids[-1] in stop_ids)
            for row, ids, logprobs in zip(self.rows, self.ids, self.logprobs, strict=True)
        ]


def _uniforms(rows: int, length: int, seed: int) -> Iterator[Tensor]:
    """A column (rows,) of uniform numbers for each of `length` positions."""
    for start in range(0, length, DRAWN_AHEAD):
        generator = torch.Generator().manual_seed(seed + start)
        ahead = torch.rand(rows, DRAWN_AHEAD, generator=generator, dtype=torch.float64)
        yield from ahead.unbind(1)[: length - start]


def _left(ended: Sequence[bool]) -> list[int]:
    """Places of the rows that go on: in order, but the last ones fill the gaps of those that ended.

    So a decoding copies as many rows as ended before them, not all that stay.
    """
    count = len(ended) - sum(ended)
    spare = (place for place in range(len(ended) - 1, count - 1, -1) if not ended[place])
    return [next(spare) if ended[place] else place for place in range(count)]
