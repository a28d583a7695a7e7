"""opdcore, on-policy distillation as a library: `for event in opdcore.run(job)`.

Importing this module loads neither torch nor transformers; running a job does. It knows nothing of
Django, Celery or any broker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from opdcore.contract.events import AnyEvent
from opdcore.contract.job import Job
from opdcore.contract.recipe import Recipe

__all__ = ["Job", "Recipe", "run"]


def run(
    job: Job, run_dir: Path | str | None = None, *, stop: Callable[[], bool] = lambda: False
) -> Iterator[AnyEvent]:
    """Executes a job, yielding its events; `run_dir` is `runs/<run_id>` unless given.

    The same job in the same folder goes on from its newest checkpoint. `stop` is asked before each
    step, and within evaluations before and between training; once it says yes, what was trained is
    written as a checkpoint and the run ends as cancelled.
    """
    from opdcore.execution import execute

    return execute(job, Path(run_dir or Path("runs") / job.run_id), stop=stop)
