"""Responses and first-token probabilities of the laboratory's models, for measuring while building.

It decodes one batch of equal sampling settings: temperature 1, nothing cut off. Runs use the
engine's sampler; this one only has to be small.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast


@torch.inference_mode()
def sample_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    seed: int,
) -> list[str]:
    """Return one response for each prompt, sampled at temperature 1, without its end token."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    encoded = tokenizer(list(prompts), padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    end = int(tokenizer.eos_token_id)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    done = torch.zeros(len(prompts), dtype=torch.bool)
    columns: list[torch.Tensor] = []
    cache = None
    while len(columns) < max_new_tokens and not bool(done.all()):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        drawn = torch.multinomial(output.logits[:, -1].softmax(-1), 1, generator=generator)
        ids = torch.where(done[:, None], end, drawn)
        done |= ids[:, 0] == end
        columns.append(ids)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=-1)
        positions = positions[:, -1:] + 1
    return tokenizer.batch_decode(torch.cat(columns, dim=-1), skip_special_tokens=True)


@torch.inference_mode()
def first_token_mass(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    openers: Sequence[str],
) -> float:
    """Return the mean probability that a response begins with one of the opening words."""
    model.eval()
    encoded = tokenizer(list(prompts), padding=True, return_tensors="pt")
    positions = (encoded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    logits = model(**encoded, position_ids=positions, logits_to_keep=1).logits[:, -1]
    opening_ids = [tokenizer(f" {word}")["input_ids"][0] for word in openers]
    return float(logits.softmax(-1)[:, opening_ids].sum(-1).mean())
