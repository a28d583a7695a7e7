"""What vLLM is asked and what it answers, as JSON: logprobs of given tokens, and responses by token ids.

Token ids go in and come out, so that nothing depends on a text. Prompt logprobs are of the model's own
distribution, at temperature 1. It knows no connection and no model.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opdcore.contract.errors import EngineFailure
from opdcore.rollouts.rollout import LONGEST_CYCLE, Rollout
from opdcore.rollouts.sampling import Sampling

COMPLETIONS = "/v1/completions"
# Where tokens of one's own choice can be asked for, a text at a time.
GENERATE = "/inference/v1/generate"
# Why a response ended that repeated itself.
LOOPED = "repetition"
Ids = NDArray[np.int64]
Body = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """What a server tells of T positions: its k most probable tokens, others, and the one that was given.

    `ids` and `logprobs` are (T, k + n + 1), best first, the given token last; the n others are those that
    it was asked for, if any. A token may be there more than once.
    """

    ids: Ids
    logprobs: NDArray[np.float32]


def scoring_bodies(
    model: str, sequences: Sequence[Sequence[int]], *, k: int, tokens: int
) -> Iterator[tuple[list[int], Body]]:
    """Requests of at most `tokens` tokens, or one sequence, each with the places of its sequences."""
    places: list[int] = []
    total = 0
    for place, ids in enumerate(sequences):
        if places and total + len(ids) > tokens:
            yield places, _scoring_body(model, [sequences[i] for i in places], k)
            places, total = [], 0
        places.append(place)
        total += len(ids)
    if places:
        yield places, _scoring_body(model, [sequences[i] for i in places], k)


def asking_body(model: str, ids: Sequence[int], rows: Ids, *, start: int, k: int) -> Body:
    """One text's request for the tokens `rows` (T, n) at its positions from `start` on, and the k best."""
    return {
        "model": model,
        "token_ids": list(ids),
        "sampling_params": {
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": k,
            "prompt_logprob_token_ids": rows.tolist(),
            # A row scores predictions of the token after it.
            "prompt_logprob_start": start - 1,
        },
    }


def read_asked(reply: Body, ids: Sequence[int], rows: Ids, *, start: int, k: int) -> Known:
    """What a reply tells of the tokens `rows` too; raises where it tells less."""
    known = read_known(reply, ids, start=start, k=k)
    try:
        content = base64.b64decode(reply["prompt_token_id_logprobs"], validate=True)
        told = np.load(io.BytesIO(content), allow_pickle=False)
    except (LookupError, TypeError, ValueError) as error:
        raise _unreadable("it does not tell the logprobs of the tokens asked for") from error
    if told.shape != rows.shape or not np.isfinite(told).all():
        raise _unreadable(f"it tells {told.shape} finite logprobs, of {rows.shape} asked for")
    ids_told = np.concatenate([known.ids[:, :k], rows, known.ids[:, k:]], 1)
    logprobs = np.concatenate([known.logprobs[:, :k], told, known.logprobs[:, k:]], 1)
    return Known(ids_told, logprobs.astype(np.float32))


def choices(reply: Body, count: int) -> list[Body]:
    """The choices of a reply in the order of what was asked; raises where there are others."""
    told = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(told, list) or not all(isinstance(one, dict) for one in told):
        raise _unreadable("it holds no choices")
    found = sorted(told, key=lambda one: one.get("index", -1))
    if [one.get("index") for one in found] != list(range(count)):
        raise _unreadable(f"it answers {len(found)} of {count} questions")
    return found


def is_whole(choice: Body) -> bool:
    """Whether a response ended by itself; a server that is stopped gives up those under way."""
    return choice.get("finish_reason") in {"stop", "length", LOOPED}


def read_known(choice: Body, ids: Sequence[int], *, start: int, k: int) -> Known:
    """What one choice of a reply tells of the tokens from `start` on; raises where it tells less."""
    told = choice.get("prompt_logprobs") or []
    if len(told) != len(ids):
        raise _unreadable(f"it scored {len(told)} of {len(ids)} tokens")
    found = np.empty((len(ids) - start, k + 1), dtype=np.int64)
    logprobs = np.empty(found.shape, dtype=np.float32)
    for row, place in enumerate(range(start, len(ids))):
        try:
            found[row], logprobs[row] = _position(told[place], ids[place], k)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            what = (
                f"it does not tell the {k} most probable tokens at place {place}, and the given one"
            )
            raise _unreadable(what) from error
    if not np.isfinite(logprobs).all():
        raise _unreadable("a logprob is no number")
    return Known(found, logprobs)


def sampling_body(model: str, prompt: Sequence[int], sampling: Sampling, *, seed: int) -> Body:
    """One response, drawn as our own sampler draws: no filter but the nucleus."""
    cut = {"max_pattern_size": LONGEST_CYCLE, "min_count": sampling.stop_repeating}
    loops = {"repetition_detection": cut} if sampling.stop_repeating else {}
    return {
        **loops,
        "model": model,
        "prompt": list(prompt),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": seed,
        "logprobs": 0,
        "return_token_ids": True,
        "stop_token_ids": sorted(sampling.stop_ids),
        "ignore_eos": True,
    }


def read_rollout(choice: Body, place: int, sampling: Sampling) -> Rollout:
    """A response; from a token on that the pair does not share it is cut."""
    ids = choice.get("token_ids")
    told = (choice.get("logprobs") or {}).get("token_logprobs")
    if ids is None or told is None or len(ids) != len(told):
        raise _unreadable("it gave no token ids with their logprobs")
    foreign = next((i for i, one in enumerate(ids) if one >= sampling.vocabulary), len(ids))
    ids, told = ids[:foreign], told[:foreign]
    stopped = bool(ids) and ids[-1] in sampling.stop_ids
    collapsed = choice.get("finish_reason") == LOOPED and not stopped
    return Rollout(place, tuple(ids), tuple(map(float, told)), stopped, collapsed)


def _position(
    entries: dict[str, dict[str, Any]], own: int, k: int
) -> tuple[list[int], list[float]]:
    """The k most probable tokens of a position and the given one, with their logprobs."""
    best = sorted(entries.items(), key=lambda item: item[1]["rank"])[:k]
    if len(best) < k:
        raise ValueError
    logprobs = [float(told["logprob"]) for _, told in best]
    given = float(entries[str(own)]["logprob"])
    return [*(int(one) for one, _ in best), own], [*logprobs, given]


def _scoring_body(model: str, sequences: Sequence[Sequence[int]], k: int) -> Body:
    return {
        "model": model,
        "prompt": [list(ids) for ids in sequences],
        "max_tokens": 1,
        "temperature": 1.0,
        "prompt_logprobs": k,
    }


def _unreadable(what: str) -> EngineFailure:
    return EngineFailure(
        "serving.unreadable",
        f"The server's reply cannot be used: {what}.",
        remedy="Use a vLLM server of version 0.32 or newer.",
    )
