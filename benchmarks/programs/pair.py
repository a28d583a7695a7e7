"""Makes a pair's folders: two random models whose end token has a given probability, a tokenizer, prompts.

How the end token gets its probability: dimension 0 of the residual stream is a constant that no layer
writes to; every token's tied embedding has it but the end token's, whose other entries are 0. Its logit is
then one number times that constant, and the number is solved for.
"""

from __future__ import annotations

import json
import string
from itertools import islice, product
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from benchmarks.programs import gauge

PAD, END = "<|pad|>", "<|end|>"
CONTEXT_TOKENS = 8192
# Standard deviation of the weights; larger than usual, so that distributions are not flat.
SPREAD = 0.08
CONSTANT = 0.5
SEEDS = {"student": 1, "teacher": 2}
PROBE_ROWS, PROBE_TOKENS = 16, 64


def make(spec: dict[str, Any]) -> dict[str, Any]:
    """Writes student, teacher and prompts; the prompts are written last and mark the pair as whole."""
    folder = Path(spec["folder"])
    for side, seed in SEEDS.items():
        _model(folder / side, spec[side], hazard=spec["hazard"], seed=seed)
        _tokenizer(spec[side]["vocabulary"]).save_pretrained(folder / side)
    rng = Random(0)  # noqa: S311 - prompts need no cryptographic randomness
    letters = string.ascii_lowercase
    prompts = [
        "".join(rng.choices(letters, k=spec["prompt_tokens"])) for _ in range(spec["prompts"])
    ]
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
    return {}


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level, one token for each byte, and words up to the vocabulary that only models write."""
    letters = [
        "".join(word) for word in islice(product(string.ascii_lowercase, repeat=4), vocabulary)
    ]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [PAD, END, *alphabet, *(f"Ġ{word}" for word in letters)][:vocabulary]
    ids = {token: place for place, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, padding_side="left"
    )


@torch.no_grad()
def _model(folder: Path, shape: dict[str, Any], *, hazard: float, seed: int) -> None:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        shape["model_type"],
        vocab_size=shape["vocabulary"],
        hidden_size=shape["hidden_size"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        intermediate_size=shape["intermediate_size"],
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=SPREAD,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    # Billions of random numbers are drawn on a GPU where there is one.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    _set_hazard(model, hazard)
    model.to(getattr(torch, shape["dtype"])).save_pretrained(folder)


def _set_hazard(model: PreTrainedModel, hazard: float) -> None:
    """Gives the end token (id 1) the probability `hazard`, on average over random text."""
    embedding = model.get_input_embeddings().weight
    embedding[:, 0] = CONSTANT
    embedding[1] = 0.0
    for layer in model.base_model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    ids = torch.randint(2, len(embedding), (PROBE_ROWS, PROBE_TOKENS), device=embedding.device)
    hidden = model.base_model(ids).last_hidden_state[:, PROBE_TOKENS // 2 :].flatten(0, 1)
    logits = hidden @ embedding.T
    logits[:, 1] = -torch.inf
    others = logits.logsumexp(-1)
    embedding[1, 0] = _solve(hidden[:, 0], others, hazard)


def _solve(constant: Tensor, others: Tensor, hazard: float) -> float:
    """The x for which the mean of sigmoid(x * constant - others) is `hazard`, by bisection."""
    low, high = -1000.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        found = (middle * constant - others).double().sigmoid().mean().item()
        low, high = (middle, high) if found < hazard else (low, middle)
    return low


if __name__ == "__main__":
    gauge.main(make)
