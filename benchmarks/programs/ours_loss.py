"""`opdcore.scoring.score`: loss, gradient and every alignment metric from hidden states and heads."""

from __future__ import annotations

from typing import Any

from benchmarks.programs import gauge, loss_inputs
from opdcore import alignment
from opdcore.losses import Objective
from opdcore.scoring import score

K = 16


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """A lap is one pass, its gradients and the metrics' means included."""
    given = loss_inputs.make(spec)
    marks, loss = gauge.Gauge(spec["device"]), 0.0
    marks.loaded()
    for _ in range(spec["warmup"] + spec["measured"]):
        given["student_hidden"].grad = given["student_head"].grad = None
        scored = score(
            given["student_hidden"],
            lambda hidden: hidden @ given["student_head"].T,
            given["teacher_hidden"],
            lambda hidden: hidden @ given["teacher_head"].T,
            given["sampled_ids"],
            objective=Objective("full", "reverse", "student", "stop_gradient", K),
            k=K,
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
