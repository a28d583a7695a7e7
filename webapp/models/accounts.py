"""People, and the tokens with which their scripts speak for them."""

from __future__ import annotations

from datetime import timedelta
from typing import Self

from django.conf import settings
from django.contrib.auth.models import AbstractUser
from django.db import models
from django.utils import timezone


class User(AbstractUser):
    """Somebody who logs in; `is_superuser` is the installation's admin."""


class ApiTokenQuerySet(models.QuerySet["ApiToken"]):
    def usable(self) -> Self:
        """Tokens that have not expired."""
        return self.exclude(expires_at__lte=timezone.now())


class ApiToken(models.Model):
    """A secret for the API: shown once, kept as a prefix to recognise it by and a SHA-256."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=80)
    prefix = models.CharField(max_length=16, unique=True)
    sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}...)"


class LoginFailureQuerySet(models.QuerySet["LoginFailure"]):
    def since(self, seconds: int) -> Self:
        """Failures of the last so many seconds."""
        return self.filter(at__gte=timezone.now() - timedelta(seconds=seconds))


class LoginFailure(models.Model):
    """A log-in that failed; what rate limits count, so that they hold without any broker."""

    username = models.CharField(max_length=150)
    address = models.GenericIPAddressField(null=True)
    at = models.DateTimeField(auto_now_add=True)

    objects = LoginFailureQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["username", "at"], name="login_failure_by_name"),
            models.Index(fields=["address", "at"], name="login_failure_by_address"),
        ]

    def __str__(self) -> str:
        return f"{self.username} from {self.address}"
