"""Leases know their role, and runs ask for kinds and numbers of devices instead of naming them."""

from __future__ import annotations

from typing import Any

from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def ask_by_kind(apps: Apps, _schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Named devices become kinds and numbers; a role that named those of `train` shares them."""
    run_model = apps.get_model("webapp", "Run")
    for run in run_model.objects.exclude(resources={}).only("pk", "resources").iterator():
        asked = {role: one for role, one in run.resources.items() if isinstance(one, dict)}
        trained_on = asked.get("train", {}).get("devices", ())
        run.resources = {
            role: _need(one)
            for role, one in asked.items()
            if role == "train" or not set(one.get("devices", ())) <= set(trained_on)
        }
        run.save(update_fields=["resources"])


def _need(one: dict[str, Any]) -> dict[str, Any]:
    names = one.get("devices", ())
    kinds = {name.partition(":")[0] for name in names}
    return {
        "kind": kinds.pop() if len(kinds) == 1 else None,
        "count": max(1, len(names)),
        "memory_bytes": None,
        "threads": one.get("threads"),
    }


class Migration(migrations.Migration):
    dependencies = [
        ("webapp", "0010_teaching"),
    ]

    operations = [
        migrations.AddField(
            model_name="lease",
            name="role",
            field=models.CharField(
                choices=[("train", "Train"), ("sample", "Sample"), ("teacher", "Teacher")],
                default="train",
                max_length=8,
            ),
        ),
        migrations.AddConstraint(
            model_name="lease",
            constraint=models.CheckConstraint(
                condition=models.Q(("role__in", ["train", "sample", "teacher"])), name="lease_role"
            ),
        ),
        migrations.RunPython(ask_by_kind, migrations.RunPython.noop),
    ]
