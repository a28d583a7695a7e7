"""Reading prompt sets: JSON lines with one `Prompt` each, errors by line. It loads no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from opdcore.contract.errors import BadInput
from opdcore.contract.job import PromptFile
from opdcore.contract.prompt import Prompt


def read(file: PromptFile, *, field: str) -> tuple[Prompt, ...]:
    """All prompts of a set; raises BadInput that names the line where one cannot be read."""
    path = Path(file.path)
    if not path.is_file():
        raise BadInput(
            "prompt_set.missing", f"{path} is not a file.", remedy="Check the path.", field=field
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(
            "prompt_set.unreadable",
            f"{path} cannot be read: {error.strerror}.",
            remedy="Let the run's account read it.",
            field=field,
        ) from error
    if file.sha256 is not None and hashlib.sha256(content).hexdigest() != file.sha256:
        raise BadInput(
            "prompt_set.changed",
            f"{path} is not the file that the job names: its hash differs.",
            remedy="Import it as a new prompt set.",
            field=field,
        )
    prompts = tuple(_rows(content, field))
    if not prompts:
        raise BadInput(
            "prompt_set.empty", f"{path} has no prompt.", remedy="Give at least one.", field=field
        )
    return prompts


def _rows(content: bytes, field: str) -> Iterator[Prompt]:
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            yield parse(line, field=f"{field}, line {number}")


def parse(line: bytes, *, field: str) -> Prompt:
    """The prompt of one JSON line; raises BadInput that names what is wrong with it."""
    try:
        return Prompt.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        column = ".".join(str(part) for part in first["loc"])
        raise BadInput(
            "prompt_set.row",
            f"{column + ': ' if column else ''}{first['msg']}, found {str(first['input'])[:80]!r}.",
            remedy="Correct the line: a JSON object with prompt or messages, and answer if it is "
            "to be graded.",
            field=field,
        ) from error
