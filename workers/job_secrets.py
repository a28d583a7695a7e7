"""What a job gets in its environment and nowhere else: its project's secrets, keys of its endpoints."""

from __future__ import annotations

from webapp.models import Run
from webapp.services import project_secrets


def of(run: Run) -> dict[str, str]:
    """Variables by name; raises BadInput where one cannot be unsealed."""
    return project_secrets.environment(run.project_id)
