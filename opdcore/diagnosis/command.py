"""The command `diagnose`: a verdict on a pair and its prompts without a server, for people and for CI.

The report goes to standard error; with --json the diagnosis goes to standard output. Exit codes: 0 go,
3 no-go, 4 undecided; what cannot be read at all is bad input (2). Importing it loads no torch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from opdcore.contract.evaluation import GoalKind, VerifierName
from opdcore.contract.events import Logged, Payload, Progress
from opdcore.contract.probe import Finding, Probe, Relation
from opdcore.contract.verdicts import Go
from opdcore.diagnosis import dumped, report, request, setup
from opdcore.diagnosis.request import Request

if TYPE_CHECKING:
    from opdcore.diagnosis.probe import Given
    from opdcore.workspace import Workspace

EXIT_CODES: dict[Go, int] = {"go": 0, "no_go": 3, "undecided": 4}


def add_to(commands: Any) -> None:  # noqa: ANN401 - argparse's own type has no public name
    """Declares the command and its options."""
    parser = commands.add_parser(
        "diagnose",
        help="say before training whether a pair will work on some prompts, and why not",
        epilog="Exit codes: 0 go, 3 no-go, 4 undecided, 2 bad input, 1 failure.",
    )
    add = parser.add_argument
    add("--student", type=Path, required=True, metavar="DIR")
    add("--teacher", type=Path, required=True, metavar="DIR")
    add("--prompts", type=Path, required=True, metavar="FILE", help="a prompt set, as JSON lines")
    add("--recipe", type=Path, metavar="FILE", help="the planned run: goal, objective and length")
    add("--verifier", choices=get_args(VerifierName), help="default: the recipe's, or none")
    add("--goal", choices=get_args(GoalKind), help="default: the recipe's, or acquire")
    add("--relation", choices=get_args(Relation), help="what the teacher is to the student")
    add("--tiers", metavar="TIERS", help="default: static,scored,hand_off; static needs no GPU")
    add("--prompts-count", type=int, metavar="N", help="prompts to probe, whatever they cost")
    add("--rollouts-per-prompt", type=int, metavar="N")
    add("--max-response-tokens", type=int, metavar="N")
    add("--temperature", type=float, metavar="T")
    add("--rollouts", type=Path, metavar="FILE", help="read rollouts that a trainer dumped")
    add("--calibration", type=Path, metavar="FILE", help="exported for the pair's family")
    add("--json", action="store_true", help="write the diagnosis to standard output")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Diagnoses, reports, and returns the exit code."""
    asked = request.of(arguments)
    diagnosis = asked.question.conclude(_probed(asked))
    sys.stderr.write("\n" + report.text(diagnosis))
    if arguments.json:
        sys.stdout.write(diagnosis.model_dump_json(indent=2) + "\n")
    return EXIT_CODES[diagnosis.verdict.go]


def _probed(asked: Request) -> Probe:
    """The static tier alone where it refuses or nothing else is wanted, so that no weight is loaded."""
    started = time.perf_counter()
    _tell(Logged(level="info", message="Static tier: reads both folders and the prompts."))
    findings = setup.findings(asked.student, asked.teacher, asked.prompts)
    if setup.refuses(findings) or asked.stage.tiers == ("static",):
        seconds = time.perf_counter() - started
        return setup.probe(asked.stage, findings, verifier="none", seconds=seconds)
    return _measured(asked, findings)


def _measured(asked: Request, findings: tuple[Finding, ...]) -> Probe:
    from opdcore.diagnosis.probe import measure
    from opdcore.workspace import Workspace, prepare

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for item in prepare(asked.job(), folder, stop=lambda: False, stack=stack, resumed=False):
            if isinstance(item, Workspace):
                work = item
            else:
                _tell(item)
        for told in measure(
            asked.stage,
            work,
            planned=asked.question.planned,
            given=_given(asked, work),
            settled=asked.question.settled,
            findings=findings,
        ):
            if isinstance(told, Probe):
                return told
            _tell(told)
    raise AssertionError("A probe ends with its numbers.")


def _given(asked: Request, work: Workspace) -> Given | None:
    """The dumped rollouts as the student's own; None where none were given."""
    from opdcore.rollouts import Rollout

    if asked.rollouts is None:
        return None
    renderer = work.student.renderer
    found = dumped.match(dumped.read(asked.rollouts), work.train, renderer, path=asked.rollouts)
    encoded = dumped.encode(found, renderer, longest=asked.stage.max_response_tokens)
    return {
        row: [Rollout(row, ids, (0.0,) * len(ids), stopped) for ids, stopped in some]
        for row, some in encoded.items()
    }


def _tell(payload: Payload) -> None:
    if isinstance(payload, Logged):
        sys.stderr.write(payload.message + "\n")
    elif isinstance(payload, Progress):
        end = "\r" if sys.stderr.isatty() else "\n"
        sys.stderr.write(f"{payload.what}: {payload.done} of {payload.total} {payload.unit}{end}")
