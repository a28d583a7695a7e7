"""Where calibrations come from: the laboratory's is built in, others are files or made of runs.

It knows no model and draws no verdict.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from opdcore.contract.calibration import Calibration, Control
from opdcore.contract.errors import BadInput
from opdcore.contract.probe import PROBE_METRICS, Measure

LABORATORY = "laboratory"


def laboratory() -> Calibration:
    """The built-in one, measured on the laboratory's tiny models, three seeds a control."""
    return _LABORATORY


def read(path: Path) -> Calibration:
    """Reads an exported calibration; raises BadInput where it is none."""
    try:
        found = Calibration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(
            "calibration.unreadable",
            f"{path} cannot be read: {error.strerror}.",
            remedy="Name a file that was exported as a calibration.",
            field=str(path),
        ) from error
    except ValidationError as error:
        raise _invalid(error, path) from error
    _refuse_unknown(found, path)
    return found


def write(calibration: Calibration, path: Path) -> None:
    """Writes a calibration that `read` reads back, whole or not at all."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(calibration.model_dump_json(indent=1) + "\n", encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise BadInput(
            "calibration.unwritable",
            f"{path} cannot be written: {error.strerror}.",
            remedy="Name a file in a folder that exists and can be written to.",
            field=str(path),
        ) from error


def _invalid(error: ValidationError, path: Path) -> BadInput:
    row = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in row["loc"])
    return BadInput(
        "calibration.invalid",
        f"{path} is no calibration: {where or 'its content'}: {row['msg']}.",
        remedy="Export it again, from a version of Stillroom that is not newer than this one.",
        field=where or str(path),
    )


def _refuse_unknown(found: Calibration, path: Path) -> None:
    for name, control in found.controls.items():
        unknown = sorted(control.measures.keys() - PROBE_METRICS.keys())
        if unknown:
            raise BadInput(
                "calibration.unknown_metric",
                f"{path} has measures of {', '.join(unknown)}, which this version does not know.",
                remedy="Update Stillroom, or remove them from the file.",
                field=f"controls.{name}.measures.{unknown[0]}",
            )
    limits = found.thresholds
    for low, high in _ORDERED:
        if getattr(limits, low) > getattr(limits, high):
            raise BadInput(
                "calibration.thresholds",
                f"{path}: {low} is {getattr(limits, low):g}, above {high}, "
                f"{getattr(limits, high):g}.",
                remedy=f"Lower {low} or raise {high}; what lies between them is left open.",
                field=f"thresholds.{low}",
            )


# Pairs of thresholds with a grey zone between them: the lower one first.
_ORDERED = (
    ("incompatible_overlap", "compatible_overlap"),
    ("incompatible_hand_off", "compatible_hand_off"),
    ("style_mass_absent", "style_mass_healing"),
    ("nothing_on_failed", "new_on_failed"),
)


def _range(low: float, high: float) -> Measure:
    """The middle of a range over seeds; a control's seeds had 288 prompts each."""
    return Measure(value=round((low + high) / 2, 6), low=low, high=high, prompts=288)


_LABORATORY = Calibration(
    name="Laboratory",
    family=LABORATORY,
    runs=14,
    controls={
        "identical": Control(
            runs=0,
            outcome="No gain, by definition: there is nothing to learn from oneself.",
            measures={
                "overlap_ratio": _range(1, 1),
                "effective_overlap": _range(1, 1),
                "top1_agreement": _range(1, 1),
                "reverse_kl": _range(0, 0),
                "token_reward": _range(0, 0),
                "entropy_gap": _range(0, 0),
                "accuracy_gap": _range(-0.05, 0.05),
            },
        ),
        "descendant": Control(
            runs=5,
            outcome="Success: the student came within .04 of the teacher in 40 steps.",
            measures={
                "overlap_ratio": _range(0.81, 0.83),
                "effective_overlap": _range(0.93, 0.96),
                "overlap_mass_student": _range(0.97, 0.99),
                "overlap_mass_teacher": _range(0.97, 0.99),
                "top1_agreement": _range(0.98, 0.99),
                "reverse_kl": _range(0.07, 0.15),
                "teacher_on_failed": _range(0.96, 0.98),
                "accuracy_gap": _range(0.42, 0.5),
                "hand_off_25": _range(0.16, 0.26),
                "hand_off_50": _range(0.17, 0.3),
                "hand_off_75": _range(0.09, 0.1),
                "hand_off_min": _range(0.09, 0.1),
            },
        ),
        "same_pipeline": Control(
            runs=3,
            outcome="No gain: from .50-.52 to .50-.54.",
            measures={
                "effective_overlap": _range(0.97, 0.99),
                "overlap_mass_student": _range(0.97, 0.97),
                "top1_agreement": _range(0.99, 0.99),
                "reverse_kl": _range(0, 0.01),
                "teacher_on_failed": _range(0.24, 0.28),
                "accuracy_gap": _range(0.01, 0.045),
                "hand_off_50": _range(-0.05, 0),
                "hand_off_min": _range(-0.05, 0),
            },
        ),
        "reverse": Control(
            runs=3,
            outcome="Regression: from .97-.98 to .51-.55.",
            measures={
                "overlap_ratio": _range(0.81, 0.83),
                "effective_overlap": _range(0.95, 0.96),
                "overlap_mass_student": _range(0.97, 0.99),
                "top1_agreement": _range(0.98, 0.99),
                "reverse_kl": _range(0.02, 0.035),
                "accuracy_gap": _range(-0.5, -0.45),
                "hand_off_25": _range(-0.35, -0.28),
                "hand_off_50": _range(-0.38, -0.32),
                "hand_off_75": _range(-0.22, -0.13),
                "hand_off_min": _range(-0.38, -0.32),
            },
        ),
        "other_pattern": Control(
            runs=3,
            outcome="Failure on two of three seeds: from .47-.53 to 0, .36 and .89.",
            measures={
                "overlap_ratio": _range(0.34, 0.41),
                "effective_overlap": _range(0.09, 0.14),
                "overlap_mass_student": _range(0.27, 0.31),
                "top1_agreement": _range(0.1, 0.16),
                "reverse_kl": _range(8, 9),
                "style_mass": _range(0, 0.003),
                "teacher_on_failed": _range(0.98, 1),
                "hand_off_25": _range(-0.48, -0.39),
                "hand_off_50": _range(-0.48, -0.35),
                "hand_off_75": _range(-0.56, -0.48),
                "hand_off_min": _range(-0.56, -0.48),
            },
        ),
    },
)
