"""A launch from its choices: looked at before it is made, then made whole or not at all.

Knobs that were turned just for a run become a version of its recipe, in the same transaction as the
run. It knows no form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db import transaction

from opdcore.contract.errors import ErrorInfo
from opdcore.contract.recipe import Recipe as RecipeDocument
from webapp.models import Pair, Project, PromptSet, Recipe, Run, User
from webapp.services import (
    estimates,
    launch_checks,
    launch_preview,
    machines,
    recipes,
    run_documents,
    runs,
    scores,
    serving,
)
from webapp.services.asked_parts import NOTHING_ASKED, AskedParts
from webapp.services.estimates import Needs
from webapp.services.launch_preview import Side
from webapp.services.run_documents import LocalFiles


@dataclass(frozen=True, slots=True)
class Choice:
    """What a run is to be made of; `turned` is the recipe where some knobs differ from it."""

    pair: Pair
    train: PromptSet
    held_out: PromptSet | None
    recipe: Recipe
    asked: AskedParts = NOTHING_ASKED
    turned: RecipeDocument | None = None
    name: str = ""
    resources: dict[str, Any] | None = None
    parent: Run | None = None
    keep_scores: bool = False

    @property
    def kept_scores(self) -> dict[str, Any] | None:
        """As the run's snapshot says it."""
        return scores.KEEP if self.keep_scores else None

    @property
    def document(self) -> RecipeDocument:
        return self.turned or self.recipe.contract


@dataclass(frozen=True, slots=True)
class Review:
    """What is known of a launch before it is made."""

    problems: list[ErrorInfo]
    warnings: list[ErrorInfo]
    needs: Needs | None
    scores_bytes: int | None
    sides: list[Side]
    queue_length: int
    job: str
    body: str | None

    @property
    def ready(self) -> bool:
        return not self.problems


def review(choice: Choice) -> Review:
    """Looks at everything that a launch depends on; starts and saves nothing."""
    pair, document = choice.pair, choice.document
    sets = {
        "train": choice.train,
        "held_out": choice.held_out,
        "asked": choice.asked,
    }
    problems = launch_checks.problems(
        pair,
        document,
        **sets,  # type: ignore[arg-type]
        resources=choice.resources,
        kept_scores=choice.kept_scores,
    )
    readable = not any(one.code == "launch.prompt_set_not_ready" for one in problems)
    warned = launch_preview.warnings(pair, document, **sets) if readable else []  # type: ignore[arg-type]
    warned += machines.misfits(choice.resources or {})
    return Review(
        problems=problems,
        warnings=warned,
        needs=estimates.of(
            pair,
            document,
            longest_prompt=launch_preview.longest_prompt(pair, choice.train) if readable else None,
            tags=launch_preview.tag_counts(choice.train) if readable else None,
            resources=choice.resources,
        ),
        sides=launch_preview.examples(pair, choice.train) if readable else [],
        scores_bytes=scores.disk_bytes(document) if choice.keep_scores else None,
        queue_length=estimates.queue_length(),
        job=_job(choice),
        body=_body(choice),
    )


@transaction.atomic
def launch(choice: Choice, *, project: Project, actor: User) -> Run:
    """Saves the turned knobs, if any, and queues the run; raises as `runs.launch` does."""
    return runs.launch(
        actor=actor,
        project=project,
        pair=choice.pair,
        recipe=_recipe(choice, project, actor),
        train=choice.train,
        held_out=choice.held_out,
        asked=choice.asked,
        name=choice.name,
        resources=choice.resources,
        parent=choice.parent,
        relation=Run.Relation.CLONE if choice.parent else None,
        start=_start(choice),
        kept_scores=choice.kept_scores,
    )


def _start(choice: Choice) -> dict[str, Any] | None:
    """A changed copy starts where its parent did, as long as it trains the same student."""
    parent = choice.parent
    same = parent is not None and parent.pair.student_id == choice.pair.student_id
    return parent.snapshot.get("start") if parent is not None and same else None


def _recipe(choice: Choice, project: Project, actor: User) -> Recipe:
    """The chosen recipe, or a new version with the turned knobs; a preset itself stays as it is."""
    if choice.turned is None:
        return choice.recipe
    name = f"{choice.recipe.name}, adjusted" if choice.recipe.is_preset else choice.recipe.name
    document = choice.turned.model_copy(update={"name": name[:120]})
    return recipes.save_if_changed(document, project=project, actor=actor)


def _body(choice: Choice) -> str | None:
    """What the API takes to launch the same; None where turned knobs are no saved recipe yet.

    It stands between a shell's single quotes, so it holds none: a name may be somebody else's.
    """
    if choice.turned is not None:
        return None
    parts = {"pair": choice.pair, "recipe": choice.recipe, "train": choice.train}
    parts |= {"held_out": choice.held_out} if choice.held_out else {}
    parts |= dict(choice.asked.given())
    asked: dict[str, Any] = {name: part.public_id for name, part in parts.items()}
    asked |= {"name": choice.name} if choice.name else {}
    asked |= {"resources": choice.resources} if choice.resources else {}
    asked |= {"keep_scores": True} if choice.keep_scores else {}
    return json.dumps(asked, indent=2).replace("'", "\\u0027")


def _job(choice: Choice) -> str:
    """The job document that the command line takes, with the prompt sets as files beside it."""
    document = choice.document.model_dump(mode="json")
    recipe = Recipe(public_id="", version=choice.recipe.version, document=document)
    frozen = run_documents.snapshot(
        choice.pair,
        recipe,
        train=choice.train,
        held_out=choice.held_out,
        asked=choice.asked,
    )
    frozen["scores"] = choice.kept_scores
    frozen["serving"] = serving.frozen(choice.pair.project, choice.resources or {}, choice.document)
    run = Run(public_id="my-run", attempt=1, snapshot=frozen, resources=choice.resources or {})
    held_out = Path("held-out.jsonl") if choice.held_out else None
    others = {role: Path(f"{role.replace('_', '-')}.jsonl") for role, _ in choice.asked.sets()}
    files = LocalFiles(train=Path("train.jsonl"), held_out=held_out, **others)
    job = run_documents.job_document(run, files)
    return job.model_dump_json(indent=2, exclude_defaults=True)
