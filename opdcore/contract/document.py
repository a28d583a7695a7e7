"""What every document of the contract is: frozen, and strict about fields it does not know."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Level = Literal["basic", "advanced"]


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
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
) -> Any:  # noqa: ANN401 - as pydantic's Field
    """Declares a knob once: default, bounds, unit, help, and where a form shows it."""
    return Field(
        default,
        description=help,
        gt=gt,
        ge=ge,
        lt=lt,
        le=le,
        json_schema_extra={"unit": unit, "group": group, "level": level},
    )
