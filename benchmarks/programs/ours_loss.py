"""`opdcore.scoring.score`: loss, gradient and every alignment metric from hidden states and heads."""

from __future__ import annotations

from typing import Any

from benchmarks.programs import gauge, loss_inputs
from opdcore import alignment
from opdcore.contract.distill import DistillStage
from opdcore.passes import objective_of
from opdcore.projection import linear
from opdcore.scoring import score
from opdcore.sides import Side


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """A lap is one pass, its gradients and the metrics' means included."""
    given, stage = loss_inputs.make(spec), DistillStage(form="full", divergence="reverse")
    marks, loss = gauge.Gauge(spec["device"]), 0.0
    marks.loaded()
    for _ in range(spec["warmup"] + spec["measured"]):
        given["student_hidden"].grad = given["student_head"].grad = None
        scored = score(
            Side(given["student_hidden"], lambda hidden: linear(hidden, given["student_head"])),
            Side(given["teacher_hidden"], lambda hidden: linear(hidden, given["teacher_head"])),
            given["sampled_ids"],
            objective=objective_of(stage),
            k=stage.k,
            vocabulary=spec["vocabulary"],
            temperature=1.0,
            loss_scale=1 / spec["positions"],
        )
        alignment.summarise(scored.alignment)
        marks.lap()
        loss = scored.loss_sum / spec["positions"]
    tokens = [spec["positions"]] * (spec["warmup"] + spec["measured"])
    return {**marks.figures(tokens, warmup=spec["warmup"]), "loss": loss}


if __name__ == "__main__":
    gauge.main(measure)
