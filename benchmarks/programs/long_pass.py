"""One pass over a long text, or a batch of long responses, in a process of its own: seconds and peak memory.

usage: python -m benchmarks.programs.long_pass WORK MODE TOKENS. It prints JSON.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time

import torch

from opdcore.models import decoder, decoding
from opdcore.models.decoder import Decoder
from opdcore.models.decoder_network import DecoderNetwork
from opdcore.models.shape import Shape
from opdcore.rollouts import Sampling, torch_sampler

VOCABULARY, PROMPT, ROWS = 2048, 64, 32
SHAPE = {
    "model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "intermediate_size": 512,
    "max_position_embeddings": 65_536, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False,
}  # fmt: skip
# With it a fortieth of the rows fit at once where each must have room for its longest response.
CACHE_BYTES = 256 * 2**20


def network() -> DecoderNetwork:
    """A model of random weights: its responses end by chance, after 2,048 tokens in the mean."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        made = Decoder(Shape.of(SHAPE))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else parameter.data.fill_(
            1
        )
    made.tie()
    return DecoderNetwork(made.eval())


def score(model: DecoderNetwork, tokens: int, *, whole: bool) -> None:
    """A frozen model reads a text."""
    if whole:
        decoder.LONG_TEXT = math.inf
    with torch.no_grad():
        model.hidden(text(tokens), PROMPT)


def train(model: DecoderNetwork, tokens: int, *, whole: bool) -> None:
    """Forward and backward through a text."""
    if whole:
        decoder.LONG_TEXT = math.inf
    model.hidden(text(tokens), PROMPT, recompute=not whole).square().mean().backward()


def sample(model: DecoderNetwork, tokens: int, *, whole: bool) -> None:
    """Responses of very different lengths; `whole` keeps room for the longest possible of each."""
    torch_sampler.CACHE_BYTES = CACHE_BYTES
    if whole:
        torch_sampler.EXPECTED_TOKENS = tokens
        decoding.LONG_TEXT = math.inf
    sampling = Sampling(tokens, 1.0, 1.0, VOCABULARY, frozenset({7}), stop_repeating=0)
    prompts = [tuple(text(PROMPT)[0].tolist()) for _ in range(ROWS)]
    written = torch_sampler.sample(
        Loaded(model), prompts, sampling=sampling, generator=torch.Generator().manual_seed(1)
    )
    print(f"{sum(len(one.ids) for one in written)} tokens", file=sys.stderr)


class Loaded:
    """What the sampler reads of a loaded model."""

    class card:  # noqa: N801 - its name there
        layers, kv_heads, head_dim = 3, 1, 64

    def __init__(self, model: DecoderNetwork) -> None:
        self.decode = model.decode


def text(tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randint(8, VOCABULARY, (1, tokens), generator=generator)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(work: str, mode: str, tokens: int) -> None:
    """Runs it once."""
    model = network()
    {"score": score, "train": train}.get(work, score)(model, 256, whole=False)
    before, began = peak(), time.perf_counter()
    {"score": score, "train": train, "sample": sample}[work](model, tokens, whole=mode == "whole")
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": round(seconds, 2), "bytes": peak() - before}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
