"""How an attempt ended: from the job's last word, or from how its process died.

Pure: an exit code, what was recorded, and the end of a log become a status and an error with a code
and a remedy. It touches no row.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opdcore.contract.errors import ErrorInfo
from opdcore.contract.events import JobFinished

LOG_TAIL_BYTES = 8192
MEMORY_SIGNS = ("CUDA out of memory", "OutOfMemoryError", "MemoryError", "Cannot allocate memory")
_OOM_KILLS = Path("/sys/fs/cgroup/memory.events")

Status = Literal["succeeded", "failed", "cancelled", "paused", "queued"]


@dataclass(frozen=True)
class Ending:
    """What the run becomes. `queued`: it goes on in its next attempt; `paused`: once it is resumed."""

    status: Status
    error: ErrorInfo | None = None
    outcome: dict[str, Any] | None = None


@dataclass(frozen=True)
class Death:
    """What is known of a process that has ended: minus a signal's number, or its exit code."""

    code: int
    log_tail: str
    cancel_requested: bool
    interrupted: bool
    memory_ran_out: bool


def judge(said: JobFinished | None, death: Death) -> Ending:
    """The ending; what the job itself said comes first, except that somebody else stopped it."""
    if said is not None and said.status == "succeeded":
        outcome = said.outcome.model_dump(mode="json") if said.outcome else None
        return Ending("succeeded", outcome=outcome)
    if said is not None and said.status == "failed":
        return Ending("failed", error=said.error)
    if death.cancel_requested:
        return Ending("cancelled", error=said.error if said else None)
    paused = said is not None and said.status == "paused"
    if death.interrupted and not paused:
        return Ending("queued")
    if said is not None:
        return Ending("paused" if paused else "cancelled", error=said.error)
    return Ending("failed", error=_died(death))


def _died(death: Death) -> ErrorInfo:
    if death.memory_ran_out or any(sign in death.log_tail for sign in MEMORY_SIGNS):
        return ErrorInfo(
            code="job.out_of_memory",
            message=f"The job ran out of memory ({_how(death.code)}).",
            remedy="Lower micro_batch_tokens or max_response_tokens in a clone, or resume where "
            "more memory is free; the last checkpoint is kept.",
        )
    if death.code < 0:
        return ErrorInfo(
            code="job.killed",
            message=f"The job's process was ended from outside ({_how(death.code)}).",
            remedy="Resume it: it goes on from the last checkpoint.",
        )
    last = death.log_tail.strip().rpartition("\n")[2][:500]
    return ErrorInfo(
        code="job.crashed",
        message=f"The job's process ended without a word ({_how(death.code)}): {last or 'no log'}",
        remedy="See the log among the artifacts; resume it once the cause is gone.",
    )


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def log_tail(path: Path) -> str:
    """The end of a log; empty where there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        return log.read().decode(errors="replace")


def memory_kills() -> int:
    """How often the kernel has killed a process of this container for memory."""
    try:
        rows = dict(line.split() for line in _OOM_KILLS.read_text().splitlines())
    except OSError:
        return 0
    return int(rows.get("oom_kill", 0))
