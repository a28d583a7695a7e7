"""What happens around every page: the project chosen in the switcher."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from webapp.context import SESSION_KEY
from webapp.models import Project

GetResponse = Callable[[HttpRequest], HttpResponse]


class ChooseProject:
    """`?project=` on any page chooses the project of this session; in the API it narrows a list."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        wanted = request.GET.get("project")
        if wanted is None or not request.user.is_authenticated or request.path.startswith("/api/"):
            return self.get_response(request)
        if Project.objects.visible_to(request.user).filter(public_id=wanted).exists():
            request.session[SESSION_KEY] = wanted
        return redirect("home")
