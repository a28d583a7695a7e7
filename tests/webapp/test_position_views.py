"""Metrics by position: the grid that the heat map and the curves are drawn from."""

import json

import pytest

from opdcore.contract.events import StageStarted
from opdcore.contract.metrics import POSITION_METRICS
from opdcore.contract.positions import Positions
from tests.workers.rows import Scribe, make_running
from webapp.models import Run
from webapp.services import positions


def chunked(*values):
    edges = tuple(range(0, 8 * len(values) + 1, 8))
    counts = tuple(range(len(values), 0, -1))
    columns = dict.fromkeys(POSITION_METRICS, tuple(values))
    return Positions(edges=edges, positions=counts, values=columns)


@pytest.fixture
def run(project):
    run = make_running(project=project)
    scribe = Scribe(run)
    for step in range(1, 8):
        scribe.record(scribe.parsed(chunked(step / 10, None), step=step))
    return run


def test_a_grid_has_a_row_a_step_and_what_is_undefined_is_null(browse, viewer, run):
    address = f"/runs/{run.public_id}/positions.json?keys=overlap_ratio"
    (grid,) = browse(viewer).get(address).json()["grids"]
    assert grid["edges"] == [0, 8, 16]
    assert grid["x"] == [1, 2, 3, 4, 5, 6, 7]
    assert grid["positions"] == [[2, 1]] * 7
    assert grid["values"] == {"overlap_ratio": [[step / 10, None] for step in range(1, 8)]}


def test_what_a_later_attempt_rewrote_is_gone(run):
    Run.objects.filter(pk=run.pk).update(attempt=2)
    again = Scribe(run, attempt=2)
    again.record(
        again.parsed(StageStarted(stage_kind="distill", steps=20, resumed_from_step=1)),
        again.parsed(chunked(0.9, 0.8), step=2),
    )
    (grid,) = positions.read(run, ["overlap_ratio"])
    assert grid.x == [1, 2]
    assert grid.values["overlap_ratio"][1].tolist() == [0.9, 0.8]


def test_a_long_run_is_thinned_by_step_and_keeps_the_newest(run):
    (grid,) = positions.read(run, ["overlap_ratio"], rows=3)
    assert grid.x == [1, 4, 7]
    assert grid.steps == 7
    assert grid.values["overlap_ratio"][:, 0].tolist() == [0.1, 0.4, 0.7]


def test_values_keep_four_digits_whatever_their_size(project):
    run = make_running(project=project)
    scribe = Scribe(run)
    scribe.record(scribe.parsed(chunked(-0.000123456, 12345.678, 0.0), step=1))
    (grid,) = positions.read(run, ["token_reward"])
    assert grid.values["token_reward"].tolist() == [[-0.0001235, 12350.0, 0.0]]


def test_a_chunk_that_a_step_lacks_is_undefined(project):
    run = make_running(project=project)
    scribe = Scribe(run)
    scribe.record(scribe.parsed(chunked(0.5), step=1), scribe.parsed(chunked(0.25, 0.75), step=2))
    body = positions.encode(positions.read(run, ["overlap_ratio"]))
    (grid,) = json.loads(body)["grids"]
    assert grid["values"]["overlap_ratio"] == [[0.5, None], [0.25, 0.75]]
    assert grid["positions"] == [[1, 0], [2, 1]]
