"""Probes with the laboratory's figures, for tests of verdicts."""

from __future__ import annotations

from typing import Any

from opdcore.calibration import laboratory
from opdcore.contract.distill import DistillStage
from opdcore.contract.evaluation import Goal
from opdcore.contract.positions import Positions
from opdcore.contract.probe import Depth, Finding, Measure, Probe, Provenance
from opdcore.contract.verdicts import Verdict
from opdcore.verdicts import judge

SUCCESS = {
    "overlap_ratio": 0.82, "effective_overlap": 0.94, "overlap_mass_student": 0.98,
    "overlap_mass_teacher": 0.98, "top1_agreement": 0.98, "reverse_kl": 0.1,
    "accuracy_gap": 0.45, "teacher_on_failed": 0.97, "style_mass": 0.9,
    "hand_off_25": 0.2, "hand_off_50": 0.22, "hand_off_75": 0.1, "hand_off_min": 0.1,
    "truncation_rate": 0.02, "repetition_rate": 0.0,
}  # fmt: skip
MISMATCH = SUCCESS | {
    "overlap_ratio": 0.38, "effective_overlap": 0.11, "overlap_mass_student": 0.29,
    "overlap_mass_teacher": 0.3, "top1_agreement": 0.13, "reverse_kl": 8.5, "style_mass": 0.002,
    "hand_off_25": -0.44, "hand_off_50": -0.42, "hand_off_75": -0.5, "hand_off_min": -0.5,
}  # fmt: skip
NOTHING_NEW = SUCCESS | {
    "effective_overlap": 0.98, "top1_agreement": 0.99, "reverse_kl": 0.006, "accuracy_gap": 0.02,
    "teacher_on_failed": 0.26, "hand_off_25": -0.01, "hand_off_50": -0.02, "hand_off_75": 0.0,
    "hand_off_min": -0.02,
}  # fmt: skip
REVERSE = SUCCESS | {
    "effective_overlap": 0.955, "top1_agreement": 0.99, "reverse_kl": 0.03, "accuracy_gap": -0.47,
    "hand_off_25": -0.31, "hand_off_50": -0.35, "hand_off_75": -0.18, "hand_off_min": -0.35,
}  # fmt: skip
RESCUED = SUCCESS | {
    "effective_overlap": 0.62, "top1_agreement": 0.68, "reverse_kl": 2.8,
    "overlap_mass_student": 0.75, "overlap_mass_teacher": 0.75, "hand_off_25": -0.02,
    "hand_off_50": -0.04, "hand_off_75": -0.08, "hand_off_min": -0.08,
}  # fmt: skip
UNGRADED = ("accuracy_gap", "teacher_on_failed", "hand_off_25", "hand_off_50", "hand_off_75",
            "hand_off_min")  # fmt: skip

WIDTHS = {
    "reverse_kl": 0.003,
    "style_mass": 0.002,
    "effective_overlap": 0.02,
    "top1_agreement": 0.02,
}


def measures(
    values: dict[str, float], *, prompts: int = 128, width: float | None = None, **changed: Any
) -> dict[str, Measure]:
    """Each value with an interval around it; `changed` replaces values, or whole measures."""
    return {
        key: value
        if isinstance(value, Measure)
        else around(value, width if width is not None else WIDTHS.get(key, 0.05), prompts)
        for key, value in (values | changed).items()
    }


def around(value: float, half: float, prompts: int = 128) -> Measure:
    return Measure(value=value, low=value - half, high=value + half, prompts=prompts)


def make_probe(
    values: dict[str, float] | None = None,
    *,
    prompts: int = 128,
    verifier: str = "laboratory",
    relation: str = "unknown",
    stated: bool = False,
    findings: tuple[Finding, ...] = (),
    hand_off: tuple[Depth, ...] = (),
    chunks: Positions | None = None,
    width: float | None = None,
    **changed: Any,
) -> Probe:
    found = measures(SUCCESS if values is None else values, prompts=prompts, width=width, **changed)
    if verifier == "none":
        found = {key: one for key, one in found.items() if key not in UNGRADED}
    return Probe(
        tiers=("static", "scored", "hand_off"), prompts=prompts, rollouts_per_prompt=4, k=16,
        verifier=verifier, measures=found, findings=findings, hand_off=hand_off, chunks=chunks,
        provenance=Provenance(relation=relation, stated=stated), seconds=1.0,
    )  # fmt: skip


def judged(
    probe: Probe, *, goal: str = "acquire", objective: DistillStage | None = None, **options: Any
) -> Verdict:
    return judge(
        probe, goal=Goal(kind=goal), objective=objective, calibration=laboratory(), **options
    )


def depth(gain: Measure, *, share: float | None = None, tokens: int | None = None) -> Depth:
    nothing = Measure(value=None, prompts=gain.prompts)
    return Depth(share=share, tokens=tokens, student=nothing, teacher=nothing, gain=gain)


def refusal(code: str = "setup.token_maps_differ") -> Finding:
    return Finding(
        code=code, severity="refusal", message="Id 7 is 'a' and 'b'.", remedy="Choose another."
    )
