"""Rows for the tests of workers and of the live path: a run with all it points at."""

from __future__ import annotations

import hashlib

from django.core.files.base import ContentFile
from django.core.files.storage import storages

from opdcore.contract.events import encode, shape
from opdcore.contract.recipe import Recipe as RecipeDocument
from webapp.models import (
    Membership,
    Pair,
    PairTeacher,
    Project,
    PromptSet,
    Recipe,
    RegisteredModel,
    Run,
    User,
)
from webapp.services import recording, run_documents

PROMPTS = b'{"messages":[{"role":"user","content":"1+1?"}],"answer":"2"}\n'


def make_project(slug="p"):
    return Project.objects.get_or_create(slug=slug, defaults={"name": slug})[0]


def make_user(name="ada", *, project=None, role="member"):
    user = User.objects.create_user(name, password="a long password of words")
    if project is not None:
        Membership.objects.create(project=project, user=user, role=role)
    return user


def make_model(project, name):
    return RegisteredModel.objects.create(
        project=project, name=name, source_kind="local", path=f"/models/{name}", state="ready"
    )


def make_recipe(project, *, stages=None, name="plain"):
    document = RecipeDocument(name=name, stages=stages or [{"kind": "distill", "steps": 20}])
    number = Recipe.objects.count() + 1
    return Recipe.objects.create(
        project=project,
        name=name,
        version=number,
        document=document.model_dump(mode="json"),
        sha256="0" * 64,
    )


def make_prompt_set(project):
    number = PromptSet.objects.count() + 1
    key = storages["prompts"].save(f"{number}.jsonl", ContentFile(PROMPTS))
    return PromptSet.objects.create(
        project=project,
        name="sums",
        version=number,
        state="ready",
        format="jsonl",
        source_name="sums.jsonl",
        sha256=hashlib.sha256(PROMPTS).hexdigest(),
        rows=1,
        storage_key=key,
    )


def make_run(*, project=None, stages=None, **overrides):
    project = project or make_project()
    number = Run.objects.count() + 1
    student, teacher = (make_model(project, f"{side}-{number}") for side in ("s", "t"))
    pair = Pair.objects.create(project=project, name=f"pair {number}", student=student)
    PairTeacher.objects.create(pair=pair, model=teacher)
    recipe = make_recipe(project, stages=stages)
    train = make_prompt_set(project)
    return Run.objects.create(
        project=project,
        name=f"run {number}",
        pair=pair,
        recipe=recipe,
        train_set=train,
        snapshot=run_documents.snapshot(pair, recipe, train=train, held_out=None),
        **overrides,
    )


def make_running(**overrides):
    """A run in its first attempt, as if a worker had claimed it."""
    return make_run(**({"status": "running", "attempt": 1} | overrides))


class Scribe:
    """Shapes the lines of one attempt and records them, as a job and its recorder would."""

    def __init__(self, run, *, attempt=1, steps=(20,)):
        self.author = recording.Author(run.pk, attempt, tuple(steps))
        self.attempt = attempt
        self.line = 0

    def raw(self, payload, *, step=None, stage=0):
        self.line += 1
        return encode(
            shape(payload, attempt=self.attempt, line=self.line, stage_index=stage, step=step)
        )

    def parsed(self, payload, **where):
        return recording.parse(self.raw(payload, **where))

    def record(self, *lines):
        return recording.record(self.author, lines)
