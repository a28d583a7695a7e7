"""What a loaded teacher tells as one behind a server does: its k most probable tokens and the given one.

So that what is kept of both is alike. It knows no record and no objective.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opdcore.batches import cut, response_hidden, spans
from opdcore.contract.training import Precision
from opdcore.logits_chunks import rows_per_chunk
from opdcore.models import LoadedModel
from opdcore.rollouts import Rollout
from opdcore.serving.requests import Known
from opdcore.support import top_k_ids


@torch.no_grad()
def tell(
    model: LoadedModel,
    given: Sequence[tuple[Sequence[int], int]],
    *,
    k: int,
    vocabulary: int,
    precision: Precision,
    tokens: int,
) -> list[Known]:
    """What it tells of each sequence from a position on, among the first `vocabulary` tokens.

    Sequences are read together in batches of at most `tokens`.
    """
    prompts = [ids[:start] for ids, start in given]
    responses = [
        Rollout(place, tuple(ids[start:]), (0.0,) * (len(ids) - start), True)
        for place, (ids, start) in enumerate(given)
    ]
    batches = list(cut(responses, [prompts], tokens=tokens))
    told = [
        _told(
            model,
            response_hidden(model, batch, side=0, precision=precision),
            batch.sampled_ids.to(model.device),
            k=k,
            vocabulary=vocabulary,
        )
        for batch in batches
    ]
    ids, logprobs = (torch.cat(parts).cpu().numpy() for parts in zip(*told, strict=True))
    places = spans(batches)
    return [Known(ids[places[one]], logprobs[places[one]]) for one in range(len(given))]


def _told(
    model: LoadedModel, hidden: Tensor, sampled: Tensor, *, k: int, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Ids and logprobs (N, k + 1) of positions, without a table of all logits at once."""
    rows = rows_per_chunk(vocabulary, hidden.device.type)
    parts = []
    for start in range(0, len(hidden), rows):
        logits = model.project(hidden[start : start + rows])[..., :vocabulary].float()
        ids = torch.cat([top_k_ids(logits, k), sampled[start : start + rows, None]], dim=1)
        parts.append((ids, logits.gather(1, ids) - logits.logsumexp(-1, keepdim=True)))
    every_ids, every_logprobs = zip(*parts, strict=True)
    return torch.cat(every_ids), torch.cat(every_logprobs)
