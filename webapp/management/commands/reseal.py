"""`manage.py reseal`: every stored secret under the present key, so that former keys can be dropped."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand
from django.db import transaction

from webapp import sealing
from webapp.models import ModelEndpoint, ProjectSecret


class Command(BaseCommand):
    help = "Seals every stored secret with the present secret key."

    @transaction.atomic
    def handle(self, *_args: Any, **_options: Any) -> None:  # noqa: ANN401 (Django's)
        secrets = ProjectSecret.objects.select_for_update()
        for secret in secrets:
            ProjectSecret.objects.filter(pk=secret.pk).update(
                sealed=sealing.resealed(secret.sealed)
            )
        endpoints = ModelEndpoint.objects.select_for_update().exclude(sealed_key="")
        for endpoint in endpoints:
            sealed = sealing.resealed(endpoint.sealed_key)
            ModelEndpoint.objects.filter(pk=endpoint.pk).update(sealed_key=sealed)
        self.stdout.write(f"{len(secrets)} secrets and {len(endpoints)} keys are sealed anew.")
