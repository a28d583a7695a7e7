"""Series: nothing that a job measured is averaged away, doubled or lost on the way to a chart."""

import json
import math

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opdcore.contract.events import Evaluated, Metrics, StageStarted, metrics
from tests.workers.rows import Scribe, make_running
from webapp.models import Event, MetricChunk, MetricRollup, Run
from webapp.services import columns, recording, series

VALUES = st.lists(
    st.one_of(
        st.floats(width=32, allow_nan=False),
        st.sampled_from([math.nan, math.inf, -math.inf]),
        st.none(),
    ),
    min_size=1,
    max_size=300,
)


def buckets_of(values, size):
    part = columns.points(range(1, len(values) + 1), values)
    return columns.merge(columns.singles(part), size)


def finite(values):
    return [value for value in values if value is not None and math.isfinite(value)]


@given(VALUES, st.integers(1, 80), st.integers(1, 80))
@settings(max_examples=150, deadline=None)
def test_the_extremes_of_any_roll_up_are_those_of_the_raw_values(values, first, then):
    rolled = columns.merge(buckets_of(values, first), then)
    if not finite(values):
        assert np.isnan(rolled.maximum).all()
        return
    assert np.nanmax(rolled.maximum) == np.float32(max(finite(values)))
    assert np.nanmin(rolled.minimum) == np.float32(min(finite(values)))


@given(VALUES, st.integers(1, 80))
@settings(max_examples=100, deadline=None)
def test_non_finite_values_are_counted_and_undefined_ones_are_not(values, size):
    expected = sum(value is not None and not math.isfinite(value) for value in values)
    assert buckets_of(values, size).nonfinite.sum() == expected


@given(VALUES)
@settings(max_examples=50, deadline=None)
def test_packed_columns_come_back_bit_for_bit(values):
    rolled = buckets_of(values, 7)
    back = columns.unpack(columns.pack(rolled))
    assert back.steps.tolist() == rolled.steps.tolist()
    for name in ("last", "minimum", "maximum", "nonfinite"):
        assert getattr(back, name).tobytes() == getattr(rolled, name).tobytes()


def test_the_last_value_of_a_step_stands():
    part = columns.join([columns.points([1, 2, 3], [1, 2, 3]), columns.points([2, 4], [9, 4])])
    assert part.steps.tolist() == [1, 2, 3, 4]
    assert part.values.tolist() == [1, 9, 3, 4]


def test_a_bucket_of_nothing_finite_is_null_and_counted():
    document = orjson.loads(
        series.encode(series.SeriesPage(0, {"loss": buckets_of([math.nan, math.inf], 2)}, ()))
    )
    assert document["series"]["loss"] == {
        "x": [2], "last": [None], "min": [None], "max": [None], "nonfinite": [2],
    }  # fmt: skip


def write(scribe, first, values, *, stage=0, key="loss"):
    lines = [
        scribe.parsed(metrics({key: value}), step=first + i, stage=stage)
        for i, value in enumerate(values)
    ]
    for i in range(0, len(lines), 500):
        scribe.record(*lines[i : i + 500])


def read(run, key="loss", points=1000):
    return series.read(run, [key], points=points).series[key]


@pytest.mark.django_db
def test_points_are_read_before_and_after_they_are_compacted():
    run = make_running()
    write(Scribe(run), 1, [0.1, math.nan, None, 3.0])
    fresh = read(run)
    series.compact(run.pk, through=4)
    stored = read(run)
    assert Run.objects.get(pk=run.pk).compacted_seq == 4
    for found in (fresh, stored):
        assert found.steps.tolist() == [1, 2, 3, 4]
        assert found.nonfinite.tolist() == [0, 1, 0, 0]
        assert found.last[[0, 3]].tolist() == np.float32([0.1, 3.0]).tolist()
        assert np.isnan(found.last[[1, 2]]).all()


@pytest.mark.django_db
def test_a_spike_and_a_nan_of_one_step_survive_ten_thousand():
    run = make_running(stages=[{"kind": "distill", "steps": 10_000}])
    values = np.sin(np.arange(10_000)).tolist()
    values[5_432] = 1e6
    values[7_000] = math.nan
    write(Scribe(run), 1, values)
    found = read(run, points=100)
    assert len(found) <= 100
    assert np.nanmax(found.maximum) == 1e6
    assert found.nonfinite.sum() == 1
    assert MetricChunk.objects.count() == math.ceil(Run.objects.get().compacted_seq / 4096)


@pytest.mark.django_db
def test_long_series_are_read_from_their_roll_ups(monkeypatch):
    run = make_running(stages=[{"kind": "distill", "steps": 5000}])
    values = list(np.arange(5000.0))
    write(Scribe(run), 1, values)
    series.compact(run.pk, through=5000)
    assert MetricRollup.objects.count() == 2
    MetricChunk.objects.update(values=b"", steps=b"")
    found = read(run, points=50)
    assert np.nanmax(found.maximum) == 4999
    assert found.steps[-1] == 5000


@pytest.mark.django_db
def test_appending_in_pieces_fills_chunks_of_4096():
    run = make_running(stages=[{"kind": "distill", "steps": 9000}])
    write(Scribe(run), 1, [float(i) for i in range(9000)])
    series.compact(run.pk, through=9000)
    counts = MetricChunk.objects.order_by("first_step").values_list("count", flat=True)
    assert list(counts) == [4096, 4096, 808]
    assert read(run, points=9000).last.tolist() == [float(i) for i in range(9000)]


@pytest.mark.django_db
@pytest.mark.parametrize("compacted", [False, True])
def test_a_new_attempt_supersedes_from_the_step_it_resumed_at(compacted):
    run = make_running()
    write(Scribe(run), 1, [1.0] * 12)
    if compacted:
        series.compact(run.pk, through=12)
    Run.objects.filter(pk=run.pk).update(attempt=2)
    again = Scribe(run, attempt=2)
    again.record(
        again.parsed(StageStarted(stage_kind="distill", steps=20, resumed_from_step=7)),
        *(again.parsed(metrics({"loss": 2.0}), step=step) for step in range(8, 11)),
    )
    found = read(run)
    assert found.steps.tolist() == list(range(1, 11))
    assert found.last.tolist() == [1.0] * 7 + [2.0] * 3


@pytest.mark.django_db
def test_an_attempt_without_checkpoint_starts_anew_but_keeps_what_came_before_step_1():
    run = make_running()
    scribe = Scribe(run)
    evaluated = Evaluated(
        role="student", prompts=8, samples_per_prompt=1, verifier="exact", values={"accuracy": 0.5}
    )
    scribe.record(scribe.parsed(evaluated, step=0))
    write(scribe, 1, [1.0] * 5)
    Run.objects.filter(pk=run.pk).update(attempt=2)
    again = Scribe(run, attempt=2)
    again.record(again.parsed(StageStarted(stage_kind="distill", steps=20)))
    assert len(read(run)) == 0
    assert read(run, "accuracy").last.tolist() == [0.5]


@pytest.mark.django_db
def test_later_stages_lie_after_the_steps_of_earlier_ones():
    run = make_running(
        stages=[
            {"kind": "distill", "steps": 5},
            {"kind": "evaluate"},
            {"kind": "distill", "steps": 3},
        ]
    )
    scribe = Scribe(run, steps=(5, 0, 3))
    write(scribe, 1, [1.0, 1.0])
    write(scribe, 1, [2.0], stage=2)
    page = series.read(run, ["loss"])
    assert page.series["loss"].steps.tolist() == [1, 2, 6]
    assert [(span.kind, span.offset) for span in page.stages] == [
        ("distill", 0), ("evaluate", 5), ("distill", 5),
    ]  # fmt: skip
    assert Run.objects.get(pk=run.pk).step == 6


@pytest.mark.django_db
def test_a_page_of_series_is_plain_json():
    run = make_running()
    write(Scribe(run), 1, [0.1, math.inf])
    document = json.loads(series.encode(series.read(run, ["loss", "reward"])))
    assert document == {
        "seq": 2,
        "series": {
            "loss": {
                "x": [1, 2],
                "last": [0.1, None],
                "min": [0.1, None],
                "max": [0.1, None],
                "nonfinite": [0, 1],
            },
            "reward": {"x": [], "last": [], "min": [], "max": [], "nonfinite": []},
        },
        "stages": [{"index": 0, "kind": "distill", "offset": 0, "steps": 20}],
    }


@pytest.mark.django_db
def test_the_metrics_of_a_run_are_known_before_and_after_compaction():
    run = make_running()
    write(Scribe(run), 1, [1.0])
    assert series.keys(run) == ["loss"]
    series.compact(run.pk, through=1)
    assert series.keys(run) == ["loss"]


@pytest.mark.django_db
def test_headlines_keep_the_last_value_that_was_defined():
    run = make_running()
    scribe = Scribe(run)
    scribe.record(
        scribe.parsed(
            metrics({"loss": 1.5, "token_reward": -0.25, "generated_tokens": 30.0}), step=4
        ),
        scribe.parsed(Metrics(values={"loss": None, "overlap_ratio": 0.75}), step=5),
    )
    run.refresh_from_db()
    assert (run.loss, run.reward, run.overlap_ratio, run.step) == (1.5, -0.25, 0.75, 5)
    assert (run.student_tokens, run.teacher_tokens) == (30, 30)


@pytest.mark.django_db
def test_a_line_is_recorded_once():
    run = make_running()
    scribe = Scribe(run)
    line = scribe.parsed(metrics({"loss": 1.0, "generated_tokens": 10.0}), step=1)
    assert scribe.record(line, line) == 1
    assert scribe.record(line) == 1
    assert Event.objects.count() == 1
    assert Run.objects.get(pk=run.pk).student_tokens == 10


@pytest.mark.django_db
@pytest.mark.parametrize("state", [{"attempt": 2}, {"status": "cancelled"}])
def test_a_stale_attempt_is_refused(state):
    run = make_running()
    scribe = Scribe(run)
    Run.objects.filter(pk=run.pk).update(**state)
    with pytest.raises(recording.StaleAttempt):
        scribe.record(scribe.parsed(metrics({"loss": 1.0}), step=1))
    assert Event.objects.count() == 0
