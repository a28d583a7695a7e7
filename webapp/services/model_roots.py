"""Folders under which local models may lie. Only they are ever read, symbolic links resolved."""

from __future__ import annotations

import os
from pathlib import Path

from django.conf import settings
from django.db import transaction

from opdcore.contract.errors import BadInput
from webapp.models import ModelRoot, Project, User
from webapp.permissions import require
from webapp.services import audit


@transaction.atomic
def add(path: str, *, project: Project, actor: User) -> ModelRoot:
    """Allows a folder, by its resolved path; the folder must exist."""
    require(actor, "administer", project)
    folder = _resolved(path)
    # Unlike Path.is_dir, this takes a name that is too long for what it is: no folder.
    if not os.path.isdir(folder):  # noqa: PTH112
        raise BadInput(
            "model_root.missing",
            f"{folder} is not a folder of this server.",
            remedy="Give an existing folder.",
            field="path",
        )
    _refuse_our_own(folder)
    root, made = ModelRoot.objects.get_or_create(
        project=project, path=str(folder), defaults={"created_by": actor}
    )
    if made:
        audit.record(actor, "create", project=project, about=root, detail={"path": root.path})
    return root


@transaction.atomic
def remove(root: ModelRoot, *, actor: User) -> None:
    """Takes the permission back; models that are registered keep their row."""
    require(actor, "administer", root.project)
    audit.record(actor, "delete", project=root.project, about=root, detail={"path": root.path})
    root.delete()


def confined(path: str, project: Project) -> Path:
    """The resolved folder, where it lies under one of the project's roots; else BadInput."""
    folder = _resolved(path)
    roots = [Path(root.path) for root in ModelRoot.objects.filter(project=project)]
    if any(folder.is_relative_to(root) for root in roots):
        return folder
    allowed = ", ".join(str(root) for root in roots) or "none yet"
    raise BadInput(
        "model.outside_roots",
        f"{folder} lies outside the folders that {project.name} may read ({allowed}).",
        remedy="Move the model under one of them, or ask an admin of the project to allow its "
        "folder.",
        field="path",
    )


def _resolved(path: str) -> Path:
    if "\0" in path or not path.strip():
        raise BadInput(
            "model.no_path", "No folder is given.", remedy="Give a folder's path.", field="path"
        )
    # A path that is not absolute would depend on where the server was started.
    try:
        given = Path(path.strip()).expanduser()
        folder = given.resolve()
    except (OSError, RuntimeError) as error:
        # A loop of links, or nobody's home.
        raise BadInput(
            "model.no_such_path",
            f"{path.strip()[:200]} leads nowhere: {error}"[:400],
            remedy="Give the folder's path, from / on.",
            field="path",
        ) from error
    if not given.is_absolute():
        raise BadInput(
            "model.relative_path",
            f"{given} is a relative path.",
            remedy="Give the whole path, from / on.",
            field="path",
        )
    return folder


def _refuse_our_own(folder: Path) -> None:
    """The state folder holds keys and other projects' files; its run outputs are no exception."""
    state = Path(settings.STATE_DIR).resolve()
    if state.is_relative_to(folder) or folder.is_relative_to(state):
        raise BadInput(
            "model_root.own_state",
            f"{folder} holds Stillroom's own state.",
            remedy="Give a folder with nothing but models.",
            field="path",
        )
