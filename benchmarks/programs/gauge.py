"""What both sides of a comparison are measured with: time, processor time and memory of this process.

It runs in both environments; memory is read where Linux or a GPU tells it and is None elsewhere.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"


def main(measure: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Reads the spec that the command line names, measures, and writes the result beside its circumstances."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    load_before = os.getloadavg()[0]
    figures = measure(spec)
    told = {
        **figures,
        "load_1min": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        "cores": sorted(os.sched_getaffinity(0)),
    }
    Path(spec["result"]).write_text(json.dumps(told), encoding="utf-8")


class Gauge:
    """Marks of a loop: `loaded` once, then `lap` after each step; memory is what was taken since `loaded`.

    On a GPU a lap ends when the GPU has done its work, and memory is what its allocator gave.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.cuda = _cuda() if device.startswith("cuda") else None
        self.loaded_bytes: int | None = None
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._mark = (0.0, 0.0)

    def loaded(self) -> None:
        """Models are in memory and nothing was computed yet: the peak starts to count here."""
        if self.cuda is not None:
            self.cuda.reset_peak_memory_stats()
            self.loaded_bytes = self.cuda.memory_allocated()
        elif CLEAR.exists():
            CLEAR.write_text(RESET_PEAK, encoding="utf-8")
            self.loaded_bytes = _status("VmRSS")
        self._mark = (time.perf_counter(), _cpu_seconds())

    def lap(self) -> None:
        """A lap ends, and the next begins."""
        if self.cuda is not None:
            self.cuda.synchronize()
        before, self._mark = self._mark, (time.perf_counter(), _cpu_seconds())
        self.seconds.append(self._mark[0] - before[0])
        self.cpu_seconds.append(self._mark[1] - before[1])

    def figures(self, tokens: Sequence[int], *, warmup: int) -> dict[str, Any]:
        """Every lap after the warm-up, with the tokens that it made, and the memory of all."""
        return {
            "tokens": tokens[warmup:],
            "seconds": self.seconds[warmup:],
            "cpu_seconds": self.cpu_seconds[warmup:],
            "extra_peak_bytes": self.extra_peak_bytes(),
        }

    def extra_peak_bytes(self) -> int | None:
        """Highest memory since `loaded`, beyond what was taken then; None where nothing tells it."""
        if self.loaded_bytes is None:
            return None
        peak = _status("VmHWM") if self.cuda is None else self.cuda.max_memory_allocated()
        return int(peak - self.loaded_bytes)


def _cuda() -> ModuleType:
    """PyTorch's view of the GPU, imported only where one is measured."""
    import torch

    return torch.cuda


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _status(key: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields[key].split()[0]) * 1024
