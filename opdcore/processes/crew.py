"""The other processes of a run: started by the first one, watched by it, and ended with it.

Each is `python -m opdcore.peer`, tied to this process by `leash`, so that none outlives it. accelerate and
torchrun can start them too (see `launched`), but a job starts them itself: those launchers pass on no
descriptor for events, turn every exit code into 1, leave their children alone when they are killed, and
accelerate starts none on a CPU without MPI. It knows no stage and no torch.distributed group.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from opdcore.contract.errors import BadInput, EngineFailure, ErrorInfo, StillroomError
from opdcore.contract.job import Job

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
# What a process ends with where memory ran out, so that the first one can say so.
OUT_OF_MEMORY = 3
# A connection breaks a moment before the process behind it is gone; a job that is over ends soon.
DYING_SECONDS = 10.0
ENDING_SECONDS = 10.0


class Talk(Protocol):
    """How the leader reaches the others."""

    def tell(self, order: object) -> None: ...
    def leave(self) -> None: ...


class Crew:
    """The processes from number 1 on; without a `meeting` a launcher has started and watches them."""

    def __init__(self, job: Job, run_dir: Path, *, count: int, meeting: Path | None) -> None:
        self._talk: Talk | None = None
        self._is_broken = False
        self._peers = []
        if meeting is not None:
            ranks = range(1, count)
            self._peers = [_started(job, run_dir, rank=rank, meeting=meeting) for rank in ranks]

    def await_ready(self) -> None:
        """Return once everyone has loaded its models; raises what kept one of them from it."""
        for peer in self._peers:
            assert peer.stdout is not None
            line = peer.stdout.readline()
            if not line:
                raise self._lost() or _gone(peer)
            told = json.loads(line)
            if told is not None:
                raise _error(told)

    def led_by(self, talk: Talk) -> None:
        """Remember how to tell them that the run is over."""
        self._talk = talk

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While all take part: a failure of another process is told as such."""
        if (lost := self._lost(seconds=0)) is not None:
            raise lost
        was_broken, self._is_broken = self._is_broken, True
        try:
            yield
        except RuntimeError as error:
            lost = self._lost()
            if lost is None:
                raise
            raise lost from error
        self._is_broken = was_broken

    def end(self) -> None:
        """End them all: politely where they listen, at once where something went wrong midway."""
        if self._talk is not None and not self._is_broken and self._lost(seconds=0) is None:
            with suppress(RuntimeError):
                self._talk.tell(None)
                self._talk.leave()
            for peer in self._peers:
                with suppress(subprocess.TimeoutExpired):
                    peer.wait(ENDING_SECONDS)
        for peer in self._peers:
            peer.kill()
            peer.wait()
            assert peer.stdout is not None
            peer.stdout.close()
        if self._talk is not None:
            with suppress(RuntimeError, AssertionError):
                self._talk.leave()

    def _lost(self, seconds: float = DYING_SECONDS) -> EngineFailure | None:
        """The failure of whichever process has ended by itself; None where none ends so soon."""
        for peer in self._peers:
            with suppress(subprocess.TimeoutExpired):
                peer.wait(seconds / len(self._peers))
                self._is_broken = True
                return _gone(peer)
        return None


def _started(job: Job, run_dir: Path, *, rank: int, meeting: Path) -> subprocess.Popen[bytes]:
    """Its standard input is the job; its first line of output says that it is ready, or why not."""
    leash = ["-m", "opdcore.leash", str(os.getpid()), str(Path.cwd()), "opdcore.peer"]
    process = subprocess.Popen(
        [sys.executable, *leash, str(rank), str(meeting), str(run_dir)],
        cwd=_PACKAGE_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # It ended at once, which waiting for it tells.
        process.stdin.write(job.model_dump_json().encode())
        process.stdin.close()
    return process


def _gone(peer: subprocess.Popen[bytes]) -> EngineFailure:
    code = peer.wait()
    if code == OUT_OF_MEMORY:
        return EngineFailure(
            "run.out_of_memory",
            "Memory ran out in one of the run's processes.",
            remedy="Resume where more memory is free, or start a new run with lower "
            "micro_batch_tokens, max_response_tokens or rollouts_per_prompt.",
        )
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return EngineFailure(
        "run.process_lost",
        f"One of the run's processes {how}.",
        remedy="Look at the run's log for its last words; resume the run to go on from its last "
        "checkpoint.",
    )


def _error(told: dict[str, str | int | None]) -> StillroomError:
    """What a process could not begin for, as its own error."""
    kind = BadInput if told.pop("exit_code") == BadInput.exit_code else EngineFailure
    info = ErrorInfo.model_validate(told)
    return kind(info.code, info.message, remedy=info.remedy, field=info.field)
