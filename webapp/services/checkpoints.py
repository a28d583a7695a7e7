"""Registered models: inspected before anything is saved, so that an unusable folder leaves no row.

A run's output becomes a model of its own: a folder of ours, which outlives the run's artifacts.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import ProtectedError

from opdcore.contract.errors import BadInput
from opdcore.inspection import ModelCard, inspect
from webapp.models import Project, RegisteredModel, Run, User
from webapp.permissions import require
from webapp.services import audit, run_files
from webapp.services.model_roots import confined

REPO = re.compile(r"[\w.-]+/[\w.-]+")


def register_local(name: str, path: str, *, project: Project, actor: User) -> RegisteredModel:
    """Registers a folder under an allowed root; raises BadInput with the folder's fault."""
    require(actor, "edit", project)
    folder = confined(path, project)
    card = _inspected(folder)
    return _create(
        name.strip() or folder.name,
        project=project,
        actor=actor,
        source_kind=RegisteredModel.Source.LOCAL,
        path=str(folder),
        state=RegisteredModel.State.READY,
        card=card.model_dump(mode="json"),
    )


def register_hub(
    name: str, repo: str, *, revision: str, project: Project, actor: User
) -> RegisteredModel:
    """Registers a hub repository by name; it is fetched and inspected when a run needs it."""
    require(actor, "edit", project)
    if not REPO.fullmatch(repo.strip()):
        raise BadInput(
            "model.repo",
            f"{repo!r} is no repository name.",
            remedy="Give owner/name, such as Qwen/Qwen3-0.6B-Base.",
            field="repo",
        )
    return _create(
        name.strip() or repo.strip(),
        project=project,
        actor=actor,
        source_kind=RegisteredModel.Source.HUB,
        repo=repo.strip(),
        revision=revision.strip() or "main",
        state=RegisteredModel.State.REGISTERED,
    )


def register_output(run: Run, *, actor: User) -> RegisteredModel:
    """Registers what a run trained, under the run's name; raises BadInput where it left nothing sound."""
    require(actor, "edit", run.project)
    _refuse_second(run)
    outputs().mkdir(mode=0o700, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{run.public_id}-", dir=outputs()))
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        run_files.lay_out(run, folder)
        model = _create(
            f"{run.name[:100]} ({run.public_id})",
            project=run.project,
            actor=actor,
            source_kind=RegisteredModel.Source.RUN,
            run=run,
            path=str(folder),
            state=RegisteredModel.State.READY,
            card=_inspected(folder).model_dump(mode="json"),
        )
        undo.pop_all()
    return model


def inspect_again(model: RegisteredModel, *, actor: User) -> RegisteredModel:
    """Reads a local model's folder anew; a fault is kept with the model, since pairs may use it."""
    require(actor, "edit", model.project)
    if model.source_kind == RegisteredModel.Source.HUB:
        raise BadInput(
            "model.not_local",
            f"{model.name} is a repository of the hub.",
            remedy="It is fetched and inspected at the launch; there is no folder to read again.",
            field="model",
        )
    try:
        card = _inspected(_folder_here(model))
    except BadInput as error:
        model.state, model.error = RegisteredModel.State.ERROR, error.info.model_dump()
    else:
        model.state, model.error = RegisteredModel.State.READY, None
        model.card = card.model_dump(mode="json")
    with transaction.atomic():
        model.save(update_fields=["state", "error", "card"])
        detail = {"state": model.state}
        audit.record(actor, "inspect", project=model.project, about=model, detail=detail)
    return model


@transaction.atomic
def delete(model: RegisteredModel, *, actor: User) -> None:
    """Forgets a model that no pair uses; a folder that was given stays, a run's output in ours goes."""
    require(actor, "edit", model.project)
    ours = model.path if model.source_kind == RegisteredModel.Source.RUN else None
    audit.record(actor, "delete", project=model.project, about=model, detail={"name": model.name})
    try:
        model.delete()
    except ProtectedError as error:
        raise BadInput(
            "model.in_use",
            f"{model.name} is part of a pair, or wrote what a run learned.",
            remedy="Delete its pairs first; what a run names stays.",
            field="model",
        ) from error
    if ours:
        transaction.on_commit(lambda: shutil.rmtree(ours, ignore_errors=True))


def outputs() -> Path:
    """Where registered outputs of runs lie."""
    return Path(settings.STATE_DIR) / "models"


def folder_of(model: RegisteredModel) -> Path | None:
    """The folder to read a model from before launch; None where only the launch fetches it."""
    if model.source_kind == RegisteredModel.Source.HUB:
        return None
    return _folder_here(model)


def _folder_here(model: RegisteredModel) -> Path:
    """A folder that was given must still be allowed; one that we made for an output is."""
    if model.source_kind == RegisteredModel.Source.RUN:
        return Path(model.path)
    return confined(model.path, model.project)


def _refuse_second(run: Run) -> None:
    known = run.output_models.first()
    if known is not None:
        raise BadInput(
            "model.output_known",
            f"The output of {run.name} is already registered as {known.name}.",
            remedy="Use that model in a pair.",
            field="run",
        )


def _inspected(folder: Path) -> ModelCard:
    """The folder's card; BadInput where it is unusable, or not ours to read."""
    try:
        return inspect(folder)
    except OSError as error:
        raise BadInput(
            "model.unreadable",
            f"{folder} cannot be read: {error}"[:400],
            remedy="Let the user whom the server runs as read every file of it.",
            field="path",
        ) from error


def _source(model: RegisteredModel) -> str:
    """Where a model comes from, as the audit log says it."""
    return f"run {model.run.public_id}" if model.run else model.path or model.repo


def _create(name: str, *, project: Project, actor: User, **fields: object) -> RegisteredModel:
    try:
        with transaction.atomic():
            model = RegisteredModel.objects.create(
                project=project, created_by=actor, name=name.strip()[:120], **fields
            )
            detail = {"name": model.name, "source": _source(model)}
            audit.record(actor, "create", project=project, about=model, detail=detail)
    except IntegrityError as error:
        raise BadInput(
            "model.name_taken",
            f"{project.name} already has a model named {name.strip()!r}.",
            remedy="Choose another name.",
            field="name",
        ) from error
    return model
