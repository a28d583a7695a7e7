"""`transformers.generate` at its fastest plain setting: inference mode, no logits processor, KV cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from benchmarks.programs import gauge


@torch.inference_mode()
def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Warm-up calls and measured calls on the same prompts, each with random draws of its own."""
    torch.set_num_threads(spec["threads"])
    folder = Path(spec["pair"], "student")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).to(spec["device"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    inputs = tokenizer(
        batch_of(spec), padding=True, padding_side="left", return_tensors="pt"
    ).to(spec["device"])  # fmt: skip
    inputs.pop("token_type_ids", None)
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=spec["max_tokens"],
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        disable_compile=True,
    )
    marks, tokens = gauge.Gauge(spec["device"]), []
    marks.loaded()
    for call in range(spec["warmup"] + spec["measured"]):
        torch.manual_seed(call)
        written = model.generate(**inputs, generation_config=config)
        written = written[:, inputs["input_ids"].shape[1] :].cpu()
        marks.lap()
        tokens.append(_count(written, tokenizer.eos_token_id))
    return marks.figures(tokens, warmup=spec["warmup"])


def batch_of(spec: dict[str, Any]) -> list[str]:
    """The first prompts of the pair."""
    lines = Path(spec["pair"], "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines[: spec["batch"]]]


def _count(written: torch.Tensor, eos: int) -> int:
    """Tokens up to and with each row's first end token."""
    ended_before = (written == eos).cumsum(1) - (written == eos).long() > 0
    return int((~ended_before).sum())


if __name__ == "__main__":
    gauge.main(measure)
