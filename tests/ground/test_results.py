"""Every published figure follows from the raw rows that stand beside it."""

import json
from pathlib import Path

import pytest

from benchmarks import main_job, records
from benchmarks.__main__ import BENCHMARKS

RESULTS = sorted(records.FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_a_results_summary_is_recomputed_from_its_rows(path):
    document = json.loads(path.read_text())
    summary = BENCHMARKS[path.stem].summarise(records.rows_of(document))
    assert document == {**summary, "parts": document["parts"]}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_a_result_says_how_it_was_measured(path):
    for part in json.loads(path.read_text())["parts"].values():
        assert part["command"].startswith("python -m benchmarks")
        assert {"commit", "measured_at", "machine", "system", "load_1min", "rows"} <= set(part)


def test_a_part_measured_again_replaces_its_own_rows_only(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    for seconds in (50.0, 40.0):
        rows = [{"kind": "cold", "seconds": seconds}]
        records.record("main-job", "setup", rows, summarise=main_job.summarise)
    records.record("main-job", "other", [{"a": 1}], summarise=main_job.summarise)
    document = json.loads(Path(tmp_path, "main-job.json").read_text())
    assert document["setup_seconds_cold"] == 40.0
    assert document["setup_seconds_repeated"] is None
    assert document["parts"]["other"]["rows"] == [{"a": 1}]
