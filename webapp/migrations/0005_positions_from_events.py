"""Packs what runs reported by position before such rows were kept: the events hold all of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

Columns = dict[str, Any]

KINDS = ("positions", "stage_started")
ROWS_AT_ONCE = 500


def pack(apps: Apps, _schema_editor: BaseDatabaseSchemaEditor) -> None:
    event_model = apps.get_model("webapp", "Event")
    row_model = apps.get_model("webapp", "PositionRow")
    events = event_model.objects.filter(kind="positions").order_by()
    for run_id in events.values_list("run_id", flat=True).distinct():
        found = newest(event_model.objects.filter(run_id=run_id, kind__in=KINDS).order_by("seq"))
        rows = (
            row_model(run_id=run_id, stage_index=stage, step=step, **columns)
            for (stage, step), columns in found.items()
        )
        row_model.objects.bulk_create(rows, batch_size=ROWS_AT_ONCE, ignore_conflicts=True)


def newest(events: Any) -> dict[tuple[int, int], Columns]:  # noqa: ANN401 (historical model)
    """Packed columns by stage and step, without the steps that a later attempt took anew."""
    found: dict[tuple[int, int], Columns] = {}
    columns = ("kind", "attempt", "stage_index", "step", "payload")
    for kind, attempt, stage, step, payload in events.values_list(*columns).iterator():
        said = json.loads(payload)
        if kind == "positions":
            found[stage or 0, step or 0] = packed(said)
        elif attempt > 1:
            cut = (stage or 0, said.get("resumed_from_step") or 0)
            found = {place: row for place, row in found.items() if place <= cut}
    return found


def packed(said: dict[str, Any]) -> Columns:
    values = np.array([said["values"][key] for key in said["values"]], dtype="<f4")
    return {
        "metrics": ",".join(said["values"]),
        "edges": np.array(said["edges"], dtype="<u4").tobytes(),
        "positions": np.array(said["positions"], dtype="<u4").tobytes(),
        "values": values.tobytes(),
    }


class Migration(migrations.Migration):
    dependencies = [("webapp", "0004_diagnoses_and_positions")]

    operations = [migrations.RunPython(pack, migrations.RunPython.noop)]
