"""What every document of the contract is: frozen, and strict about fields it does not know."""

from __future__ import annotations

from copy import copy
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Level = Literal["basic", "advanced", "experimental"]


class Document(BaseModel):
    """A frozen pydantic model that refuses unknown fields and non-finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def knob(  # noqa: PLR0913 - one keyword for each thing that a knob declares
    default: Any = ...,  # noqa: ANN401 - whatever pydantic takes as a default
    *,
    help: str,
    group: str,
    unit: str | None = None,
    level: Level = "basic",
    experimental: tuple[str, ...] = (),
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
) -> Any:  # noqa: ANN401 - as pydantic's Field
    """Declares a knob once: default, bounds, unit, help, and where a form shows it.

    Level `experimental` keeps a knob, and `experimental` some of its choices, to the laboratory.
    """
    extra: dict[str, Any] = {"unit": unit, "group": group, "level": level}
    if experimental:
        extra["experimental"] = list(experimental)
    return Field(
        default,
        description=help,
        gt=gt,
        ge=ge,
        lt=lt,
        le=le,
        json_schema_extra=extra,
    )


def experimental_choices(document: type[Document], name: str) -> tuple[str, ...]:
    """Choices of a knob that only the laboratory offers."""
    extra = document.model_fields[name].json_schema_extra
    return tuple(extra.get("experimental", ())) if isinstance(extra, dict) else ()  # type: ignore[arg-type]


def is_experimental(document: type[Document], name: str) -> bool:
    """Whether only the laboratory offers the knob at all."""
    extra = document.model_fields[name].json_schema_extra
    return isinstance(extra, dict) and extra.get("level") == "experimental"


def experimental_uses(document: Document) -> tuple[str, ...]:
    """Names of the knobs by which a document asks for what only the laboratory offers."""
    kind = type(document)
    return tuple(
        name
        for name, field in kind.model_fields.items()
        if getattr(document, name) in experimental_choices(kind, name)
        or (is_experimental(kind, name) and getattr(document, name) != field.default)
    )


def again(owner: type[Document], name: str, default: Any) -> Any:  # noqa: ANN401 - as knob
    """A knob that is declared elsewhere, with another default."""
    field = copy(owner.model_fields[name])
    field.default = default
    return field
