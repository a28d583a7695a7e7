"""What differs between a CPU and a GPU: its name, waiting for it, its memory and the end of that."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch

from opdcore.contract.errors import BadInput

STATUS = Path("/proc/self/status")
# How torch's CPU allocator says it, in a plain RuntimeError.
CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")


def synchronise(device: torch.device) -> None:
    """Waits until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory so far: of the GPU's allocator, or of the whole process on a CPU.

    Linux's own figure of a process starts at that of whoever started it, so its status is read instead.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if STATUS.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def describe(device: torch.device) -> str:
    """The device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def named(name: str, *, field: str) -> torch.device:
    """The device of a name such as cpu or cuda:0; raises BadInput where this machine lacks it."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _missing(name, "is no name of a device", field) from error
    if device.type not in ("cpu", "cuda"):
        raise _missing(name, "is neither a CPU nor a CUDA device", field)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise _missing(name, f"is not among this machine's {count} CUDA devices", field)
    # cpu:0 and cpu:1 are shares of one CPU.
    return torch.device("cpu") if device.type == "cpu" else device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a CPU or a GPU has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error) for s in CPU_OUT_OF_MEMORY)


def _missing(name: str, why: str, field: str) -> BadInput:
    return BadInput(
        "device.missing", f"{name!r} {why}.", remedy="Use cpu, or a CUDA device of this machine.",
        field=field,
    )  # fmt: skip
