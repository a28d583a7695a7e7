"""Errors as the API tells them: always `{"errors": [ErrorInfo, ...]}`, and a status that fits.

400: the request cannot be read. 401: nobody, or a wrong token. 403: the role or the CSRF token is
missing. 404: absent, or not yours to see. 405: another method. 409: sound, but not as things stand.
422: a field is at fault.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import orjson
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from ninja import NinjaAPI
from ninja.errors import HttpError, ValidationError, ValidationErrorContext

from opdcore.contract.errors import BadInput, ErrorInfo
from webapp.services.recipe_faults import Fault, faults_of
from webapp.services.recipe_yaml import BadRecipe
from webapp.services.runs import LaunchRefused

# Nothing is wrong with the request; the rows as they are stand against it.
CONFLICTS = frozenset(
    {
        "model.in_use",
        "model.name_taken",
        "pair.in_use",
        "pair.name_taken",
        "prompt_set.in_use",
        "recipe.unchanged",
        "run.ended",
        "run.not_resumable",
        "scores.not_kept_by_run",
        "scores.record_not_whole",
    }
)
# What Ninja says, which is no more than the status does, and what it means.
NINJA_WORDS = {
    "Unauthorized": "You are not known here.",
    "CSRF check Failed": "The CSRF token is missing or wrong.",
}
# How the operations name the parts of a request that are read as one document.
PARTS = ("body", "form", "query")
REMEDIES: dict[int, str] = {
    400: "Send JSON with the header Content-Type: application/json.",
    401: "Send the header Authorization: Bearer TOKEN; tokens are made on your account page.",
    403: "Send the header X-CSRFToken with the value of the csrftoken cookie, or use a token.",
    404: "Check the address; /api/docs lists them all.",
    405: "Use a method that the header Allow names.",
    413: "Send less at once: a prompt set can be split into several files.",
}


def answer(problems: Iterable[ErrorInfo], *, status: int) -> HttpResponse:
    """The reply that carries these errors."""
    body = orjson.dumps({"errors": [one.model_dump() for one in problems]})
    return HttpResponse(body, status=status, content_type="application/json")


def told(status: int, message: str) -> HttpResponse:
    """The reply for what HTTP alone explains."""
    code = f"api.{HTTPStatus(status).name.lower()}"
    remedy = REMEDIES.get(status, "Change the request.")
    reply = answer([ErrorInfo(code=code, message=message, remedy=remedy)], status=status)
    if status == HTTPStatus.UNAUTHORIZED:
        reply["WWW-Authenticate"] = "Bearer"
    return reply


def refuse_bad_input(request: HttpRequest, error: BadInput) -> HttpResponse:  # noqa: ARG001 (Ninja's)
    """A field that cannot be used, or a state that does not allow it."""
    many = error.problems if isinstance(error, LaunchRefused | BadRecipe) else (error.info,)
    return answer(many, status=409 if error.info.code in CONFLICTS else 422)


def refuse_role(request: HttpRequest, error: PermissionDenied) -> HttpResponse:  # noqa: ARG001 (Ninja's)
    """Somebody known, without the role."""
    message, _, remedy = str(error).partition("; ")
    info = ErrorInfo(
        code="api.role",
        message=f"{message.rstrip('.')}.",
        remedy=f"{remedy[:1].upper()}{remedy[1:]}" or "Ask an admin of the project.",
    )
    return answer([info], status=403)


def refuse_absent(request: HttpRequest, error: Http404) -> HttpResponse:  # noqa: ARG001 (Ninja's)
    """Absent and hidden look alike."""
    return told(404, str(error) or "There is nothing here.")


def refuse_request(request: HttpRequest, error: HttpError) -> HttpResponse:  # noqa: ARG001 (Ninja's)
    """Unreadable, nobody's, or without CSRF token."""
    return told(error.status_code, NINJA_WORDS.get(str(error), str(error)))


def refuse_fields(request: HttpRequest, error: ValidationError) -> HttpResponse:  # noqa: ARG001 (Ninja's)
    """Fields that are at fault."""
    return answer([ErrorInfo.model_validate(one) for one in error.errors], status=422)


def fields_at_fault(contexts: Iterable[ValidationErrorContext[Any]]) -> ValidationError:
    """Pydantic's complaints about parameters and bodies, in the words of the recipe form."""
    faults = [one for each in contexts for one in faults_of(each.pydantic_validation_error)]
    return ValidationError([info_of(one).model_dump() for one in faults])


def info_of(fault: Fault) -> ErrorInfo:
    """A fault as an error; the path is that within the body, the form or the query."""
    first, _, rest = fault.path.partition(".")
    path = rest if first in PARTS else fault.path
    return ErrorInfo(
        code=f"api.{fault.kind}", message=fault.message, remedy=fault.remedy, field=path or None
    )


def install(api: NinjaAPI) -> None:
    """Makes every refusal of this API look alike."""
    handlers: dict[type[Exception], Any] = {
        BadInput: refuse_bad_input,
        PermissionDenied: refuse_role,
        Http404: refuse_absent,
        HttpError: refuse_request,
        ValidationError: refuse_fields,
    }
    for kind, handler in handlers.items():
        api.add_exception_handler(kind, handler)
