"""Documents of the contract read from files: JSON or YAML, with errors that name the field or the line.

It knows no document in particular and loads no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from opdcore.contract.document import Document
from opdcore.contract.errors import BadInput

D = TypeVar("D", bound=Document)


def read(kind: type[D], path: Path) -> D:
    """Reads a JSON or YAML document; raises BadInput that names the field, or the line."""
    # YAML reads most JSON, but not its surrogate pairs or tabs.
    parse = json.loads if path.suffix == ".json" else yaml.safe_load
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadInput(
            "document.unreadable",
            f"{path} cannot be read: {error}.",
            remedy="Give a JSON or YAML file in UTF-8.",
        ) from error
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _invalid(error, path) from error


def _invalid(error: ValidationError, path: Path) -> BadInput:
    rows = error.errors(include_url=False, include_context=False)
    where = [".".join(str(part) for part in row["loc"]) for row in rows]
    told = "; ".join(
        f"{place or path}: {row['msg']}, found {str(row['input'])[:80]!r}"
        for place, row in zip(where, rows, strict=True)
    )
    return BadInput(
        "document.invalid",
        f"{told}.",
        remedy="`python -m opdcore schema recipe` and `schema job` list every field and bound.",
        field=where[0] or str(path),
    )
