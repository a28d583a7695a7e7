"""How replies name another object, and the shape of an error reply."""

from __future__ import annotations

from ninja import Schema
from pydantic import Field

from opdcore.contract.errors import ErrorInfo


class Ref(Schema):
    """An object by its id and name."""

    public_id: str
    name: str


class VersionRef(Ref):
    """An object whose name has versions."""

    version: int


class ErrorList(Schema):
    """What every reply of 400 and above carries."""

    errors: list[ErrorInfo] = Field(description="Each fault with its remedy; never empty.")


REFUSALS = dict.fromkeys((401, 403, 404, 422), ErrorList)
WRITE_REFUSALS = {400: ErrorList, **REFUSALS, 409: ErrorList}
