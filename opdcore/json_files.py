"""JSON files of a model folder, read with the errors that a person can act on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opdcore.contract.errors import BadInput


def read_object(file: Path, code: str) -> dict[str, Any]:
    """Read a JSON object; raise BadInput with `code`, naming file and line, if it is not one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadInput(
            code,
            f"{file} is not readable JSON: {error}.",
            remedy="Copy the file again from where the model was saved.",
            field=file.name,
        ) from error
    if not isinstance(content, dict):
        raise BadInput(
            code,
            f"{file} holds {type(content).__name__}, not an object.",
            remedy="Copy the file again from where the model was saved.",
            field=file.name,
        )
    return content


def read_object_if_there(file: Path, code: str) -> dict[str, Any]:
    """Read a JSON object as `read_object` does; a file that is not there reads as an empty one."""
    return read_object(file, code) if file.exists() else {}
