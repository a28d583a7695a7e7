"""`python -m opdcore.peer RANK MEETING RUN_DIR`: one of a run's processes that is not its first.

It reads the job from standard input, loads the models, says so in one line, and then does its part of
whatever the first process asks. It writes no file and tells no event, heeds no wish to stop, since the
first process does, and ends with it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from opdcore.contract.errors import StillroomError
from opdcore.contract.job import Job
from opdcore.device import is_out_of_memory
from opdcore.processes.crew import OUT_OF_MEMORY
from opdcore.processes.several import Place, Several
from opdcore.workspace import join, pick_device, train_devices


def main(argv: Sequence[str]) -> int:
    """Serve the run's first process until it is done."""
    told = _first_line()
    rank, meeting, run_dir = int(argv[0]), Path(argv[1]), Path(argv[2])
    job = Job.model_validate_json(sys.stdin.buffer.read())
    return serve(job, run_dir, rank=rank, meeting=meeting, told=told)


def serve(
    job: Job, run_dir: Path, *, rank: int, meeting: Path | None, told: Callable[[str], None]
) -> int:
    """Be the job's process of that number until the first one is done; the exit code.

    `told` hears null once the models are loaded, or else the error with which this process ends.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        place = Place(rank, len(train_devices(job)), pick_device(job, rank), meeting)
        with ExitStack() as stack:
            processes = Several(place)
            work = join(job, run_dir, processes, stack=stack, device=place.device)
            told("null")
            processes.meet(work)
            processes.serve(work)
    except StillroomError as error:
        told(error.info.model_dump_json()[:-1] + f',"exit_code":{error.exit_code}}}')
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return OUT_OF_MEMORY
    return 0


def _first_line() -> Callable[[str], None]:
    """Tells the first process one line; whatever else is printed goes where errors go."""
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(line: str) -> None:
        with suppress(OSError, ValueError):
            pipe.write(line + "\n")
            pipe.close()

    return tell


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # Nothing is left to write, and an orderly end takes torch seconds.
