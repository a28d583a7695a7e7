"""What a job gets in its environment and nowhere else: its project's secrets, keys of its endpoints."""

from __future__ import annotations

from opdcore.contract.errors import BadInput
from webapp.models import ModelEndpoint, Run
from webapp.services import endpoints, project_secrets
from webapp.services.resources import parsed


def of(run: Run) -> dict[str, str]:
    """Variables by name; raises BadInput where one cannot be unsealed, or the judge is gone."""
    secrets = project_secrets.environment(run.project_id)
    return secrets | _endpoint_keys(run) | _judge_key(run)


def _endpoint_keys(run: Run) -> dict[str, str]:
    asked = [need.endpoint for need in parsed(run.resources).values() if need.endpoint]
    rows = ModelEndpoint.objects.filter(project_id=run.project_id, public_id__in=asked)
    return {row.key_variable: endpoints.key_of(row) for row in rows if row.sealed_key}


def _judge_key(run: Run) -> dict[str, str]:
    frozen = run.snapshot.get("judge")
    if frozen is None or frozen["endpoint"]["key_variable"] is None:
        return {}
    if run.judge is None:
        raise BadInput(
            "judge.removed",
            f"The endpoint {frozen['name']}, which grades this run's responses, was removed.",
            remedy="Register it again, then launch a changed copy of the run with it.",
            field="judge",
        )
    return {frozen["endpoint"]["key_variable"]: endpoints.key_of(run.judge)}
