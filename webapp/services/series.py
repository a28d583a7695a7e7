"""Metric series: compacted from events into chunks with roll-ups, superseded, read as columns.

A series is `(run, stage_index, metric)`. Its newest points are still events (those after
`Run.compacted_seq`); older ones lie in chunks of 4,096 points, each with a roll-up of 64 to 1. What
is recorded outside any stage counts as step 0 of the first one. It knows no chart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from django.db import transaction

from opdcore.contract.recipe import Recipe
from webapp.models import Event, MetricChunk, MetricRollup, Run
from webapp.services import columns
from webapp.services.columns import Blob, Buckets, Points

CHUNK_POINTS = 4096
BUCKET_POINTS = 64
TAIL_EVENTS = 1024
DEFAULT_POINTS = 1000

_NONFINITE = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
_KINDS = ("metrics", "evaluation")

Key = tuple[int, str]  # stage_index, metric


@dataclass(frozen=True)
class StageSpan:
    """A stage on the x axis of a run: `offset` is the sum of the steps of the stages before it."""

    index: int
    kind: str
    offset: int
    steps: int


@dataclass(frozen=True)
class SeriesPage:
    """Series by metric as of `seq`; the x of a bucket is its stage's offset plus its last step."""

    seq: int
    series: Mapping[str, Buckets]
    stages: tuple[StageSpan, ...]


def read(run: Run, keys: Iterable[str], *, points: int = DEFAULT_POINTS) -> SeriesPage:
    """Each metric in at most `points` buckets, exact in extremes and in counts of non-finite values."""
    wanted = tuple(dict.fromkeys(keys))
    state = Run.objects.only("last_seq", "compacted_seq").get(pk=run.pk)
    spans = stages(run)
    tail = _tail(run.pk, after=state.compacted_seq, through=state.last_seq, keys=wanted)
    long = _long(run.pk, wanted, points * BUCKET_POINTS)
    stored = _raw(run.pk, set(wanted) - long, spans) | _rolled(run.pk, long, spans)
    series: dict[str, Buckets] = {}
    for key in wanted:
        parts = _by_stage(stored.get(key, {}), tail, key, spans, rolled=key in long)
        series[key] = columns.fit(columns.concatenate(parts), points)
    return SeriesPage(state.last_seq, series, spans)


def encode(page: SeriesPage) -> bytes:
    """The page as JSON; non-finite and undefined are null, and `nonfinite` counts the former."""
    told = {
        "seq": page.seq,
        "series": {key: document(buckets) for key, buckets in page.series.items()},
        "stages": [vars(span) for span in page.stages],
    }
    return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)


def document(buckets: Buckets, *, shift: int = 0) -> dict[str, object]:
    """A series as JSON has it, its steps moved by `shift`."""
    return {
        "x": buckets.steps.astype(np.int64) + shift,
        "last": np.ascontiguousarray(buckets.last, np.float32),
        "min": np.ascontiguousarray(buckets.minimum, np.float32),
        "max": np.ascontiguousarray(buckets.maximum, np.float32),
        "nonfinite": np.ascontiguousarray(buckets.nonfinite, np.uint32),
    }


def head(run: Run, key: str, *, stage_index: int, points: int) -> list[float]:
    """The first finite points of a stage's metric, however long it is by now."""
    state = Run.objects.only("last_seq", "compacted_seq").get(pk=run.pk)
    chunks = MetricChunk.objects.filter(run=run, stage_index=stage_index, metric=key)
    first = chunks.order_by("first_step").first()
    found = [_points_of(first)] if first else []
    if first is None or first.count < points:
        tail = _tail(run.pk, after=state.compacted_seq, through=state.last_seq, keys=(key,))
        found += [tail[stage_index, key]] if (stage_index, key) in tail else []
    values = np.concatenate([one.values for one in found]) if found else np.array([])
    return [float(one) for one in values[:points] if np.isfinite(one)]


def keys(run: Run) -> list[str]:
    """Metrics that the run has so far."""
    state = Run.objects.only("last_seq", "compacted_seq").get(pk=run.pk)
    stored = MetricChunk.objects.filter(run=run).order_by().values_list("metric", flat=True)
    tail = _tail(run.pk, after=state.compacted_seq, through=state.last_seq)
    return sorted({*stored.distinct(), *(metric for _, metric in tail)})


def stages(run: Run) -> tuple[StageSpan, ...]:
    """The stages of the run's recipe on its x axis."""
    recipe = Recipe.model_validate(run.snapshot["recipe"]["document"])
    offset, spans = 0, []
    for index, (stage, steps) in enumerate(zip(recipe.stages, recipe.steps_by_stage, strict=True)):
        spans.append(StageSpan(index, stage.kind, offset, steps))
        offset += steps
    return tuple(spans)


def compact(run_id: int, *, through: int) -> None:
    """Moves the points of all events up to that seq into chunks."""
    with transaction.atomic():
        run = Run.objects.select_for_update().only("compacted_seq").get(pk=run_id)
        if through <= run.compacted_seq:
            return
        for key, new in _tail(run_id, after=run.compacted_seq, through=through).items():
            _append(run_id, key, new)
        Run.objects.filter(pk=run_id).update(compacted_seq=through)


def supersede(run_id: int, *, stage_index: int, step: int) -> None:
    """Drops the compacted points after that step of that stage: a new attempt writes them anew."""
    for model in (MetricChunk, MetricRollup):
        model.objects.filter(run_id=run_id, stage_index__gt=stage_index).delete()
        model.objects.filter(run_id=run_id, stage_index=stage_index, first_step__gt=step).delete()
    cut = MetricChunk.objects.filter(
        run_id=run_id, stage_index=stage_index, first_step__lte=step, last_step__gt=step
    )
    for chunk in list(cut):
        kept = columns.upto(_points_of(chunk), step)
        _replace(run_id, (stage_index, chunk.metric), [chunk], kept)


def _append(run_id: int, key: Key, new: Points) -> None:
    """Joins points to the last chunk, and to any that they reach back into."""
    stage_index, metric = key
    chunks = MetricChunk.objects.filter(run_id=run_id, stage_index=stage_index, metric=metric)
    touched = list(chunks.filter(last_step__gte=int(new.steps[0])).order_by("first_step"))
    last = chunks.order_by("first_step").last()
    if not touched and last is not None and last.count < CHUNK_POINTS:
        touched = [last]
    joined = columns.join([*(_points_of(chunk) for chunk in touched), new])
    _replace(run_id, key, touched, joined)


def _replace(run_id: int, key: Key, old: Sequence[MetricChunk], kept: Points) -> None:
    stage_index, metric = key
    firsts = [chunk.first_step for chunk in old]
    for model in (MetricChunk, MetricRollup):
        model.objects.filter(
            run_id=run_id, stage_index=stage_index, metric=metric, first_step__in=firsts
        ).delete()
    spans = columns.split(kept, CHUNK_POINTS)
    MetricChunk.objects.bulk_create(_chunk(run_id, key, span) for span in spans)
    MetricRollup.objects.bulk_create(_rollup(run_id, key, span) for span in spans)


def _chunk(run_id: int, key: Key, span: Points) -> MetricChunk:
    return MetricChunk(
        run_id=run_id,
        stage_index=key[0],
        metric=key[1],
        first_step=int(span.steps[0]),
        last_step=int(span.steps[-1]),
        count=len(span),
        steps=span.steps.astype("<u4").tobytes(),
        values=span.values.astype("<f4").tobytes(),
    )


def _rollup(run_id: int, key: Key, span: Points) -> MetricRollup:
    buckets = columns.merge(columns.singles(span), BUCKET_POINTS)
    return MetricRollup(
        run_id=run_id,
        stage_index=key[0],
        metric=key[1],
        first_step=int(span.steps[0]),
        last_step=int(span.steps[-1]),
        count=len(buckets),
        columns=columns.pack(buckets),
    )


def _points_of(chunk: MetricChunk) -> Points:
    return _points(chunk.steps, chunk.values)


def _points(steps: Blob, values: Blob) -> Points:
    return Points(np.frombuffer(steps, "<u4"), np.frombuffer(values, "<f4"))


def _tail(
    run_id: int, *, after: int, through: int, keys: Sequence[str] | None = None
) -> dict[Key, Points]:
    """Points that are still events, by series; all metrics where `keys` is None."""
    rows: dict[Key, tuple[list[int], list[float | None]]] = defaultdict(lambda: ([], []))
    events = Event.objects.filter(run_id=run_id, seq__gt=after, seq__lte=through, kind__in=_KINDS)
    columns_wanted = ("stage_index", "step", "payload")
    for stage, step, payload in events.order_by("seq").values_list(*columns_wanted):
        values = scalars(orjson.loads(payload))
        for metric in values if keys is None else values.keys() & set(keys):
            steps, column = rows[stage or 0, metric]
            steps.append(step or 0)
            column.append(values[metric])
    return {key: columns.points(*row) for key, row in rows.items()}


def scalars(payload: Mapping[str, Any]) -> dict[str, float | None]:
    """Values of a metrics or evaluation payload by metric; non-finite ones are themselves again."""
    hidden = payload.get("nonfinite", {})
    return {
        metric: _NONFINITE[hidden[metric]] if metric in hidden else value
        for metric, value in payload["values"].items()
    }


def _long(run_id: int, keys: Sequence[str], limit: int) -> set[str]:
    """Metrics with so many stored points that their roll-ups are read instead."""
    counts: dict[str, int] = defaultdict(int)
    chunks = MetricChunk.objects.filter(run_id=run_id, metric__in=keys).order_by()
    for metric, count in chunks.values_list("metric", "count"):
        counts[metric] += count
    return {metric for metric, count in counts.items() if count > limit}


Stored = dict[str, dict[int, list[Buckets]]]  # metric, stage_index


def _raw(run_id: int, keys: Iterable[str], spans: Sequence[StageSpan]) -> Stored:
    stored: Stored = defaultdict(lambda: defaultdict(list))
    offsets = {span.index: span.offset for span in spans}
    chunks = MetricChunk.objects.filter(run_id=run_id, metric__in=list(keys)).order_by("first_step")
    for metric, stage, steps, values in chunks.values_list(
        "metric", "stage_index", "steps", "values"
    ):
        found = columns.singles(_points(steps, values), offset=offsets.get(stage, 0))
        stored[metric][stage].append(found)
    return stored


def _rolled(run_id: int, keys: Iterable[str], spans: Sequence[StageSpan]) -> Stored:
    stored: Stored = defaultdict(lambda: defaultdict(list))
    offsets = {span.index: span.offset for span in spans}
    rollups = MetricRollup.objects.filter(run_id=run_id, metric__in=list(keys))
    rows = rollups.order_by("first_step").values_list("metric", "stage_index", "columns")
    for metric, stage, blob in rows:
        stored[metric][stage].append(columns.unpack(blob, offset=offsets.get(stage, 0)))
    return stored


def _by_stage(
    stored: Mapping[int, list[Buckets]],
    tail: Mapping[Key, Points],
    key: str,
    spans: Sequence[StageSpan],
    *,
    rolled: bool,
) -> list[Buckets]:
    """One metric's buckets in the order of the x axis."""
    offsets = {span.index: span.offset for span in spans}
    found = {stage for stage, metric in tail if metric == key} | stored.keys()
    parts: list[Buckets] = []
    for stage in sorted(found):
        parts += stored.get(stage, [])
        if (stage, key) in tail:
            newest = columns.singles(tail[stage, key], offset=offsets.get(stage, 0))
            parts.append(columns.merge(newest, BUCKET_POINTS if rolled else 1))
    return parts
