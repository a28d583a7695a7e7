"""What belongs to a project: every object does, and `visible_to` is the only door for reads."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Self, TypeVar

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.db import models

if TYPE_CHECKING:
    from webapp.models.accounts import User

# Lower case, without the letters and digits that are mistaken for one another.
ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
PUBLIC_ID_LENGTH = 10

Row = TypeVar("Row", bound=models.Model)


def new_public_id() -> str:
    """A random name for addresses, folders and the API: about 49 bits."""
    return "".join(secrets.choice(ALPHABET) for _ in range(PUBLIC_ID_LENGTH))


class OwnedQuerySet(models.QuerySet[Row]):
    """Rows of a project, seen through membership of it."""

    membership_path = "project__memberships__user"

    def visible_to(self, user: User | AnonymousUser) -> Self:
        """Rows of projects that the user is a member of; all of them for an installation's admin."""
        if not user.is_authenticated:
            return self.none()
        if user.is_superuser:
            return self
        return self.filter(**{self.membership_path: user})


class Owned(models.Model):
    """Fields that every object of a project has."""

    project = models.ForeignKey("webapp.Project", models.CASCADE, related_name="+")
    public_id = models.CharField(max_length=16, unique=True, default=new_public_id, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        abstract = True
