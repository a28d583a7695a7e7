"""Calibrations: the built-in one, and files that are exported and imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from opdcore import calibration
from opdcore.contract.calibration import Calibration, Thresholds
from opdcore.contract.errors import BadInput
from opdcore.contract.probe import PROBE_METRICS


def test_the_laboratorys_controls_are_of_known_metrics_and_outcomes():
    built_in = calibration.laboratory()
    assert set(built_in.controls) == {
        "identical", "descendant", "same_pipeline", "reverse", "other_pattern"
    }  # fmt: skip
    assert built_in.runs == sum(one.runs for one in built_in.controls.values())
    for control in built_in.controls.values():
        assert control.measures.keys() <= PROBE_METRICS.keys()
        for measure in control.measures.values():
            assert measure.low <= measure.value <= measure.high


def test_every_threshold_says_where_it_comes_from():
    for name, field in Thresholds.model_fields.items():
        said = field.description
        assert "aboratory" in said or "ur choice" in said or "2604" in said, name


def test_an_export_reads_back_as_it_was(tmp_path):
    mine = calibration.laboratory().model_copy(update={"name": "Mine", "family": "qwen3"})
    calibration.write(mine, tmp_path / "mine.json")
    assert calibration.read(tmp_path / "mine.json") == mine
    assert [file.name for file in tmp_path.iterdir()] == ["mine.json"]


def test_references_and_bounds_are_missing_where_a_control_was_not_measured():
    built_in = calibration.laboratory()
    assert built_in.reference("descendant", "effective_overlap") == 0.945
    assert built_in.bounds("descendant", "effective_overlap") == (0.93, 0.96)
    assert built_in.reference("descendant", "grad_norm") is None
    empty = Calibration(name="New", family="new", runs=0)
    assert empty.bounds("descendant", "effective_overlap") is None


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"surprise": 1}, "calibration.invalid", "surprise"),
        ({"version": 2}, "calibration.invalid", "version"),
        ({"runs": -1}, "calibration.invalid", "runs"),
        (
            {"controls": {"reverse": {"runs": 1, "outcome": "o", "measures": {
                "luck": {"value": 1, "prompts": 1}}}}},
            "calibration.unknown_metric", "controls.reverse.measures.luck",
        ),
        (
            {"thresholds": {"compatible_overlap": 0.3}},
            "calibration.thresholds", "thresholds.incompatible_overlap",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_calibration_is_refused_by_its_field(tmp_path, change, code, field):
    content = calibration.laboratory().model_dump(mode="json") | change
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(BadInput) as refused:
        calibration.read(tmp_path / "bad.json")
    assert (refused.value.info.code, refused.value.info.field) == (code, field)
    assert refused.value.info.remedy


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"calibration\.unreadable"):
        calibration.read(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(BadInput, match=r"calibration\.invalid"):
        calibration.read(tmp_path / "text.json")


def test_a_folder_that_is_not_there_cannot_be_written_to(tmp_path):
    with pytest.raises(BadInput, match=r"calibration\.unwritable"):
        calibration.write(calibration.laboratory(), tmp_path / "gone" / "mine.json")


def test_judging_loads_no_torch():
    code = (
        "import opdcore.calibration, opdcore.verdicts, sys; "
        "raise SystemExit('torch' in sys.modules)"
    )
    root = Path(calibration.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
