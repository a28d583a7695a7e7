"""The student's gradient in a step of `opdcore.run(job)`, with the responses that it was computed on.

Where the optimizer would step, the weights are replaced by their gradients: so the run's output is the
gradient, under a checkpoint's own names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import torch

import opdcore
from benchmarks.programs import gauge
from benchmarks.programs.ours_step import Knobs, job
from opdcore.contract.objective import Divergence
from opdcore.optimizer import AdamW

# By name of the divergence: our knobs. Those that this version's recipe does not know are left out.
KNOBS: dict[str, Knobs] = {
    "forward": {"divergence": "forward"},
    "reverse": {"divergence": "reverse"},
    "jsd": {"divergence": "jsd", "jsd_beta": 0.5},
}


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Leaves NAME/output (the gradient) and responses.json in the spec's folder; says each loss."""
    AdamW.step = _leave_gradients
    folder = Path(spec["folder"])
    known = [name for name in KNOBS if KNOBS[name]["divergence"] in get_args(Divergence)]
    losses, responses = {}, []
    for name in known:
        losses[name], found = _step(spec, KNOBS[name], folder / name)
        responses.append(found)
    if any(found != responses[0] for found in responses):
        raise RuntimeError("The same seed and weights gave other responses for another divergence.")
    (folder / "responses.json").write_text(json.dumps(responses[0]), encoding="utf-8")
    return {"losses": losses, "positions": sum(len(row["ids"]) for row in responses[0])}


def _step(spec: dict[str, Any], knobs: Knobs, run_dir: Path) -> tuple[float, list[dict[str, Any]]]:
    """Loss and responses of one step; the gradient is left in RUN_DIR/output."""
    keeping = {"max_grad_norm": 1e6, "trace_steps": 1, "trace_rollouts": spec["batch"]}
    told = job(spec, steps=1, knobs=keeping | knobs)
    loss, rows = None, []
    for event in opdcore.run(told, run_dir):
        if event.kind == "metrics":
            loss = event.payload.values["loss"]
        elif event.kind == "trace":
            rows = pq.read_table(run_dir / event.payload.key).to_pylist()
    if loss is None or len(rows) != spec["batch"]:
        raise RuntimeError(f"The step's loss is {loss} and its trace has {len(rows)} rollouts.")
    return loss, [{"prompt": row["prompt"], "ids": row["ids"]} for row in rows]


@torch.no_grad()
def _leave_gradients(optimizer: AdamW, _learning_rate: float) -> None:
    for weight in optimizer.parameters:
        weight.copy_(weight.grad)


if __name__ == "__main__":
    gauge.main(measure)
