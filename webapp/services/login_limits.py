"""How often somebody may try to log in: counted in the database, so it holds without a broker."""

from __future__ import annotations

from django.http import HttpRequest

from webapp.models import LoginFailure

WINDOW_SECONDS = 300
FAILURES_PER_NAME = 5
FAILURES_PER_ADDRESS = 30


def is_blocked(username: str, address: str | None) -> bool:
    """Whether this name or this address failed too often within the window."""
    recent = LoginFailure.objects.since(WINDOW_SECONDS)
    by_name = recent.filter(username=username[:150].lower(), address=address).count()
    by_address = recent.filter(address=address).count()
    return by_name >= FAILURES_PER_NAME or by_address >= FAILURES_PER_ADDRESS


def note_failure(username: str, address: str | None) -> None:
    """Counts a failed log-in, and forgets those that no longer count."""
    current = LoginFailure.objects.since(WINDOW_SECONDS)
    LoginFailure.objects.exclude(pk__in=current.values("pk")).delete()
    LoginFailure.objects.create(username=username[:150].lower(), address=address)


def address_of(request: HttpRequest) -> str | None:
    """The address that the server saw; a proxy must pass it on as its own."""
    return request.META.get("REMOTE_ADDR") or None
