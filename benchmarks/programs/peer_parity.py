"""The student's gradient of TRL's `DistillationTrainer.compute_loss` on given responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from benchmarks.programs import gauge
from benchmarks.programs.peer_step import trainer

# By name of the divergence, in TRL's words.
BETA = {"forward": 0.0, "jsd": 0.5, "reverse": 1.0}


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Leaves NAME/peer.safetensors in the spec's folder for each name asked for; says each loss."""
    folder = Path(spec["folder"])
    responses = json.loads((folder / "responses.json").read_text(encoding="utf-8"))
    return {"losses": {name: _gradient(spec, name, folder, responses) for name in spec["names"]}}


def _gradient(
    spec: dict[str, Any], name: str, folder: Path, responses: list[dict[str, Any]]
) -> float:
    peer = trainer(spec, settings={"beta": BETA[name]})
    peer.model.train()
    loss = peer.compute_loss(peer.model, _inputs(peer.processing_class, responses))
    loss.backward()
    gradients = {key: weight.grad for key, weight in peer.model.named_parameters()}
    save_file(gradients, folder / name / "peer.safetensors")
    return loss.item()


def _inputs(
    tokenizer: PreTrainedTokenizerFast, responses: list[dict[str, Any]]
) -> dict[str, torch.Tensor]:
    """What the trainer itself makes of generated responses: prompts padded left, responses right."""
    prompts = tokenizer(
        [row["prompt"] for row in responses], padding=True, padding_side="left", return_tensors="pt"
    )
    width = max(len(row["ids"]) for row in responses)
    ids = torch.full((len(responses), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(responses):
        ids[place, : len(row["ids"])] = torch.tensor(row["ids"])
        mask[place, : len(row["ids"])] = 1
    return {
        "prompt_ids": prompts["input_ids"],
        "prompt_mask": prompts["attention_mask"],
        "completion_ids": ids,
        "completion_mask": mask,
        "num_items_in_batch": mask.sum(),
    }


if __name__ == "__main__":
    gauge.main(measure)
