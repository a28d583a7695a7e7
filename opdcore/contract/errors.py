"""Errors with stable codes: the user's fault and our fault never look alike.

A code is a promise to whoever scripts against it, so it never changes its meaning. It knows no
transport: the command line, the event stream and the pages each show an `ErrorInfo` their own way.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field


class ErrorInfo(BaseModel):
    """An error as data: what an event, an API reply and a page carry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str = Field(description="Stable identifier, such as `model.pickle`.")
    message: str = Field(description="What is wrong, with the value.")
    remedy: str = Field(description="What to do about it.")
    field: str | None = Field(default=None, description="Path of the field, row or line at fault.")


class StillroomError(Exception):
    """Something went wrong that we can name; `code`, `message`, `remedy` and `field` say what."""

    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, message: str, *, remedy: str, field: str | None = None) -> None:
        super().__init__(code, message, remedy, field)
        self.info = ErrorInfo(code=code, message=message, remedy=remedy, field=field)

    def __str__(self) -> str:
        where = f"{self.info.field}: " if self.info.field else ""
        return f"{where}{self.info.message} {self.info.remedy} [{self.info.code}]"

    def __reduce__(self) -> tuple[object, ...]:
        info = self.info
        return _rebuild, (type(self), info.code, info.message, info.remedy, info.field)


def _rebuild(
    kind: type[StillroomError], code: str, message: str, remedy: str, field: str | None
) -> StillroomError:
    return kind(code, message, remedy=remedy, field=field)


class BadInput(StillroomError):
    """The user's fault: a field, row, line or folder that cannot be used as it is."""

    exit_code = 2


class EngineFailure(StillroomError):
    """The run's fault: it started soundly and could not go on (memory, disk, non-finite loss)."""

    exit_code = 1


class Cancelled(StillroomError):
    """Somebody asked the job to stop; the last checkpoint is kept."""

    exit_code = 5


class Paused(StillroomError):
    """The run halts by its recipe's own wish until a person decides; the checkpoint is kept."""

    exit_code = 6
