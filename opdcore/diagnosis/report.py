"""A diagnosis as text: the verdict first, then what it rests on, then everything that was measured.

It draws no verdict and needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator

from opdcore.contract.probe import PROBE_METRICS, Depth, Diagnosis, Finding, Measure, Probe
from opdcore.contract.verdicts import Evidence, Verdict

_GO = {"go": "go", "no_go": "no-go", "undecided": "undecided"}
_WIDTH = 32


def text(diagnosis: Diagnosis) -> str:
    """Lines for people, each ended."""
    probe = diagnosis.probe
    lines = [
        *_verdict(diagnosis.verdict, diagnosis.calibration),
        *_section("Evidence", map(_evidence, diagnosis.verdict.evidence)),
        *_section("Findings", map(_finding, probe.findings)),
        *_section(
            "Hand-off: the student goes on, the teacher goes on", map(_depth, probe.hand_off)
        ),
        *_section("Measures, with 95 % intervals by prompt", _measures(probe)),
        "",
        _cost(probe),
    ]
    return "\n".join(lines) + "\n"


def _verdict(verdict: Verdict, calibration: str) -> Iterator[str]:
    yield (
        f"{verdict.code}: {_GO[verdict.go]}, confidence {verdict.confidence} "
        f"(calibration: {calibration})"
    )
    yield verdict.explanation


def _section(title: str, rows: Iterator[str]) -> Iterator[str]:
    """Nothing at all where there is no row."""
    found = list(rows)
    if found:
        yield from ("", title, *(f"  {row}" for row in found))


def _evidence(row: Evidence) -> str:
    metric = PROBE_METRICS.get(row.metric)
    beside = "" if row.reference is None else f"   control {_number(row.reference)}"
    return f"{metric.label if metric else row.metric:{_WIDTH}} {_within(row)}{beside}"


def _finding(found: Finding) -> str:
    return f"{found.severity} {found.code}: {found.message} {found.remedy}"


def _depth(depth: Depth) -> str:
    place = f"{depth.share:.0%}" if depth.share is not None else f"token {depth.tokens}"
    sides = f"{_number(depth.student.value)} {_number(depth.teacher.value)}"
    return f"{'at ' + place:{_WIDTH}} {sides}   gain {_within(depth.gain)}"


def _measures(probe: Probe) -> Iterator[str]:
    for key, metric in PROBE_METRICS.items():
        if key in probe.measures:
            yield f"{metric.label:{_WIDTH}} {_within(probe.measures[key])}"


def _within(found: Measure | Evidence) -> str:
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f" [{_number(found.low)}, {_number(found.high)}]"
    return _number(found.value) + interval


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _cost(probe: Probe) -> str:
    return (
        f"{probe.prompts} prompts, {probe.rollouts_per_prompt} rollouts of each, "
        f"{probe.looks} of 3 looks, verifier {probe.verifier}; the student wrote "
        f"{probe.student_tokens} tokens, the teacher {probe.teacher_tokens}; "
        f"{probe.seconds:.1f} s."
    )
