"""Traced rollouts, read from the published Parquet file in the shape that the token view takes.

It reads what is stored and never a worker's folder; a long file is cut, and the answer says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from django.core.files.storage import storages
from django.db.models import QuerySet

from webapp.models import Artifact, Run

MOST_ROLLOUTS = 64
MOST_TOKENS = 60_000
MOST_PROMPT_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A published trace with the step it is of."""

    key: str
    stage_index: int
    step: int


def published(run: Run) -> QuerySet[Artifact]:
    """The run's trace files that are still kept."""
    return run.artifacts.filter(kind="trace", dropped=False).exclude(storage_key="")


def files(run: Run) -> list[TraceFile]:
    """The run's traces in the order of their steps."""
    found = [_named(key) for key in published(run).values_list("key", flat=True)]
    return sorted(found, key=lambda file: (file.stage_index, file.step))


def encode(artifact: Artifact) -> bytes:
    """The rollouts of a trace as JSON; at most so many that a page stays light."""
    rollouts: list[dict[str, Any]] = []
    tokens = 0
    with storages["artifacts"].open(artifact.storage_key) as stored:
        table = pq.ParquetFile(stored)
        columns = [field.name for field in table.schema_arrow if _is_value(field)]
        for batch in table.iter_batches(batch_size=1):
            row = batch.to_pylist()[0]
            tokens += len(row["tokens"])
            if len(rollouts) == MOST_ROLLOUTS or (rollouts and tokens > MOST_TOKENS):
                break
            rollouts.append(_rollout(row, columns))
        total = table.metadata.num_rows
    return orjson.dumps({"rollouts": rollouts, "total": total})


def _rollout(row: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    return {
        "prompt": row["prompt"][:MOST_PROMPT_CHARACTERS],
        "tokens": row["tokens"],
        "columns": {name: row[name] for name in columns},
        "correct": row["correct"],
        "truncated": not row["stopped"],
    }


def _is_value(field: pa.Field) -> bool:
    """Whether the column holds one number a token."""
    return bool(pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type))


def _named(key: str) -> TraceFile:
    """Reads `traces/stage-00-step-0000010.parquet`."""
    words = key.rsplit("/", 1)[-1].removesuffix(".parquet").split("-")
    return TraceFile(key, stage_index=int(words[1]), step=int(words[3]))
