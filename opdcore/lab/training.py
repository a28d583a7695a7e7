"""Supervised training of the laboratory's tiny models: architecture, batches and stop rules.

A tiny model learns its task in a phase transition, so a fixed number of steps is fragile: training
goes on until solutions would mostly be written right, and then the learning rate
decays. Restarts and files are the caller's business.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from opdcore.lab.solutions import Asking, Piece
from opdcore.lab.tasks import FamilyName

CONTEXT_LENGTH = 256
WIDTH = 64
LAYERS = 2
HEADS = 4
FEED_FORWARD = 192

BATCH = 32
WARM_UP_STEPS = 20
LOOK_BACK = 4  # batches over which the stop rule averages

ARCHITECTURES = {
    "sums": (Qwen3Config, Qwen3ForCausalLM),
    "cups": (LlamaConfig, LlamaForCausalLM),
}


@dataclass(frozen=True)
class Schedule:
    """How long to train: until `target` is met, then `decay_steps` more; at most `cap` before.

    `target` is a step's `solved`, averaged over the last batches.
    """

    learning_rate: float
    decay_steps: int
    target: float
    cap: int
    minimum_steps: int = 0


@dataclass(frozen=True)
class Step:
    """One optimizer step: its number, its loss in nats a token, and whether the rate decays.

    `solved` is the mean probability that a rollout at temperature 1 writes all that is settled in
    a solution as the solution has it.
    """

    number: int
    loss: float
    solved: float
    decaying: bool


@dataclass(frozen=True)
class Batch:
    """Token ids (B, T), padded on the right, and the N targets that the loss is about.

    `positions` (N) are the flat places in (B, T) from which the targets (N) are predicted;
    `settled` (N) says which targets are determined by what precedes them, `rows` (N) whose they
    are.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    settled: torch.Tensor
    rows: torch.Tensor


def new_model(
    family: FamilyName, tokenizer: PreTrainedTokenizerFast, *, seed: int, width: int = WIDTH
) -> PreTrainedModel:
    """Return an untrained model of the family's architecture, initialised from the seed."""
    configuration, architecture = ARCHITECTURES[family]
    config = configuration(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=FEED_FORWARD * width // WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=width // HEADS,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = architecture(config)
    _initialise(model, seed=seed)
    return model


def _initialise(model: PreTrainedModel, *, seed: int) -> None:
    """Draw weights wide enough to leave the plateau; transformers' default of .02 stays on it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                weight.fill_(1.0)
            elif "embed_tokens" in name:
                weight.normal_(0.0, 0.5 / math.sqrt(weight.shape[1]), generator=generator)
            else:
                deviation = 0.7 / math.sqrt(weight.shape[1])
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    deviation /= math.sqrt(2 * LAYERS)
                weight.normal_(0.0, deviation, generator=generator)


def collate(
    rows: Sequence[tuple[Asking, list[Piece]]], tokenizer: PreTrainedTokenizerFast
) -> Batch:
    """Encode exercises with their solutions; the targets are the solution and its end token."""
    encoded = [_encode(exercise, solution, tokenizer) for exercise, solution in rows]
    width = max(len(ids) for ids, _, _ in encoded)
    padding = int(tokenizer.pad_token_id)
    positions = [
        row * width + place
        for row, (ids, prompt_length, _) in enumerate(encoded)
        for place in range(prompt_length - 1, len(ids) - 1)
    ]
    return Batch(
        ids=torch.tensor([ids + [padding] * (width - len(ids)) for ids, _, _ in encoded]),
        positions=torch.tensor(positions),
        targets=torch.tensor([i for ids, prompt_length, _ in encoded for i in ids[prompt_length:]]),
        settled=torch.tensor([flag for _, _, settled in encoded for flag in settled]),
        rows=torch.tensor([r for r, (_, _, settled) in enumerate(encoded) for _ in settled]),
    )


def _encode(
    exercise: Asking, solution: list[Piece], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], int, list[bool]]:
    """Return ids, the prompt's length, and which ids of the solution are settled."""
    texts = [exercise.prompt, *(piece.text for piece in solution)]
    prompt, *pieces = (row.ids for row in tokenizer.backend_tokenizer.encode_batch_fast(texts))
    ids = prompt + [i for piece in pieces for i in piece] + [int(tokenizer.eos_token_id)]
    settled = [piece.settled for piece, row in zip(solution, pieces, strict=True) for _ in row]
    return ids, len(prompt), [*settled, True]


def fit(
    model: PreTrainedModel, next_batch: Callable[[], Batch], schedule: Schedule
) -> Iterator[Step]:
    """Train the model in place until the stop rule holds, then decay to zero.

    Yields every step. Where the cap is reached first, the iterator ends without a decaying step.
    """
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    recent: deque[float] = deque(maxlen=LOOK_BACK)
    decay_from: int | None = None
    for number in range(1, schedule.cap + schedule.decay_steps + 1):
        share = _share_of_rate(number, decay_from, schedule.decay_steps)
        if share <= 0.0:
            return
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * share
        loss, solved = _step(model, next_batch(), optimizer)
        recent.append(solved)
        yield Step(number, loss, solved, decay_from is not None)
        if decay_from is None and _is_ready(recent, number, schedule):
            decay_from = number
        if decay_from is None and number >= schedule.cap:
            return


def _share_of_rate(number: int, decay_from: int | None, decay_steps: int) -> float:
    warm_up = min(1.0, number / WARM_UP_STEPS)
    if decay_from is None:
        return warm_up
    return warm_up * (1.0 - (number - decay_from - 1) / decay_steps)


def _is_ready(recent: deque[float], number: int, schedule: Schedule) -> bool:
    if number < schedule.minimum_steps or len(recent) < LOOK_BACK:
        return False
    return sum(recent) / LOOK_BACK >= schedule.target


def _step(
    model: PreTrainedModel, batch: Batch, optimizer: torch.optim.Optimizer
) -> tuple[float, float]:
    """Take one step and return its loss and the share solved, both from before it."""
    # Causal attention never looks at padding on the right, and the head sees targets only.
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1).index_select(0, batch.positions))
    surprise = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    loss = surprise.mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    by_row = torch.zeros(len(batch.ids)).index_add_(
        0, batch.rows, surprise.detach() * batch.settled
    )
    return float(loss.detach()), float(by_row.neg().exp().mean())
