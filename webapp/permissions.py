"""Who may do what in a project: the one place that decides. Reads go through `visible_to`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from django.core.exceptions import PermissionDenied

from webapp.models import Membership, Project, Role

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser

    from webapp.models import User

Action = Literal["read", "edit", "launch", "comment", "review", "manage", "administer"]

# The least role that may do it; every role may do all that those before it may.
LEAST_ROLE: dict[Action, Role] = {
    "read": Role.VIEWER,
    "comment": Role.MEMBER,
    "edit": Role.MEMBER,
    "launch": Role.MEMBER,
    "review": Role.MEMBER,
    "manage": Role.MAINTAINER,
    "administer": Role.ADMIN,
}
RANKS: dict[str, int] = {role: rank for rank, role in enumerate(Role.values)}


def role_of(user: User | AnonymousUser, project: Project) -> Role | None:
    """The user's role in the project; an installation's admin has the highest everywhere."""
    if not user.is_authenticated or not user.is_active:
        return None
    if user.is_superuser:
        return Role.ADMIN
    membership = Membership.objects.filter(project=project, user=user).first()
    return Role(membership.role) if membership else None


def allows(user: User | AnonymousUser, action: Action, project: Project) -> bool:
    """Whether the user may do this in the project."""
    role = role_of(user, project)
    return role is not None and RANKS[role] >= RANKS[LEAST_ROLE[action]]


def require(user: User | AnonymousUser, action: Action, project: Project) -> None:
    """Raises PermissionDenied, with the role that is missing, unless the user may do this."""
    if not allows(user, action, project):
        raise PermissionDenied(
            f"To {action} in {project.name} you need the role {LEAST_ROLE[action].label} there; "
            "ask one of its admins."
        )


def may_make_projects(user: User | AnonymousUser) -> bool:
    """Staff, and whoever is an admin of some project already."""
    if not user.is_authenticated or not user.is_active:
        return False
    return user.is_staff or user.memberships.filter(role=Role.ADMIN).exists()


def require_project_maker(user: User) -> None:
    """Raises PermissionDenied unless the user may make projects."""
    if not may_make_projects(user):
        raise PermissionDenied(
            "To make a project you have to be staff, or an admin of another one."
        )


def require_staff(user: User) -> None:
    """Raises PermissionDenied unless the user may make users."""
    if not user.is_staff:
        raise PermissionDenied("Only staff make users; ask whoever runs this installation.")
