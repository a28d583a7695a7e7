"""Steps of TRL's `DistillationTrainer`, set for the machine: no checkpointing, float32, logs each step.

A lap is the time from one step's end to the next's, so that its loader, generation and logging count.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import DistillationConfig, DistillationTrainer

from benchmarks.programs import gauge


class Laps(TrainerCallback):
    """Marks each step's end and reads its tokens off the trainer's own log."""

    def __init__(self, *, batch: int, device: str) -> None:
        self.batch = batch
        self.gauge = gauge.Gauge(device)
        self.tokens: list[int] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.gauge.loaded()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.gauge.lap()

    def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
        if "completions/mean_length" in logs:
            self.tokens.append(round(logs["completions/mean_length"] * self.batch))


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Trains for the warm-up and the measured steps."""
    laps = Laps(batch=spec["batch"], device=spec["device"])
    steps = spec["warmup"] + spec["measured"]
    trainer(spec, settings={"max_steps": steps}, callbacks=[laps]).train()
    return laps.gauge.figures(laps.tokens, warmup=spec["warmup"])


def trainer(
    spec: dict[str, Any],
    *,
    settings: dict[str, Any],
    callbacks: list[TrainerCallback] | None = None,
) -> DistillationTrainer:
    """The trainer of a spec, on the pair's own folders and prompts, with further settings."""
    torch.set_num_threads(spec["threads"])
    pair = Path(spec["pair"])
    lines = (pair / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    tuned = {
        "output_dir": spec["work"], "use_cpu": spec["device"] == "cpu", "bf16": False,
        "gradient_checkpointing": False, "gradient_accumulation_steps": spec["passes"],
        "per_device_train_batch_size": spec["batch"] // spec["passes"],
        "max_completion_length": spec["max_tokens"], "temperature": 1.0, "beta": 1.0,
        "learning_rate": spec["learning_rate"], "weight_decay": spec["weight_decay"],
        "lr_scheduler_type": "constant", "max_grad_norm": 1.0, "shuffle_dataset": False,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return DistillationTrainer(
        model=model(pair / "student"),
        teacher_model=model(pair / "teacher"),
        args=DistillationConfig(**tuned | settings),
        train_dataset=Dataset.from_dict({"prompt": [json.loads(line)["prompt"] for line in lines]}),
        processing_class=PreTrainedTokenizerFast.from_pretrained(pair / "student"),
        callbacks=callbacks,
    )


def model(folder: Path) -> PreTrainedModel:
    """A side's model in float32, as ours is."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return loaded


if __name__ == "__main__":
    gauge.main(measure)
