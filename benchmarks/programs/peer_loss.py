"""TRL's chunked divergence: loss and gradient from hidden states and heads."""

from __future__ import annotations

from typing import Any

from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from benchmarks.programs import gauge, loss_inputs

REVERSE = 1.0


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """A lap is one forward and one backward pass; the student's entropy comes with it, as in its trainer."""
    given = loss_inputs.make(spec)
    marks, value = gauge.Gauge(spec["device"]), 0.0
    marks.loaded()
    for _ in range(spec["warmup"] + spec["measured"]):
        given["student_hidden"].grad = given["student_head"].grad = None
        divergence, _entropy = ChunkedDivergenceFunction.apply(
            given["student_hidden"],
            given["student_head"],
            None,
            given["teacher_hidden"],
            given["teacher_head"],
            None,
            REVERSE,
            1.0,
        )
        loss = divergence.sum() / spec["positions"]
        loss.backward()
        marks.lap()
        value = loss.item()
    tokens = [spec["positions"]] * (spec["warmup"] + spec["measured"])
    return {**marks.figures(tokens, warmup=spec["warmup"]), "loss": value}


if __name__ == "__main__":
    gauge.main(measure)
