"""What this machine can do at best: float32 multiplications of matrices, and bytes moved to and from memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.programs import gauge

SIDE = 1536
COPIED_BYTES = 256 * 2**20
REPEATS = 10


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """The best of some repeats of each; `device` is the name of the GPU if that is asked for and there."""
    torch.set_num_threads(spec["threads"])
    where = torch.device(spec["device"])
    if where.type == "cuda" and not torch.cuda.is_available():
        return {"device": None}
    left, right = (torch.randn(SIDE, SIDE, device=where) for _ in range(2))
    source = torch.zeros(COPIED_BYTES // 4, device=where)
    target = torch.empty_like(source)
    product = torch.empty_like(left)
    return {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "flops": 2 * SIDE**3 / _best(lambda: torch.mm(left, right, out=product), where),
        "bytes_per_second": 2 * COPIED_BYTES / _best(lambda: target.copy_(source), where),
    }


def _best(work: Callable[[], object], where: torch.device) -> float:
    """Seconds of the fastest repeat."""
    seconds = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        work()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


if __name__ == "__main__":
    gauge.main(measure)
