"""The command line: the only way in which a process becomes a job.

Exit codes: 0 succeeded; 1 the run failed; 2 bad input or bad usage; 5 cancelled; 6 paused, because
it was failing and its recipe says so. Events go, one JSON line each, to standard output or to the
file descriptor or file that --events names.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import TypeAdapter

from opdcore import documents
from opdcore.contract.errors import BadInput, EngineFailure, StillroomError
from opdcore.contract.events import EVENT, encode
from opdcore.contract.job import Job
from opdcore.contract.recipe import Recipe
from opdcore.diagnosis import command as diagnosis

SCHEMAS: dict[str, TypeAdapter[Any]] = {
    "recipe": TypeAdapter(Recipe),
    "job": TypeAdapter(Job),
    "event": EVENT,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
    except StillroomError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m opdcore",
        description="On-policy distillation without a server.",
        epilog="Exit codes: 0 succeeded, 1 the run failed, 2 bad input, 5 cancelled, 6 paused.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="execute a job; the same folder again resumes it")
    run.add_argument("job", type=Path, metavar="JOB.json", help="the job document")
    run.add_argument("--run-dir", type=Path, required=True, help="checkpoints, traces and output")
    run.add_argument(
        "--events",
        default="-",
        metavar="FD|FILE",
        help="where events go (default: standard output)",
    )
    run.set_defaults(command=_run)

    lab = commands.add_parser("lab", help="the built-in laboratory of tiny models")
    lab_commands = lab.add_subparsers(required=True, metavar="COMMAND")
    build = lab_commands.add_parser("build", help="build a laboratory pair from a seed")
    build.add_argument("directory", type=Path, metavar="DIR")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--family", choices=("sums", "cups"), default="sums")
    build.set_defaults(command=_lab_build)

    diagnosis.add_to(commands)

    scores = commands.add_parser("scores", help="records of teachers' scores: list and free them")
    scores.add_argument("folder", type=Path, metavar="DIR", help="the folder of the records")
    scores.add_argument(
        "--free-unused-days",
        type=float,
        metavar="DAYS",
        help="remove the records that no run has opened for so long; do it while none runs",
    )
    scores.set_defaults(command=_scores)

    download = commands.add_parser("download", help="fetch models of the hub, without a device")
    download.add_argument("models", nargs="+", metavar="REPO@REVISION")
    download.add_argument("--status", type=Path, required=True, help="file that says how far it is")
    download.set_defaults(command=_download)

    recipe = commands.add_parser("recipe", help="work with recipes")
    recipe_commands = recipe.add_subparsers(required=True, metavar="COMMAND")
    validate = recipe_commands.add_parser("validate", help="check a recipe (YAML or JSON)")
    validate.add_argument("file", type=Path, metavar="FILE")
    validate.set_defaults(command=_recipe_validate)

    schema = commands.add_parser("schema", help="print the JSON schema of a document")
    schema.add_argument("document", choices=tuple(SCHEMAS))
    schema.set_defaults(command=_schema)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    job = documents.read(Job, arguments.job)
    from opdcore.processes import launched

    if rank := launched.rank():
        from opdcore.peer import serve

        return serve(job, arguments.run_dir, rank=rank, meeting=None, told=lambda _: None)
    from opdcore.execution import execute

    sink = _open_events(arguments.events)
    events = execute(job, arguments.run_dir, stop=_StopOnSignal())
    with closing(events):
        for event in events:
            _tell(sink, encode(event) + b"\n")
    sink.close()
    return 0


def _tell(sink: FileIO, line: bytes) -> None:
    """Writes a line; a run that nobody can follow any more fails rather than goes on unseen."""
    try:
        while line:
            line = line[sink.write(line) :]
    except OSError as error:
        raise EngineFailure(
            "run.events_lost",
            f"Events could not be written: {error.strerror}.",
            remedy="Resume the run with events going where they can be written.",
        ) from error


def _lab_build(arguments: argparse.Namespace) -> int:
    from opdcore.lab.build import build

    for progress in build(arguments.directory, family=arguments.family, seed=arguments.seed):
        told = f"{progress.what}: {progress.done} of {progress.total} {progress.unit}"
        print(told, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr)
    print(arguments.directory)
    return 0


def _scores(arguments: argparse.Namespace) -> int:
    from opdcore.teachers import records

    days = arguments.free_unused_days
    if days is not None:
        for record in records.free(arguments.folder, unused_days=days):
            print(f"freed {record.told()}")
    for record in records.every(arguments.folder):
        print(record.told())
    return 0


def _download(arguments: argparse.Namespace) -> int:
    from opdcore import hub
    from opdcore.contract.participant import HubModel

    def write(**told: object) -> None:
        aside = arguments.status.with_suffix(".part")
        aside.write_text(json.dumps(told), encoding="utf-8")
        aside.rename(arguments.status)

    commits = {}
    for name in arguments.models:
        repo, _, revision = name.rpartition("@")
        try:
            model = HubModel(repo=repo, revision=revision)
            here = hub.download(
                model,
                told=lambda done, total: write(what=repo, done=done, total=total),  # noqa: B023
                field="model",
            )
        except StillroomError as error:
            write(error=error.info.model_dump(mode="json"))
            raise
        commits[name] = here.commit
    write(commits=commits)
    return 0


def _recipe_validate(arguments: argparse.Namespace) -> int:
    recipe = documents.read(Recipe, arguments.file)
    kinds = ", ".join(stage.kind for stage in recipe.stages)
    print(f"{arguments.file}: {recipe.name}, stages: {kinds}")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    print(json.dumps(SCHEMAS[arguments.document].json_schema(), indent=2))
    return 0


def _open_events(target: str) -> FileIO:
    """Standard output, an inherited file descriptor by number, or a file that is appended to."""
    try:
        if target == "-":
            return FileIO(os.dup(sys.stdout.fileno()), "wb")
        return FileIO(int(target), "wb") if target.isdigit() else FileIO(target, "ab")
    except OSError as error:
        raise BadInput(
            "run.events",
            f"Events cannot go to {target}: {error.strerror}.",
            remedy="Give - for standard output, an inherited file descriptor, or a file.",
            field="--events",
        ) from error


class _StopOnSignal:
    """Says yes after the first SIGTERM or SIGINT; a second one ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def __call__(self) -> bool:
        return self.asked

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
