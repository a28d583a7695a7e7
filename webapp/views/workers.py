"""Workers, devices and the queue on one page, which keeps itself current."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from webapp.services import machines
from webapp.views.scope import actor


@require_GET
def workers(request: HttpRequest) -> HttpResponse:
    """The page; its state asks for itself anew."""
    return render(request, "workers/index.html", {"state": machines.state(actor(request))})


@require_GET
def state(request: HttpRequest) -> HttpResponse:
    """Workers, devices and queue as they are now."""
    return render(request, "workers/_state.html", {"state": machines.state(actor(request))})
