"""What a launch would read, looked at before it is made: example prompts, lengths, shared prompts.

Prompt sets never change, so what was counted once is remembered. Only the start of a long set is
rendered; the job itself checks every prompt that it draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

import orjson
from django.core.cache import cache

from opdcore.contract.errors import BadInput, ErrorInfo
from opdcore.contract.prompt import Prompt
from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.contract.recipe import TrainingStage
from opdcore.contract.rendering import Rendering
from opdcore.contract.select_prompts import SelectPromptsStage
from opdcore.rendering import Renderer
from webapp.models import Pair, PromptSet, RegisteredModel
from webapp.services import pairs, prompt_sets
from webapp.services.asked_parts import NOTHING_ASKED, AskedParts
from webapp.services.checkpoints import folder_of
from webapp.services.pairs import Preview

RENDERED_ROWS = 1000
COMPARED_ROWS = 300_000
REMEMBERED_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Side:
    """The example prompt as one side reads it."""

    who: str
    model: RegisteredModel
    preview: Preview


@dataclass(frozen=True, slots=True)
class Lengths:
    """Prompt lengths in the student's tokens, of the first `rows` of a set."""

    longest: int
    too_long: int
    rows: int


def examples(pair: Pair, prompt_set: PromptSet) -> list[Side]:
    """The set's first prompt as each side reads it; sides without files at hand are left out."""
    prompt = prompt_sets.first_prompt(prompt_set)
    if prompt is None:
        return []
    ours = Rendering.model_validate(pair.student_rendering)
    found = [("Student", pair.student, pairs.preview(pair.student, ours, prompt))]
    for one in pair.teachers.all():
        rendering = Rendering.model_validate(one.rendering)
        its = pairs.preview(one.model, rendering, prompt, one.teaching.privileged)
        found.append(("Teacher", one.model, its))
    return [Side(who, model, preview) for who, model, preview in found if preview is not None]


def lengths(pair: Pair, prompt_set: PromptSet, *, most_tokens: int) -> Lengths | None:
    """How long the student's prompts are; None where its tokenizer is not at hand."""
    counts = _token_counts(pair, prompt_set)
    if not counts:
        return None
    too_long = sum(count > most_tokens for count in counts)
    return Lengths(max(counts), too_long, len(counts))


def longest_prompt(pair: Pair, prompt_set: PromptSet) -> int | None:
    """In the student's tokens; None where its tokenizer is not at hand."""
    found = lengths(pair, prompt_set, most_tokens=0)
    return found.longest if found else None


def shared_prompts(train: PromptSet, held_out: PromptSet) -> int:
    """How many held-out prompts are also in the train set, word for word."""
    if train.sha256 == held_out.sha256:
        return held_out.rows
    key = f"shared-prompts:{train.sha256}:{held_out.sha256}"
    found: int | None = cache.get(key)
    if found is None:
        known = {_fingerprint(prompt) for prompt in islice(_prompts(train), COMPARED_ROWS)}
        rows = islice(_prompts(held_out), COMPARED_ROWS)
        found = sum(_fingerprint(prompt) in known for prompt in rows)
        cache.set(key, found, REMEMBERED_SECONDS)
    return found


def prompts_with(prompt_set: PromptSet, column: str) -> int:
    """How many of the set's prompts have something in a column, such as tests or a response."""
    key = f"prompts-with-{column}:{prompt_set.sha256}"
    found: int | None = cache.get(key)
    if found is None:
        with prompt_sets.open_stored(prompt_set) as stored:
            found = sum(bool(orjson.loads(line).get(column)) for line in stored)
        cache.set(key, found, REMEMBERED_SECONDS)
    return found


def tag_sets(prompt_set: PromptSet) -> list[tuple[str, ...]]:
    """The sets of tags that the prompts have, each once."""
    key = f"tag-sets:{prompt_set.sha256}"
    found: list[tuple[str, ...]] | None = cache.get(key)
    if found is None:
        with prompt_sets.open_stored(prompt_set) as stored:
            each = {tuple(sorted(orjson.loads(line).get("tags") or ())) for line in stored}
        found = sorted(each)
        cache.set(key, found, REMEMBERED_SECONDS)
    return found


def warnings(
    pair: Pair,
    recipe: RecipeDocument,
    *,
    train: PromptSet,
    held_out: PromptSet | None,
    asked: AskedParts = NOTHING_ASKED,
) -> list[ErrorInfo]:
    """What does not forbid the launch, but should be known before it."""
    drawn = [("train", train), *asked.sets()]
    return [
        *(one for _, prompt_set in drawn for one in _of_shared(prompt_set, held_out)),
        *(one for role, each in drawn for one in _of_lengths(pair, recipe, each, role)),
        *_of_token_maps(pair),
        *_of_privileged(pair),
        *_of_verifier(recipe, held_out),
    ]


def _of_shared(train: PromptSet, held_out: PromptSet | None) -> Iterator[ErrorInfo]:
    shared = shared_prompts(train, held_out) if held_out else 0
    if held_out and shared:
        yield ErrorInfo(
            code="launch.shared_prompts",
            message=f"{shared:,} of {held_out.rows:,} held-out prompts are also in {train}.",
            remedy="The accuracy would flatter the student: choose another held-out set.",
            field="held_out",
        )


def _of_lengths(
    pair: Pair, recipe: RecipeDocument, prompt_set: PromptSet, role: str
) -> Iterator[ErrorInfo]:
    limits = [
        stage.max_prompt_tokens
        for stage in recipe.stages
        if isinstance(stage, TrainingStage | SelectPromptsStage)
    ]
    found = lengths(pair, prompt_set, most_tokens=min(limits)) if limits else None
    if found and found.too_long:
        yield ErrorInfo(
            code="launch.prompt_too_long",
            message=f"{found.too_long:,} of the first {found.rows:,} prompts of {prompt_set} are longer "
            f"than {min(limits):,} tokens; the longest has {found.longest:,}.",
            remedy="The run is refused when it draws one: raise max_prompt_tokens, or shorten them.",
            field=role,
        )


def _of_token_maps(pair: Pair) -> Iterator[ErrorInfo]:
    report = pair.token_map_report
    if report is None:
        yield ErrorInfo(
            code="pair.unchecked",
            message="The token maps are compared when the models are fetched, at the launch.",
            remedy="Register local folders to have them compared now.",
            field="pair",
        )
    elif report["verdict"] == "warning":
        yield ErrorInfo(
            code="pair.warning",
            message=report["summary"],
            remedy="A run works with this; the pair's page says what it means.",
            field="pair",
        )


def _of_privileged(pair: Pair) -> Iterator[ErrorInfo]:
    for teacher in pair.teachers.all():
        privileged = teacher.teaching.privileged
        if privileged is not None and privileged.source == "prompt":
            yield ErrorInfo(
                code="launch.privileged_per_prompt",
                message=f"{teacher.model.name} reads each prompt's own privileged text.",
                remedy="The student cannot know it in use and learns only what is likely under all of "
                "them, which usually teaches it nothing: give the teacher one rule, or reinforce on "
                "the answers.",
                field="pair",
            )


def _of_verifier(recipe: RecipeDocument, held_out: PromptSet | None) -> Iterator[ErrorInfo]:
    if recipe.evaluation.verifier == "none":
        if any(stage.kind == "reinforce" for stage in recipe.stages):
            return  # A problem, which says so itself.
        yield ErrorInfo(
            code="launch.no_verifier",
            message="The recipe has no verifier.",
            remedy="The run cannot say whether the student became more often right; alignment is "
            "still measured.",
            field="recipe",
        )
    elif held_out is not None and recipe.evaluation.verifier == "unit_tests":
        missing = held_out.rows - prompts_with(held_out, "tests")
        if missing:
            yield ErrorInfo(
                code="launch.some_tests_missing",
                message=f"{missing:,} of {held_out.rows:,} held-out prompts have no tests.",
                remedy="They are left out of the accuracy.",
                field="held_out",
            )
    elif held_out is not None and 0 < held_out.stats.get("answers", 0) < held_out.rows:
        missing = held_out.rows - held_out.stats["answers"]
        yield ErrorInfo(
            code="launch.some_answers_missing",
            message=f"{missing:,} of {held_out.rows:,} held-out prompts have no answer.",
            remedy="They are left out of the accuracy.",
            field="held_out",
        )


def _token_counts(pair: Pair, prompt_set: PromptSet) -> list[int]:
    """Lengths of the first prompts as the student reads them, remembered."""
    rendering = Rendering.model_validate(pair.student_rendering)
    made_of = (pair.student.public_id, rendering.model_dump_json(), prompt_set.sha256)
    key = "prompt-lengths:" + blake2b(repr(made_of).encode(), digest_size=16).hexdigest()
    counts: list[int] | None = cache.get(key)
    if counts is None:
        counts = _counted(pair.student, rendering, prompt_set)
        cache.set(key, counts, REMEMBERED_SECONDS)
    return counts


def _counted(model: RegisteredModel, rendering: Rendering, prompt_set: PromptSet) -> list[int]:
    try:
        folder = folder_of(model)
        if folder is None:
            return []
        renderer = Renderer.from_folder(folder, rendering)
        prompts = list(islice(_prompts(prompt_set), RENDERED_ROWS))
        return [len(rendered.ids) for rendered in renderer.render_many(prompts)]
    except BadInput:
        # The example prompt's preview names the fault.
        return []


def _prompts(prompt_set: PromptSet) -> Iterator[Prompt]:
    with prompt_sets.open_stored(prompt_set) as stored:
        for line in stored:
            yield Prompt.model_validate_json(line)


def _fingerprint(prompt: Prompt) -> bytes:
    said = prompt.prompt if prompt.messages is None else [m.content for m in prompt.messages]
    return blake2b(orjson.dumps(said), digest_size=12).digest()
