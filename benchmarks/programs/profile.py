"""Where the time of our step goes: torch's operators by the processor time that they take themselves."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

import opdcore
from benchmarks.programs import gauge
from benchmarks.programs.ours_step import job

OPERATORS = 15
MICROSECOND = 1e-6


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Profiles the measured steps; what no operator accounts for is Python and the profiler itself."""
    first, last = spec["warmup"], spec["warmup"] + spec["measured"]
    profiler, began, seconds = profile(activities=[ProfilerActivity.CPU]), 0.0, 0.0
    with closing(opdcore.run(job(spec, steps=last + 1), Path(spec["work"], "run"))) as events:
        for event in events:
            if event.kind == "metrics" and event.step == first:
                profiler.start()
                began = time.perf_counter()
            elif event.kind == "metrics" and event.step == last:
                seconds = time.perf_counter() - began
                profiler.stop()
                break
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    operators = [
        {
            "operator": row.key,
            "seconds": row.self_cpu_time_total * MICROSECOND / spec["measured"],
            "calls": row.count / spec["measured"],
        }
        for row in rows
    ]
    return {
        "profiled_step_seconds": seconds / spec["measured"],
        "operators_seconds": sum(row["seconds"] for row in operators),
        "operators": operators[:OPERATORS],
    }


if __name__ == "__main__":
    gauge.main(measure)
