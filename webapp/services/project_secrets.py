"""A project's secrets: set, replaced, deleted, and given to its jobs as environment variables alone.

A secret is never read back by anybody: pages know its name, its last four characters, and who set it.
"""

from __future__ import annotations

import re

from django.db import transaction
from django.utils import timezone

from opdcore.contract.errors import BadInput
from webapp import sealing
from webapp.models import Project, ProjectSecret, User
from webapp.permissions import require
from webapp.services import audit

# A variable of any other name could steer the process that gets it, as LD_PRELOAD and PYTHONPATH do.
NAMES = re.compile(r"[A-Z][A-Z0-9_]*_(TOKEN|KEY|SECRET|PASSWORD)")
OURS = ("STILLROOM_", "DJANGO_", "ENDPOINT_KEY_")
LONGEST_NAME = 80
LONGEST = 4096


@transaction.atomic
def put(project: Project, name: str, value: str, *, actor: User) -> ProjectSecret:
    """Sets the secret, or replaces it; raises BadInput, or PermissionDenied."""
    require(actor, "manage", project)
    name, value = name.strip(), value.strip()
    _check(name, value)
    now = {"set_at": timezone.now(), "set_by": actor}
    sealed = {"sealed": sealing.seal(value), "last_four": sealing.last_four(value)}
    secret, is_new = ProjectSecret.objects.update_or_create(
        project=project,
        name=name,
        defaults=sealed | now,
        create_defaults=sealed | now | {"created_by": actor},
    )
    verb = "set_secret" if is_new else "replace_secret"
    audit.record(actor, verb, project=project, about=secret, detail={"name": name})
    return secret


@transaction.atomic
def delete(secret: ProjectSecret, *, actor: User) -> None:
    """Forgets it; jobs that run keep what they were given."""
    require(actor, "manage", secret.project)
    audit.record(
        actor, "delete_secret", project=secret.project, about=secret, detail={"name": secret.name}
    )
    secret.delete()


def environment(project_id: int) -> dict[str, str]:
    """Variables of the project's jobs, unsealed."""
    rows = ProjectSecret.objects.filter(project=project_id)
    return {row.name: sealing.unseal(row.sealed) for row in rows}


def _check(name: str, value: str) -> None:
    if not NAMES.fullmatch(name) or name.startswith(OURS) or len(name) > LONGEST_NAME:
        raise BadInput(
            "secret.name",
            f"{name[:LONGEST_NAME]!r} is no name for a secret.",
            remedy="Give capitals that end in _TOKEN, _KEY, _SECRET or _PASSWORD, such as HF_TOKEN.",
            field="name",
        )
    if not 8 <= len(value) <= LONGEST or not value.isprintable():
        raise BadInput(
            "secret.value",
            f"The value has {len(value):,} characters, or some that cannot be printed.",
            remedy=f"Give one line of 8 to {LONGEST:,} characters.",
            field="value",
        )
