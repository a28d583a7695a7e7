"""Accounts and API tokens. A token is shown once; only its prefix and SHA-256 are kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import datetime, timedelta

from django.db import transaction
from django.utils import timezone

from webapp.models import ApiToken, User

TOKEN_START = "still_"  # noqa: S105 (marks a token as ours; secret is what follows)
PREFIX_LENGTH = len(TOKEN_START) + 8
# Writing `last_used_at` at every call would make each read of the API a write.
LAST_USED_RESOLUTION = timedelta(minutes=1)


@transaction.atomic
def create_token(
    name: str, *, actor: User, expires_at: datetime | None = None
) -> tuple[ApiToken, str]:
    """A new token of the actor and its secret, which nobody can read again."""
    secret = TOKEN_START + secrets.token_urlsafe(32)
    token = ApiToken.objects.create(
        user=actor,
        name=name.strip(),
        prefix=secret[:PREFIX_LENGTH],
        sha256=_digest(secret),
        expires_at=expires_at,
    )
    return token, secret


def user_of_token(secret: str) -> User | None:
    """The active user whose usable token this is; None where it is nobody's."""
    token = (
        ApiToken.objects.usable()
        .select_related("user")
        .filter(prefix=secret[:PREFIX_LENGTH], user__is_active=True)
        .first()
    )
    if token is None or not hmac.compare_digest(token.sha256, _digest(secret)):
        return None
    _note_use(token)
    return token.user


def delete_token(token: ApiToken, *, actor: User) -> None:
    """Makes one of the actor's own tokens useless."""
    ApiToken.objects.filter(pk=token.pk, user=actor).delete()


def _note_use(token: ApiToken) -> None:
    now = timezone.now()
    if token.last_used_at is None or now - token.last_used_at > LAST_USED_RESOLUTION:
        ApiToken.objects.filter(pk=token.pk).update(last_used_at=now)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
