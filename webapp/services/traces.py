"""Traced rollouts, read from the published Parquet files in the shapes that the token view takes.

Four of them: the run's trace files, a file's rollouts in brief, one rollout with the values of all its
tokens, and the top tokens at a window of its positions. It reads what is stored and never a worker's
folder; what is too long is cut, and the answer says so. Files written before a column was kept lack it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from django.core.files.storage import storages
from django.db.models import QuerySet

from webapp.models import Artifact, Event, Run

MOST_ROLLOUTS = 256
MOST_TOKENS = 60_000
MOST_PROMPT_CHARACTERS = 20_000
EXCERPT_CHARACTERS = 90
# An excerpt that would be shorter runs on to the prompt's end.
LEAST_CHARACTERS = 16
# Positions whose top tokens are sent together.
WINDOW = 256

TOP_IDS = ("student_top_ids", "teacher_top_ids")
TOP_LOGPROBS = (
    "student_top_logprobs",
    "student_top_teacher_logprobs",
    "teacher_top_logprobs",
    "teacher_top_student_logprobs",
)
RANKS = ("student_rank", "teacher_rank")
_BRIEF = ("prompt_index", "written_step", "prompt", "stopped", "correct", "tokens")
_MEANS = ("token_reward", "reverse_kl")


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A published trace with the step it is of, and the prompt of each row where that was told."""

    key: str
    stage_index: int
    step: int
    prompts: list[int] | None


def published(run: Run) -> QuerySet[Artifact]:
    """The run's trace files that are still kept."""
    return run.artifacts.filter(kind="trace", dropped=False).exclude(storage_key="")


def files(run: Run) -> list[TraceFile]:
    """The run's traces in the order of their steps."""
    told = _told(run)
    found = [
        _named(key, told.get(key)) for key in set(published(run).values_list("key", flat=True))
    ]
    return sorted(found, key=lambda file: (file.stage_index, file.step))


def encode_files(run: Run) -> bytes:
    """The trace files as JSON."""
    return orjson.dumps({"files": files(run)})


def encode_brief(artifact: Artifact) -> bytes:
    """The rollouts of a file as JSON, without their tokens; at most so many that a page stays light."""
    with _opened(artifact) as file:
        names = [*_present(file, _BRIEF), *_present(file, _MEANS)]
        rows = _first_rows(file, names)
        total = file.metadata.num_rows
    excerpts = _excerpts([row["prompt"] for row in rows])
    brief = [_brief(row, excerpt) for row, excerpt in zip(rows, excerpts, strict=True)]
    return orjson.dumps({"rollouts": brief, "total": total})


def encode_rollout(artifact: Artifact, index: int) -> bytes | None:
    """One rollout as JSON, with one number a token in each column; None where there is no such row."""
    with _opened(artifact) as file:
        columns = [name for name in _numbers(file) if name not in TOP_LOGPROBS]
        wanted = ["prompt", "tokens", "ids", *_present(file, ("top_width",)), *columns]
        row = _row(file, index, wanted)
    if row is None:
        return None
    cut = slice(MOST_TOKENS)
    return orjson.dumps(
        {
            "prompt": row["prompt"][:MOST_PROMPT_CHARACTERS],
            "tokens": row["tokens"][cut],
            "ids": row["ids"][cut],
            "tokens_total": len(row["tokens"]),
            "columns": {name: row[name][cut] for name in columns},
            "top_width": row.get("top_width"),
            "window": WINDOW,
        }
    )


def encode_top(artifact: Artifact, index: int, start: int) -> bytes | None:
    """Both sides' top tokens at a window of positions as JSON; None where none were kept."""
    names = ("top_width", "top_text_ids", "top_texts", *TOP_IDS, *TOP_LOGPROBS, *RANKS)
    with _opened(artifact) as file:
        if len(_present(file, names)) < len(names):
            return None
        row = _row(file, index, list(names))
    if row is None:
        return None
    width, end = row["top_width"], start + WINDOW
    tables = {name: row[name][start * width : end * width] for name in (*TOP_IDS, *TOP_LOGPROBS)}
    known = dict(zip(row["top_text_ids"], row["top_texts"], strict=True))
    seen = {token for name in TOP_IDS for token in tables[name]}
    answer = tables | {name: row[name][start:end] for name in RANKS}
    answer |= {"start": start, "width": width, "texts": {str(i): known[i] for i in sorted(seen)}}
    return orjson.dumps({"top": answer})


def _told(run: Run) -> dict[str, list[int]]:
    """What the events say of each file's prompts."""
    payloads = Event.objects.filter(run=run, kind="trace").values_list("payload", flat=True)
    told = [orjson.loads(payload) for payload in payloads.order_by("seq")]
    return {one["key"]: one["prompts"] for one in told if one.get("prompts")}


def _named(key: str, prompts: list[int] | None) -> TraceFile:
    """Reads `traces/stage-00-step-0000010.parquet`."""
    words = key.rsplit("/", 1)[-1].removesuffix(".parquet").split("-")
    return TraceFile(key, stage_index=int(words[1]), step=int(words[3]), prompts=prompts)


@contextmanager
def _opened(artifact: Artifact) -> Iterator[pq.ParquetFile]:
    with storages["artifacts"].open(artifact.storage_key) as stored:
        yield pq.ParquetFile(stored)


def _present(file: pq.ParquetFile, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in file.schema_arrow.names]


def _numbers(file: pq.ParquetFile) -> list[str]:
    """The columns that hold one measured number a token, and the ranks."""
    return [
        field.name
        for field in file.schema_arrow
        if pa.types.is_list(field.type)
        and (pa.types.is_floating(field.type.value_type) or field.name in RANKS)
    ]


def _first_rows(file: pq.ParquetFile, names: list[str]) -> list[dict[str, Any]]:
    """The first rows with the lengths and means of their lists in place of these."""
    rows: list[dict[str, Any]] = []
    for batch in file.iter_batches(batch_size=16, columns=names):
        rows.extend(_shortened(batch, names))
        if len(rows) >= MOST_ROLLOUTS:
            break
    return rows[:MOST_ROLLOUTS]


def _shortened(batch: pa.RecordBatch, names: list[str]) -> list[dict[str, Any]]:
    columns = {name: batch.column(name) for name in names}
    columns["tokens"] = pc.list_value_length(columns["tokens"])
    for name in set(_MEANS) & set(names):
        columns[name] = pa.array([pc.mean(values.values).as_py() for values in columns[name]])
    return list(pa.table(columns).to_pylist())


def _brief(row: dict[str, Any], excerpt: str) -> dict[str, Any]:
    return {
        "prompt_index": row.get("prompt_index"),
        "written_step": row.get("written_step"),
        "excerpt": excerpt,
        "correct": row["correct"],
        "truncated": not row["stopped"],
        "length": row["tokens"],
        "means": {name: row.get(name) for name in _MEANS},
    }


def _excerpts(prompts: list[str]) -> list[str]:
    """Some words of each prompt, between where prompts begin and cease to differ.

    What a template says around them is left out.
    """
    start, end = _shared(prompts), _shared([prompt[::-1] for prompt in prompts])
    inner = [prompt[start : len(prompt) - end] for prompt in prompts]
    if max(map(len, inner)) < LEAST_CHARACTERS:
        inner = [prompt[start:] for prompt in prompts]
    return [" ".join(text.split())[:EXCERPT_CHARACTERS] for text in inner]


def _shared(texts: list[str]) -> int:
    """How many characters all texts begin with alike, to the last white space or mark among them."""
    low, high = min(texts), max(texts)
    if low == high:
        return 0
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False)))
    return max((at + 1 for at in range(same) if low[at] in " \n<>"), default=0)


def _row(file: pq.ParquetFile, index: int, names: list[str]) -> dict[str, Any] | None:
    """One row, of which only its own group is read."""
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if first <= index < first + rows:
            table = file.read_row_group(group, columns=names)
            return dict(table.slice(index - first, 1).to_pylist()[0])
        first += rows
    return None
