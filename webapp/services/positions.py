"""Metrics by step and position chunk: kept packed beside the events, read as grids.

A row holds one step as columns of numbers, so that a thousand steps are read without parsing what
the job wrote. A later attempt replaces the steps that it takes anew. It knows no chart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from opdcore.contract.positions import Positions
from webapp.models import PositionRow, Run
from webapp.services import series
from webapp.services.columns import Blob

DEFAULT_ROWS = 1000
# So many rows are asked for in one query: what SQLite takes as parameters is limited.
ROWS_AT_ONCE = 500
# More would be noise of sampling, and twice the bytes.
SIGNIFICANT_DIGITS = 4

Table = npt.NDArray[np.float64]  # (steps, chunks), NaN where nothing defines it
Counts = npt.NDArray[np.uint32]


class Packed(NamedTuple):
    """A row's columns as they are stored."""

    metrics: str
    edges: Blob
    positions: Blob
    values: Blob


@dataclass(frozen=True, slots=True)
class Grid:
    """One stage: row i is of the run's step `x[i]`, column j of positions [edges[j], edges[j + 1]).

    Its own steps count from `offset`; `steps` is how many there were before they were thinned.
    """

    stage_index: int
    offset: int
    edges: tuple[int, ...]
    x: list[int]
    steps: int
    positions: Counts
    values: dict[str, Table]


def keep(run_id: int, found: Mapping[tuple[int, int], Positions]) -> None:
    """Stores steps, by stage and step; one that is there already is replaced."""
    rows = [
        PositionRow(run_id=run_id, stage_index=stage, step=step, **_packed(said)._asdict())
        for (stage, step), said in found.items()
    ]
    PositionRow.objects.bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["run", "stage_index", "step"],
        update_fields=list(Packed._fields),
    )


def supersede(run_id: int, *, stage_index: int, step: int) -> None:
    """Drops the steps after that one of that stage: a new attempt writes them anew."""
    rows = PositionRow.objects.filter(run_id=run_id)
    rows.filter(stage_index__gt=stage_index).delete()
    rows.filter(stage_index=stage_index, step__gt=step).delete()


def exist(run: Run) -> bool:
    """Whether any step was reported by position."""
    return PositionRow.objects.filter(run=run).exists()


def read(run: Run, metrics: Iterable[str], *, rows: int = DEFAULT_ROWS) -> list[Grid]:
    """A grid for each stage that has any, thinned evenly to at most `rows` steps, newest kept."""
    wanted = tuple(metrics)
    offsets = {span.index: span.offset for span in series.stages(run)}
    found: dict[int, list[int]] = defaultdict(list)
    known = PositionRow.objects.filter(run=run).order_by("stage_index", "step")
    for stage, step in known.values_list("stage_index", "step"):
        found[stage].append(step)
    return [
        _grid(run, stage, steps, wanted, offset=offsets.get(stage, 0), rows=rows)
        for stage, steps in found.items()
    ]


def ends(run: Run, stage_index: int, *, until: int) -> tuple[Positions, Positions] | None:
    """The first step of a stage and its newest up to `until`, as they were told; None without any."""
    rows = PositionRow.objects.filter(run=run, stage_index=stage_index).order_by("step")
    first, last = rows.first(), rows.filter(step__lte=until).last()
    return (_told(first), _told(last)) if first is not None and last is not None else None


def encode(grids: Sequence[Grid]) -> bytes:
    """Grids as JSON, one table a metric; what is undefined is null."""
    names = Grid.__dataclass_fields__
    document = {"grids": [{name: getattr(grid, name) for name in names} for grid in grids]}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _packed(said: Positions) -> Packed:
    values = np.array([said.values[key] for key in said.values], dtype="<f4")
    return Packed(
        ",".join(said.values),
        np.array(said.edges, dtype="<u4").tobytes(),
        np.array(said.positions, dtype="<u4").tobytes(),
        values.tobytes(),
    )


def _told(row: PositionRow) -> Positions:
    """A stored step as the contract has it; undefined means are None again."""
    values = np.frombuffer(row.values, "<f4").reshape(len(row.metrics.split(",")), -1)
    return Positions(
        edges=tuple(np.frombuffer(row.edges, "<u4").tolist()),
        positions=tuple(np.frombuffer(row.positions, "<u4").tolist()),
        values={
            key: tuple(None if np.isnan(one) else float(one) for one in line)
            for key, line in zip(row.metrics.split(","), values, strict=True)
        },
    )


def _grid(
    run: Run, stage: int, steps: list[int], metrics: Sequence[str], *, offset: int, rows: int
) -> Grid:
    every = max(1, -(-len(steps) // rows))
    kept = steps[::-every][::-1]
    packed = _rows(run, stage, kept, whole=every == 1)
    edges = np.frombuffer(max((row.edges for row in packed), key=len), "<u4")
    chunks = len(edges) - 1
    counts = [_fitted(np.frombuffer(row.positions, "<u4"), chunks, 0) for row in packed]
    return Grid(
        stage_index=stage,
        offset=offset,
        edges=tuple(edges.tolist()),
        x=[offset + step for step in kept],
        steps=len(steps),
        positions=np.stack(counts),
        values={key: _rounded(_table(packed, key, chunks)) for key in metrics},
    )


def _rows(run: Run, stage: int, steps: Sequence[int], *, whole: bool) -> list[Packed]:
    """The rows of these steps in order; `whole` where they are all that there are."""
    rows = PositionRow.objects.filter(run=run, stage_index=stage).order_by("step")
    columns = rows.values_list(*Packed._fields)
    if whole:
        return [Packed(*row) for row in columns]
    parts = range(0, len(steps), ROWS_AT_ONCE)
    some = (columns.filter(step__in=steps[first : first + ROWS_AT_ONCE]) for first in parts)
    return [Packed(*row) for part in some for row in part]


def _table(packed: Sequence[Packed], key: str, chunks: int) -> Table:
    places = {names: _place(names, key) for names in {row.metrics for row in packed}}
    table = [_values(row, places[row.metrics], chunks) for row in packed]
    return np.stack(table).astype(np.float64)


def _place(names: str, key: str) -> int | None:
    listed = names.split(",")
    return listed.index(key) if key in listed else None


def _values(row: Packed, place: int | None, chunks: int) -> npt.NDArray[np.float32]:
    """One metric of one step; all undefined where the step lacks it."""
    width = len(row.positions) // 4
    if place is None:
        return np.full(chunks, np.nan, np.float32)
    found = np.frombuffer(row.values, "<f4", count=width, offset=4 * width * place)
    return _fitted(found, chunks, np.nan)


def _fitted(found: npt.NDArray[Any], chunks: int, filler: float) -> npt.NDArray[Any]:
    """A row in the grid's width: a chunk that it lacks is undefined, or has no positions."""
    if len(found) == chunks:
        return found
    lacking = np.full(max(0, chunks - len(found)), filler, found.dtype)
    return np.append(found[:chunks], lacking)


def _rounded(table: Table) -> Table:
    """To so many significant digits, whatever the size."""
    size = np.abs(table)
    known = np.where((size > 0) & np.isfinite(size), size, 1.0)
    exponent = SIGNIFICANT_DIGITS - 1 - np.floor(np.log10(known))
    scale = 10.0 ** np.clip(exponent, -300, 300)
    rounded: Table = np.round(table * scale) / scale
    return rounded
