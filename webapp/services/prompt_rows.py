"""Rows of an uploaded file become prompts, one at a time, or errors that name line, column and value.

It reads JSON lines, CSV and Parquet as streams, so that the size of a file costs no memory, and maps
the column names that public sets use (question, problem, solution, ...). It knows no database.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from opdcore.contract.prompt import Prompt

LONGEST_LINE_BYTES = 8 << 20
SHOWN_VALUE = 80
PARQUET_BATCH = 2_000

# Names that public data sets give to our columns; the first one present wins.
ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "problem", "instruction", "query", "input"),
    "messages": ("messages", "conversation", "conversations"),
    "answer": ("answer", "final_answer", "expected_answer", "ground_truth", "target", "solution"),
    "tests": ("tests", "test_list", "unit_tests"),
    "privileged": ("privileged",),
    "response": ("response", "demonstration", "completion", "output"),
    "tags": ("tags", "tag", "category", "subject", "topic"),
}


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row cannot be a prompt; `line` counts from 1, as editors do (rows, for Parquet)."""

    line: int
    column: str | None
    value: str | None
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Row:
    """A raw row with its place, and how much of the source has been read."""

    line: int
    fields: dict[str, Any] | RowError
    done_bytes: int


@dataclass
class Columns:
    """Which source column became which of ours, and which were left out."""

    used: dict[str, str] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)


def read(path: Path, file_format: str) -> Iterator[Row]:
    """The file's rows in order; a row that cannot be read is a RowError in its place."""
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        "jsonl": _jsonl,
        "csv": _csv,
        "parquet": _parquet,
    }
    return readers[file_format](path)


def prompt_of(row: Row, columns: Columns) -> Prompt | list[RowError]:
    """The prompt of a row, or what is wrong with it."""
    if isinstance(row.fields, RowError):
        return [row.fields]
    ours, sources = _mapped(row.fields, columns)
    try:
        return Prompt.model_validate(ours)
    except ValidationError as error:
        return [_row_error(row.line, one, sources) for one in error.errors()]


def format_of(name: str) -> str | None:
    """The format that a file's name promises; None for one that is not read."""
    suffix = name.lower().rpartition(".")[2]
    return {"jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl", "csv": "csv"}.get(
        suffix, "parquet" if suffix in ("parquet", "pq") else None
    )


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line, text, done in _lines(file):
            if isinstance(text, RowError):
                yield Row(line, text, done)
            elif text.strip():
                yield Row(line, _parsed(line, text), done)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, str | RowError, int]]:
    """(line number, text or error, bytes read so far)."""
    number = 0
    while raw := file.readline(LONGEST_LINE_BYTES + 1):
        number += 1
        if len(raw) > LONGEST_LINE_BYTES:
            yield number, _too_long(number), file.tell()
            _skip_line(file)
            continue
        try:
            text: str | RowError = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            text = _not_utf8(number, raw, error)
        yield number, text, file.tell()


def _skip_line(file: IO[bytes]) -> None:
    while (rest := file.readline(LONGEST_LINE_BYTES)) and not rest.endswith(b"\n"):
        pass


def _parsed(line: int, text: str) -> dict[str, Any] | RowError:
    try:
        value = _loads(text)
    except json.JSONDecodeError as error:
        return RowError(
            line,
            None,
            _short(text),
            f"This is no JSON: {error.msg} at column {error.colno}.",
            "Write one JSON object a line; a whole-file array is not JSON lines.",
        )
    except RecursionError:
        return RowError(
            line, None, _short(text), "The JSON is nested too deeply.", "Flatten the row."
        )
    except UnicodeEncodeError:
        fault = "It holds half a character, such as \\ud83d without the half that follows it."
        return RowError(line, None, _short(text), fault, "Write the whole character, or none.")
    except ValueError:
        fault = "It holds a number of more than 4,300 digits."
        return RowError(line, None, _short(text), fault, "Write such a number as text.")
    if not isinstance(value, dict):
        return RowError(
            line,
            None,
            _short(text),
            f"This is a JSON {_json_name(value)}, not an object.",
            'Write an object, such as {"prompt": "2 + 2 = ?", "answer": "4"}.',
        )
    return value


def _loads(text: str) -> Any:  # noqa: ANN401 (a JSON value)
    """The JSON value; UnicodeEncodeError where a string of it cannot be written as UTF-8."""
    value = json.loads(text)
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _csv(path: Path) -> Iterator[Row]:
    place = _Place()
    with path.open("rb") as file:
        reader = csv.reader(_decoded(file, place), strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            first = place.line + 1
            for cells in reader:
                if place.error is not None:
                    yield Row(place.error.line, place.error, place.done_bytes)
                    return
                if cells:
                    yield Row(first, _record(first, header, cells), place.done_bytes)
                first = place.line + 1
        except csv.Error as error:
            yield Row(place.line, _broken_csv(place.line, str(error)), place.done_bytes)
        else:
            if place.error is not None:
                yield Row(place.error.line, place.error, place.done_bytes)


@dataclass
class _Place:
    """Where the CSV reader is; it pulls lines, so it cannot say by itself."""

    line: int = 0
    done_bytes: int = 0
    error: RowError | None = None


def _decoded(file: IO[bytes], place: _Place) -> Iterator[str]:
    """Lines for the CSV reader; it ends at a line that is not UTF-8, and `place.error` says so."""
    for line, text, done in _lines(file):
        place.line, place.done_bytes = line, done
        if isinstance(text, RowError):
            place.error = text
            return
        yield text


def _record(line: int, header: list[str], cells: list[str]) -> dict[str, Any] | RowError:
    if len(cells) != len(header):
        return RowError(
            line,
            None,
            _short(",".join(cells)),
            f"This row has {len(cells)} cells and the header has {len(header)} columns.",
            'Put cells that hold a comma or a line break into double quotes: "a, b".',
        )
    return {name: _cell(name, text) for name, text in zip(header, cells, strict=True) if text}


def _cell(name: str, text: str) -> Any:  # noqa: ANN401 (whatever the JSON in a cell holds)
    """Lists and chats stand in a cell as JSON; tags also as words between commas."""
    ours = next((one for one, names in ALIASES.items() if name.lower() in names), None)
    if ours == "messages" or (ours in ("tests", "tags") and text.lstrip().startswith("[")):
        try:
            return _loads(text)
        except (ValueError, RecursionError):
            return text
    if ours == "tags":
        return [tag.strip() for tag in text.replace(";", ",").split(",") if tag.strip()]
    return text


def _parquet(path: Path) -> Iterator[Row]:
    size = path.stat().st_size
    try:
        file = pq.ParquetFile(path)
        total = file.metadata.num_rows
        line = 0
        for batch in file.iter_batches(batch_size=PARQUET_BATCH):
            for fields in batch.to_pylist():
                line += 1
                yield Row(line, fields, size * line // total)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        message = str(error).splitlines()[0]
        fault = f"This is no readable Parquet file: {message}."
        remedy = "Write it again with `pandas.DataFrame.to_parquet`, and upload the whole file."
        yield Row(1, RowError(1, None, None, fault, remedy), size)


def _mapped(fields: dict[str, Any], columns: Columns) -> tuple[dict[str, Any], dict[str, str]]:
    """Our fields, and for each the name of its column in the source."""
    by_name = {str(name).strip().lower(): name for name in fields}
    sources = {
        ours: by_name[found]
        for ours, names in ALIASES.items()
        if (found := next((name for name in names if name in by_name), None)) is not None
    }
    columns.used.update(sources)
    columns.left_out.update(str(name) for name in fields if name not in sources.values())
    present = {ours: fields[name] for ours, name in sources.items() if fields[name] is not None}
    return {ours: _coerced(ours, value) for ours, value in present.items()}, sources


def _coerced(ours: str, value: Any) -> Any:  # noqa: ANN401 (a JSON value in, a JSON value out)
    """Numbers as answers are common and unambiguous; everything else stays as it is."""
    if ours == "answer" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if ours in ("tests", "tags") and isinstance(value, str):
        return [value]
    if ours == "messages" and isinstance(value, list):
        return [_message(one) for one in value]
    return value


def _message(value: Any) -> Any:  # noqa: ANN401 (as above)
    """ShareGPT's from and value are role and content."""
    if isinstance(value, dict) and set(value) == {"from", "value"}:
        roles = {"human": "user", "gpt": "assistant"}
        return {"role": roles.get(value["from"], value["from"]), "content": value["value"]}
    return value


def _row_error(line: int, error: ErrorDetails, sources: dict[str, str]) -> RowError:
    place = [str(part) for part in error["loc"]]
    column = ".".join([sources.get(place[0], place[0]), *place[1:]]) if place else None
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        column, message, remedy = _of_whole_row(message, sources)
        return RowError(line, column, None, message, remedy)
    return RowError(
        line, column, _short(error["input"]), f"{message}.", "Mend the value in this column."
    )


def _of_whole_row(message: str, sources: dict[str, str]) -> tuple[str | None, str, str]:
    if message == "prompt is empty":
        return sources["prompt"], "The prompt is empty.", "Write a prompt, or delete the row."
    if message == "messages is empty":
        return sources["messages"], "The chat has no message.", "Write one, or delete the row."
    if not {"prompt", "messages"} & sources.keys():
        names = ", ".join(ALIASES["prompt"])
        return None, "The row has no prompt.", f"Name its column one of: {names}, or messages."
    if {"prompt", "messages"} <= sources.keys():
        return None, "The row has both a prompt and messages.", "Keep one of the two columns."
    return sources.get("prompt"), "The prompt is missing.", "Write a prompt, or delete the row."


def _not_utf8(line: int, raw: bytes, error: UnicodeDecodeError) -> RowError:
    return RowError(
        line,
        None,
        _short(raw.decode("utf-8", "replace").strip()),
        f"Byte {error.start + 1} of this line (0x{raw[error.start]:02x}) is not UTF-8.",
        "Save the file as UTF-8: `iconv -f WINDOWS-1252 -t UTF-8 old > new`.",
    )


def _too_long(line: int) -> RowError:
    limit = LONGEST_LINE_BYTES >> 20
    fault = f"This line is longer than {limit} MiB."
    return RowError(line, None, None, fault, "Write one prompt a line, with line breaks as \\n.")


def _broken_csv(line: int, reason: str) -> RowError:
    fault = f"This is no sound CSV: {reason}."
    return RowError(line, None, None, fault, "Check the quotation marks up to this line.")


def _json_name(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    # PostgreSQL keeps no NUL, of which text in UTF-16 is full.
    text = " ".join(text.replace("\0", "\N{SYMBOL FOR NULL}").split())
    return text if len(text) <= SHOWN_VALUE else text[: SHOWN_VALUE - 1] + "…"
