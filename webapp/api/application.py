"""The API put together: its routers, its refusals, and the addresses that the project mounts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern, URLResolver, path
from django.views.decorators.csrf import csrf_exempt
from ninja import NinjaAPI
from ninja.errors import ValidationError, ValidationErrorContext
from ninja.operation import Operation
from ninja.renderers import BaseRenderer

from webapp.api import (
    endpoints,
    errors,
    models,
    pairs,
    projects,
    prompt_sets,
    recipes,
    rescues,
    runs,
    secrets,
)
from webapp.api.authentication import Session, Token
from webapp.api.documentation import page

DESCRIPTION = """\
Everything that the pages do with runs and what they are made of, for scripts. Send a token from your
account page as `Authorization: Bearer TOKEN`. Times are UTC, durations are in seconds, ratios lie in
[0, 1], and what is not known is null. Every refusal is a list of errors, each with a stable code,
a message, a remedy and, where one is at fault, the field.
"""
ROUTERS = (
    ("/projects", projects.router),
    ("/runs", runs.router),
    ("/runs", rescues.router),
    ("/models", models.router),
    ("/endpoints", endpoints.router),
    ("/pairs", pairs.router),
    ("/prompt-sets", prompt_sets.router),
    ("/recipes", recipes.router),
    ("/secrets", secrets.router),
)


class Renderer(BaseRenderer):
    """JSON with times in UTC; a number that is not finite would be null."""

    media_type = "application/json"

    def render(self, request: HttpRequest, data: Any, *, response_status: int) -> bytes:  # noqa: ANN401, ARG002 (Ninja's)
        return orjson.dumps(data, option=orjson.OPT_UTC_Z)


class StillroomAPI(NinjaAPI):
    """Ninja, with unsound fields told as everything else is."""

    def validation_error_from_error_contexts(
        self, error_contexts: list[ValidationErrorContext[Any]]
    ) -> ValidationError:
        return errors.fields_at_fault(error_contexts)

    def get_openapi_operation_id(self, operation: Operation) -> str:
        """The function's name, which is an action and a noun: `launch_run`."""
        return str(operation.view_func.__name__)


def build() -> StillroomAPI:
    """The API with all its routers."""
    api = StillroomAPI(
        title="Stillroom",
        version="1",
        description=DESCRIPTION,
        docs_url=None,
        auth=[Token(), Session()],
        renderer=Renderer(),
        urls_namespace="api",
    )
    errors.install(api)
    for prefix, router in ROUTERS:
        api.add_router(prefix, router)
    return api


def mounted(api: NinjaAPI) -> tuple[list[URLPattern | URLResolver], str, str]:
    """The API's addresses, its documentation, and an answer for every other address below it.

    The log-in page is no answer to a script: each operation asks who calls by itself.
    """
    patterns, app_name, namespace = api.urls
    for pattern in patterns:
        if pattern.callback is not None:
            pattern.callback = _for_scripts(pattern.callback)
    documentation = path("docs", page, {"api": api}, name="docs")
    absent = _for_scripts(_absent)
    elsewhere = path("<path:rest>", absent, name="absent")
    return [path("", absent), documentation, *patterns, elsewhere], app_name, namespace


View = Callable[..., HttpResponseBase]


def _for_scripts(view: View) -> View:
    """Outside the log-in's redirect, and with a refusal in words where the method is another."""

    def answered(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponseBase:
        reply = view(request, *args, **kwargs)
        if reply.status_code != 405:
            return reply
        refusal = errors.told(405, f"{request.method} is not allowed here.")
        refusal["Allow"] = reply["Allow"]
        return refusal

    return csrf_exempt(login_not_required(answered))


def _absent(_request: HttpRequest, rest: str = "") -> HttpResponse:
    return errors.told(404, f"There is nothing at /api/{rest[:80]}.")


api = build()
urls = mounted(api)
