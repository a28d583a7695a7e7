"""Who calls: a bearer token, or the session of a browser, which then proves each write by CSRF."""

from __future__ import annotations

from django.http import HttpRequest
from ninja.errors import AuthenticationError
from ninja.security import HttpBearer, SessionAuth

from webapp.models import User
from webapp.services import accounts


class Token(HttpBearer):
    """`Authorization: Bearer still_...`; a wrong token is refused, whatever session comes with it."""

    def authenticate(self, request: HttpRequest, token: str) -> User:  # noqa: ARG002 (Ninja's)
        user = accounts.user_of_token(token)
        if user is None:
            raise AuthenticationError(message="The token is unknown or has expired.")
        return user


class Session(SessionAuth):
    """The log-in of a page; nobody's session is no answer, so that it counts as missing."""

    def __call__(self, request: HttpRequest) -> User | None:
        return super().__call__(request) if request.user.is_authenticated else None
