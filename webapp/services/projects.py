"""Projects and who is in them. A project starts with the presets; its other parts are its members' to make."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from django.db import IntegrityError, transaction
from django.utils.text import slugify

from opdcore.contract.errors import BadInput
from webapp.models import Membership, Project, Role, User
from webapp.permissions import require, require_project_maker, require_staff
from webapp.services import audit, recipes

PASSWORD_BYTES = 9


@dataclass(frozen=True, slots=True)
class FirstLogin:
    """What a new user logs in with; the password is not kept and cannot be shown again."""

    username: str
    password: str = field(repr=False)


@transaction.atomic
def create(name: str, *, actor: User) -> Project:
    """Makes a project with the presets, and its maker the admin of it."""
    require_project_maker(actor)
    slug = _free_slug(name)
    project = Project.objects.create(name=name.strip(), slug=slug)
    Membership.objects.create(project=project, user=actor, role=Role.ADMIN)
    audit.record(actor, "create", project=project, about=project, detail={"name": project.name})
    recipes.load_presets(project=project, actor=actor)
    return project


@transaction.atomic
def set_role(project: Project, user: User, *, role: Role, actor: User) -> Membership:
    """Gives the user this role, whether they were a member or not."""
    require(actor, "administer", project)
    _keep_an_admin(project, user, role)
    membership, _ = Membership.objects.update_or_create(
        project=project, user=user, defaults={"role": role}
    )
    detail = {"user": user.username, "role": role.value}
    audit.record(actor, "set_role", project=project, about=project, detail=detail)
    return membership


@transaction.atomic
def add_new_user(project: Project, username: str, *, role: Role, actor: User) -> FirstLogin:
    """Makes a user with a password of ours, in this role; staff may, who are admins of the project."""
    require_staff(actor)
    require(actor, "administer", project)
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    user = _user(username, password)
    audit.record(
        actor, "create_user", project=project, about=project, detail={"user": user.username}
    )
    set_role(project, user, role=role, actor=actor)
    return FirstLogin(user.username, password)


@transaction.atomic
def remove_member(project: Project, user: User, *, actor: User) -> None:
    """Takes the user out of the project."""
    require(actor, "administer", project)
    _keep_an_admin(project, user, None)
    Membership.objects.filter(project=project, user=user).delete()
    audit.record(
        actor, "remove_member", project=project, about=project, detail={"user": user.username}
    )


def _user(username: str, password: str) -> User:
    if User.objects.filter(username__iexact=username.strip()).exists():
        raise _taken(username)
    try:
        with transaction.atomic():
            return User.objects.create_user(username.strip(), password=password)
    except IntegrityError as error:
        raise _taken(username) from error


def _taken(username: str) -> BadInput:
    return BadInput(
        "user.name_taken",
        f"There is already a user named {username.strip()!r}.",
        remedy="Choose another name, or add that user to the project above.",
        field="username",
    )


def _free_slug(name: str) -> str:
    stem = slugify(name)[:60] or "project"
    taken = set(Project.objects.filter(slug__startswith=stem).values_list("slug", flat=True))
    numbered = (f"{stem}-{n}" for n in range(2, len(taken) + 3))
    return stem if stem not in taken else next(slug for slug in numbered if slug not in taken)


def _keep_an_admin(project: Project, user: User, role: Role | None) -> None:
    others = project.memberships.filter(role=Role.ADMIN).exclude(user=user)
    was_admin = project.memberships.filter(role=Role.ADMIN, user=user).exists()
    if was_admin and role != Role.ADMIN and not others.exists():
        raise BadInput(
            "project.last_admin",
            f"{user.username} is the only admin of {project.name}.",
            remedy="Make somebody else an admin first.",
            field="role",
        )
