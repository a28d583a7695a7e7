"""The first visit: a local admin, a project, the laboratory's pairs and prompt sets, the presets.

Every part is made only where it is missing, so that seeding again changes nothing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from django.conf import settings

from opdcore.lab import record
from opdcore.lab.tasks import FAMILIES, FamilyName
from webapp.models import ModelRoot, Pair, Project, PromptSet, RegisteredModel, User
from webapp.services import checkpoints, model_roots, pairs, projects, prompt_sets, recipes
from webapp.services.pairs import Laboratory, TeacherChoice

ADMIN = "admin"
PROJECT = "Demo"
# The first password, kept beside the signing key for as long as it is still in use.
FIRST_PASSWORD_FILE = "first_password"  # noqa: S105 (a file's name)

Tell = Callable[[str], None]


def seed(*, tell: Tell) -> list[str]:
    """Makes what is missing and returns the lines that say how to log in."""
    admin = User.objects.filter(is_superuser=True).order_by("pk").first() or _make_admin()
    project = Project.objects.order_by("pk").first() or projects.create(PROJECT, actor=admin)
    fill(project, actor=admin, tell=tell)
    return login_lines(admin)


def fill(project: Project, *, actor: User, tell: Tell) -> None:
    """Puts the presets and each shipped laboratory family into the project."""
    recipes.load_presets(project=project, actor=actor)
    for family in FAMILIES:
        folder = record.shipped(family)
        found = record.read(folder)
        if found is None:
            tell(f"The laboratory's {family} are not at hand ({folder})")
        else:
            _fill_family(project, family, folder, Laboratory(found.lab_version), actor=actor)


def login_lines(admin: User) -> list[str]:
    """How to log in; the first password is said until it is changed."""
    path = Path(settings.STATE_DIR) / FIRST_PASSWORD_FILE
    password = path.read_text(encoding="utf-8") if path.exists() else None
    how = f"Change it under Account, or: python manage.py changepassword {admin.username}"
    if password is not None and admin.check_password(password):
        return [f"Log in as {admin.username}, password {password}", how]
    path.unlink(missing_ok=True)
    return [f"Log in as {admin.username}, with your password", how]


def _make_admin() -> User:
    password = secrets.token_urlsafe(9)
    path = Path(settings.STATE_DIR) / FIRST_PASSWORD_FILE
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(password)
    return User.objects.create_superuser(ADMIN, password=password)


def _fill_family(
    project: Project, family: FamilyName, folder: Path, lab: Laboratory, *, actor: User
) -> None:
    if not ModelRoot.objects.filter(project=project, path=str(folder.parent)).exists():
        model_roots.add(str(folder.parent), project=project, actor=actor)
    student, teacher, other = (
        _model(project, f"{folder.name} {name.replace('_', ' ')}", folder / name, actor=actor)
        for name in ("student", "teacher", "teacher_other_style")
    )
    for name, chosen in (
        (f"Laboratory, {family}", teacher),
        (f"Laboratory, {family}: a teacher of another style", other),
    ):
        if not Pair.objects.filter(project=project, name=name).exists():
            pairs.create(
                name,
                project=project,
                actor=actor,
                student=student,
                teachers=[TeacherChoice(chosen)],
                laboratory=lab,
            )
    for name, file in (("train", record.TRAIN_FILE), ("held out", record.HELD_OUT_FILE)):
        _prompt_set(project, f"{folder.name} {name}", folder / file, actor=actor)


def _model(project: Project, name: str, folder: Path, *, actor: User) -> RegisteredModel:
    found = RegisteredModel.objects.filter(project=project, name=name).first()
    return found or checkpoints.register_local(name, str(folder), project=project, actor=actor)


def _prompt_set(project: Project, name: str, path: Path, *, actor: User) -> None:
    if not PromptSet.objects.ready().filter(project=project, name=name).exists():
        prompt_sets.add_file(path, name=name, project=project, actor=actor)
