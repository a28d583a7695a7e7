"""The audit log: one entry per change."""

from __future__ import annotations

from typing import Any, Protocol

from webapp.models import AuditEntry, Project, User


class Audited(Protocol):
    """What an entry can be about."""

    public_id: Any


def record(
    actor: User | None,
    verb: str,
    *,
    project: Project,
    about: Audited,
    detail: dict[str, Any] | None = None,
) -> AuditEntry:
    """Notes that the actor did this; `actor` is None where a worker did it."""
    return AuditEntry.objects.create(
        project=project,
        actor=actor,
        verb=verb,
        object_kind=type(about).__name__,
        object_id=about.public_id,
        detail=detail or {},
    )
