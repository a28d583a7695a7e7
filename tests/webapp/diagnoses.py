"""Factories: verdicts and diagnoses with what a test does not care about filled in."""

import json

from django.core.files.base import ContentFile
from django.core.files.storage import storages

from opdcore.contract.positions import Positions
from opdcore.contract.probe import Depth, Diagnosis, Finding, Measure, Probe
from opdcore.contract.verdicts import Evidence, Verdict
from tests.webapp.rows import make_prompt_set

DIAGNOSE = {"kind": "diagnose", "prompts": 32}


def make_prompts(project, name="prompts", **overrides):
    """A prompt set whose file can be read, since a pair's page renders its first prompt."""
    line = json.dumps({"prompt": "1+1?", "answer": "2"}) + "\n"
    key = storages["prompts"].save(f"{name}.jsonl", ContentFile(line.encode()))
    return make_prompt_set(project, name, storage_key=key, **overrides)


def make_verdict(code="STALLED_MISMATCH", go="no_go", *, evidence=(), confidence="medium"):
    return Verdict(
        code=code,
        go=go,
        confidence=confidence,
        evidence=evidence,
        explanation="Overlap stays near 0.4. The loss does not fall.",
    )


def make_evidence(metric="overlap_ratio", value=0.41, **more):
    return Evidence(metric=metric, value=value, **more)


def measure(value, *, low=None, high=None, prompts=32):
    return Measure(value=value, low=low, high=high, prompts=prompts)


def depth(share, *, student, teacher):
    gain = measure(teacher - student, low=teacher - student - 0.1, high=teacher - student + 0.1)
    bounds = {"student": student, "teacher": teacher}
    sides = {
        side: measure(value, low=value - 0.05, high=value + 0.05) for side, value in bounds.items()
    }
    return Depth(share=share, gain=gain, **sides)


def make_diagnosis(code="PATTERN_MISMATCH", go="no_go", *, confidence="high", **probe):
    told = {
        "tiers": ("static", "scored", "hand_off"),
        "prompts": 32,
        "rollouts_per_prompt": 4,
        "k": 16,
        "verifier": "exact",
        "measures": {
            "overlap_ratio": measure(0.38, low=0.34, high=0.41),
            "effective_overlap": measure(0.12, low=0.09, high=0.14),
            "reverse_kl": measure(8.3, low=7.9, high=8.8),
            "student_accuracy": measure(0.47, low=0.41, high=0.53),
            "teacher_accuracy": measure(0.97, low=0.94, high=0.99),
            "accuracy_gap": measure(0.5, low=0.44, high=0.57),
            "hand_off_min": measure(-0.52, low=-0.6, high=-0.44),
            "truncation_rate": measure(0.02, low=0.0, high=0.05),
            "reward_auroc": measure(None, prompts=0),
        },
        "chunks": Positions(
            edges=(0, 16, 32), positions=(512, 300), values={"overlap_ratio": (0.44, None)}
        ),
        "hand_off": tuple(
            depth(share, student=0.47, teacher=teacher)
            for share, teacher in ((0.25, 0.08), (0.5, 0.02), (0.75, 0.2))
        ),
        "findings": (
            Finding(
                code="setup.stop_ids_differ",
                severity="warning",
                message="The student stops at 1, the teacher at 1 and 7.",
                remedy="Add 7 to the student's stop ids.",
            ),
        ),
        "student_tokens": 5120,
        "teacher_tokens": 6400,
        "seconds": 41.5,
    } | probe
    evidence = (
        make_evidence("hand_off_min", -0.52, low=-0.6, high=-0.44, reference=-0.2),
        make_evidence("effective_overlap", 0.12, low=0.09, high=0.14, reference=0.6),
    )
    verdict = make_verdict(code, go, evidence=evidence, confidence=confidence)
    return Diagnosis(probe=Probe(**told), verdict=verdict, calibration="laboratory")
