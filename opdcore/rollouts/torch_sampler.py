"""Samples rollouts with torch alone: a decode loop whose rows leave the batch as they end.

A long straggler does not hold the others' time, and a prompt with several rollouts is read
once. Every token of a row is drawn with a number that depends on the row and the position alone, so
that how rows are batched changes nothing. Where the cache would grow beyond its bounds, rows are set
aside; later what they have is read again and they go on. It knows no recipe and no prompt set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from opdcore.estimate import CACHE_BYTES
from opdcore.models import LoadedModel
from opdcore.models.network import Decoding
from opdcore.rollouts.draws import draw
from opdcore.rollouts.rollout import Rollout, is_loop
from opdcore.rollouts.sampling import Sampling

# Positions for which numbers are drawn at once.
DRAWN_AHEAD = 128
# Responses are expected to be no longer than this when a batch begins; those that are go on in smaller ones.
EXPECTED_TOKENS = 512
# Positions between two looks at whether a row has fallen into a loop.
LOOK_EVERY = 64


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
    rows = range(len(prompts)) if among is None else among
    order = sorted(rows, key=lambda row: len(prompts[row]))
    seed = int(torch.randint(2**62, (1,), generator=generator))
    texts = [_Text(row, tuple(prompts[row])) for row in order]
    waiting, room = [texts], _Room.of(model, sampling)
    while waiting:
        some, *later = room.batches(waiting.pop())
        aside = _Batch(model, some, sampling, room, draws=(len(prompts), seed)).written()
        waiting += [*later[::-1], *aside]
    return [text.rollout(sampling) for text in sorted(texts, key=lambda text: text.row)]


@dataclass
class _Text:
    """A row's prompt and what it has written so far."""

    row: int
    prompt: tuple[int, ...]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    collapsed: bool = False

    def has_ended(self, sampling: Sampling) -> bool:
        """Whether nothing follows what was just written; also notes that it fell into a loop."""
        if self.ids[-1] in sampling.stop_ids:
            return True
        if len(self.ids) % LOOK_EVERY == 0:
            self.collapsed = is_loop(self.ids, sampling.stop_repeating)
        return self.collapsed

    def rollout(self, sampling: Sampling) -> Rollout:
        stopped = self.ids[-1] in sampling.stop_ids
        return Rollout(self.row, tuple(self.ids), tuple(self.logprobs), stopped, self.collapsed)


@dataclass(frozen=True)
class _Room:
    """How many rows fit into the cache, which doubles as it grows; one always does."""

    bytes_per_token: int
    expected: int

    @classmethod
    def of(cls, model: LoadedModel, sampling: Sampling) -> _Room:
        card, size = model.card, getattr(torch, sampling.precision).itemsize
        expected = min(sampling.max_tokens, EXPECTED_TOKENS)
        return cls(2 * card.layers * card.kv_heads * card.head_dim * size, expected)

    def holds(self, rows: int, width: int) -> bool:
        """Whether the cache may grow for rows of this many tokens."""
        return rows == 1 or 2 * rows * width * self.bytes_per_token <= CACHE_BYTES

    def batches(self, texts: Sequence[_Text]) -> list[list[_Text]]:
        """Texts, shortest first, in batches that may go on for as long as is expected."""
        longest = max(len(text.prompt) + len(text.ids) for text in texts) + self.expected
        size = next(size for size in range(len(texts), 0, -1) if self.holds(size, longest))
        return [list(texts[start : start + size]) for start in range(0, len(texts), size)]


class _Batch:
    """Texts that are written together; those that the cache has no room for are set aside."""

    def __init__(
        self,
        model: LoadedModel,
        texts: list[_Text],
        sampling: Sampling,
        room: _Room,
        *,
        draws: tuple[int, int],
    ) -> None:
        self.model, self.sampling, self.room = model, sampling, room
        self.going, self.draws = texts, draws
        # All of them have written equally much.
        self.start = len(texts[0].ids)

    def written(self) -> list[list[_Text]]:
        """Writes until all have ended; returns those that were set aside, of equal length together."""
        sampling, aside = self.sampling, list[list[_Text]]()
        decoding, logits, width = self._begun()
        for uniforms in _uniforms(*self.draws, first=self.start, last=sampling.max_tokens):
            ids = self._draw(logits, uniforms)
            left = _left([text.has_ended(sampling) for text in self.going])
            length, width = len(self.going[0].ids), width + 1
            if not left or length == sampling.max_tokens:
                break
            while not self.room.holds(len(left), width):
                half = len(left) // 2
                aside.append([self.going[place] for place in left[half:]])
                left = left[:half]
            if len(left) < len(self.going):
                decoding.keep(left)
                self.going = [self.going[place] for place in left]
                ids = ids[torch.tensor(left, device=ids.device)]
            logits = decoding.step(ids)
        return aside

    def _begun(self) -> tuple[Decoding, Tensor, int]:
        """The decoding after each distinct text was read once, and the width of the longest."""
        texts = [(*text.prompt, *text.ids) for text in self.going]
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        decoding, logits = self.model.decode(
            list(places),
            rows=[places[text] for text in texts],
            room=self.sampling.max_tokens - self.start,
            dtype=getattr(torch, self.sampling.precision),
        )
        return decoding, logits, max(map(len, texts))

    def _draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Draws and notes one token of each row."""
        ids, logprobs = draw(
            logits[:, : self.sampling.vocabulary],
            uniforms[[text.row for text in self.going]].to(logits.device),
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
        )
        for text, token, logprob in zip(self.going, ids.tolist(), logprobs.tolist(), strict=True):
            text.ids.append(token)
            text.logprobs.append(logprob)
        return ids


def _uniforms(rows: int, seed: int, *, first: int, last: int) -> Iterator[Tensor]:
    """A column (rows,) of uniform numbers for each position from `first` up to `last`."""
    for start in range(first - first % DRAWN_AHEAD, last, DRAWN_AHEAD):
        generator = torch.Generator().manual_seed(seed + start)
        ahead = torch.rand(rows, DRAWN_AHEAD, generator=generator, dtype=torch.float64)
        yield from ahead.unbind(1)[max(0, first - start) : last - start]


def _left(ended: Sequence[bool]) -> list[int]:
    """Places of the rows that go on: in order, but the last ones fill the gaps of those that ended.

    So a decoding copies as many rows as ended before them, not all that stay.
    """
    count = len(ended) - sum(ended)
    spare = (place for place in range(len(ended) - 1, count - 1, -1) if not ended[place])
    return [next(spare) if ended[place] else place for place in range(count)]
