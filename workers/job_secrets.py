"""What a job gets in its environment and nowhere else: its project's secrets, keys of its endpoints."""

from __future__ import annotations

from webapp.models import ModelEndpoint, Run
from webapp.services import endpoints, project_secrets
from webapp.services.resources import parsed


def of(run: Run) -> dict[str, str]:
    """Variables by name; raises BadInput where one cannot be unsealed."""
    return project_secrets.environment(run.project_id) | _endpoint_keys(run)


def _endpoint_keys(run: Run) -> dict[str, str]:
    asked = [need.endpoint for need in parsed(run.resources).values() if need.endpoint]
    rows = ModelEndpoint.objects.filter(project_id=run.project_id, public_id__in=asked)
    return {row.key_variable: endpoints.key_of(row) for row in rows if row.sealed_key}
