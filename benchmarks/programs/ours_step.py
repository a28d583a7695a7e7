"""Steps of `opdcore.run(job)` with all metrics on; a lap is the time from one step's metrics to the next's."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import opdcore
from benchmarks.pairs import PROMPT_TOKENS
from benchmarks.programs import gauge
from opdcore.contract.job import Job

PHASES = ("sample_seconds", "grade_seconds", "train_seconds", "update_seconds", "step_seconds")
Knobs = dict[str, Any]
# Never reached: only training steps are measured.
FAR = 1_000_000


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Runs warm-up and measured steps, then leaves the job: its last checkpoint is not part of a step."""
    steps = spec["warmup"] + spec["measured"]
    marks, tokens, phases = gauge.Gauge(spec["device"]), [], []
    with closing(opdcore.run(job(spec, steps=steps + 1), Path(spec["work"], "run"))) as events:
        for event in events:
            if event.kind == "stage_started":
                marks.loaded()
            elif event.kind == "metrics":
                marks.lap()
                tokens.append(int(event.payload.values["generated_tokens"]))
                phases.append({key: event.payload.values[key] for key in PHASES})
                if event.step == steps:
                    break
    figures = marks.figures(tokens, warmup=spec["warmup"])
    return {**figures, "phases": phases[spec["warmup"] :]}


def job(spec: dict[str, Any], *, steps: int, knobs: Knobs | None = None) -> Job:
    """The spec as a job: full-vocabulary divergence at temperature 1, and nothing but training.

    `knobs` of the stage stand in for these.
    """
    pair = Path(spec["pair"])
    stage = {
        "kind": "distill", "steps": steps, "form": "full", "divergence": "reverse",
        "prompts_per_step": spec["batch"], "rollouts_per_prompt": 1,
        "micro_batch_tokens": spec["batch"] // spec["passes"] * (PROMPT_TOKENS + spec["max_tokens"]),
        "max_response_tokens": spec["max_tokens"], "learning_rate": spec["learning_rate"],
        "weight_decay": spec["weight_decay"], "checkpoint_steps": FAR, "trace_steps": FAR,
    }  # fmt: skip
    resource = {"devices": [spec["device"]], "threads": spec["threads"]}
    return Job.model_validate(
        {
            "run_id": "benchmark",
            "student": {"model": {"kind": "local", "path": str(pair / "student")}},
            "teachers": [{"model": {"kind": "local", "path": str(pair / "teacher")}}],
            "prompt_sets": {"train": {"path": str(pair / "prompts.jsonl")}},
            "recipe": {"name": "benchmark", "stages": [stage | (knobs or {})]},
            "resources": {"train": resource},
        }
    )


if __name__ == "__main__":
    gauge.main(measure)
