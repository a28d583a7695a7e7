"""Selecting prompts from the web: the sets a launch asks for, and what a run's page says was chosen."""

import json

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.urls import reverse

from opdcore.contract.events import Selected
from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.contract.selection import REASONS, Choice, Selection
from tests.webapp.rows import make_pair, make_prompt_set, make_recipe
from tests.workers.rows import Scribe, make_running
from webapp.models import Artifact, Event, Pair, PromptSet, Run
from webapp.services import (
    demo,
    estimates,
    launch_checks,
    prompt_sets,
    run_documents,
    runs,
    selections,
)
from webapp.services.asked_parts import AskedParts
from webapp.services.run_documents import LocalFiles
from webapp.services.runs import LaunchRefused

KEY = "selections/stage-00-step-0000000.json"


def recipe_document(**knobs):
    stages = [{"kind": "select_prompts", **knobs}, {"kind": "distill", "steps": 3}]
    told = {"name": "Selecting", "stages": stages}
    return RecipeDocument.model_validate(told).model_dump(mode="json")


def stored(project, name, count=3):
    lines = "".join(
        json.dumps({"prompt": f"{name} {n}?", "answer": "1"}) + "\n" for n in range(count)
    )
    key = storages["prompts"].save(f"{name}.jsonl", ContentFile(lines.encode()))
    return make_prompt_set(project, name, storage_key=key, rows=count, sha256=name[:1] * 64)


@pytest.fixture
def parts(project):
    document = recipe_document(strategy="teacher_content")
    return {
        "pair": make_pair(project, "A pair"),
        "train": stored(project, "train"),
        "recipe": make_recipe(project, "Selecting", document=document),
    }


@pytest.fixture
def content(project):
    return stored(project, "content")


def form_of(parts, **changes):
    chosen = {name: part.public_id for name, part in parts.items()}
    return chosen | {"held_out": "", "device": "", "threads": "", "name": ""} | changes


def test_the_form_asks_for_the_teachers_prompts_only_where_the_recipe_selects_from_them(
    project, parts, member, browse
):
    plain = make_recipe(project, "Plain")
    for recipe, asked in ((parts["recipe"], True), (plain, False)):
        answer = browse(member).get("/runs/new/knobs/", {"recipe": recipe.public_id})
        assert (b'name="teacher_content"' in answer.content) is asked
        assert (b'name="outside"' in answer.content) is asked


def test_a_launch_takes_both_sets_into_row_snapshot_and_job(
    parts, content, project, member, browse
):
    outside = stored(project, "outside")
    sent = form_of(parts, teacher_content=content.public_id, outside=outside.public_id)
    answer = browse(member).post("/runs/new/", sent)
    run = Run.objects.get()
    assert answer.url == f"/runs/{run.public_id}/"
    assert (run.teacher_content_set, run.outside_set) == (content, outside)
    assert run.snapshot["prompt_sets"]["outside"]["name"] == "outside"
    run.attempt = 1
    files = LocalFiles(train="t.jsonl", teacher_content="c.jsonl", outside="o.jsonl")
    sets = run_documents.job_document(run, files).prompt_sets
    assert (sets.teacher_content.path, sets.teacher_content.sha256) == ("c.jsonl", "c" * 64)
    assert sets.held_out is None
    again = runs.clone(run, actor=member)
    assert (again.teacher_content_set, again.outside_set) == (content, outside)


def test_a_launch_without_the_teachers_prompts_is_refused_at_their_field(parts, member, browse):
    answer = browse(member).post("/runs/new/", form_of(parts))
    assert answer.status_code == 422
    assert b"no prompt set has that role" in answer.content
    assert not Run.objects.exists()
    checked = browse(member).post("/runs/new/check/", form_of(parts)).content.decode()
    at_field = checked.partition('id="error-teacher_content"')[2].partition("</div>")[0]
    assert "Choose prompts of the teacher" in at_field


def test_sets_that_no_stage_reads_are_refused(parts, content, project, member):
    recipe = make_recipe(project, "Plain")
    with pytest.raises(LaunchRefused) as refused:
        runs.launch(
            actor=member, project=project, pair=parts["pair"], recipe=recipe, train=parts["train"],
            asked=AskedParts(outside=content),
        )  # fmt: skip
    assert [(one.code, one.field) for one in refused.value.problems] == [
        ("job.unheeded", "outside")
    ]


def test_a_set_of_another_project_or_one_that_is_not_ready_is_refused(
    parts, content, member, project
):
    content.state = "importing"
    content.save()
    launch = {"actor": member, "project": project, **parts}
    with pytest.raises(LaunchRefused) as refused:
        runs.launch(**launch, asked=AskedParts(teacher_content=content))
    assert refused.value.problems[0].field == "teacher_content"


def test_a_set_that_a_run_selects_from_is_not_deleted(parts, content, member, maintainer, project):
    launch = {"actor": member, "project": project, **parts}
    runs.launch(**launch, asked=AskedParts(teacher_content=content))
    with pytest.raises(prompt_sets.BadInput) as refused:
        prompt_sets.delete(content, actor=maintainer)
    assert refused.value.info.code == "prompt_set.in_use"


def test_the_api_launches_with_both_sets(parts, content, member, browse):
    body = {name: part.public_id for name, part in parts.items()}
    body |= {"teacher_content": content.public_id}
    answer = browse(member).post("/api/runs", body, content_type="application/json")
    assert answer.status_code == 201
    assert answer.json()["teacher_content_set"]["public_id"] == content.public_id
    assert answer.json()["outside_set"] is None


def choices():
    """Sixty candidates of a gap: thirty kept, the rest dropped for two reasons."""
    return tuple(
        Choice(
            row=row,
            source="train",
            source_row=row,
            text=f"Question {row} <b>",
            reason="kept" if row < 30 else ("no_gap" if row < 50 else "ungraded"),
            measure=None if row >= 50 else 1 - row / 30 if row < 30 else 0.0,
            student_accuracy=0.25,
            teacher_accuracy=0.5,
        )
        for row in range(60)
    )


def publish(run, key=KEY, *, steps=0):
    selection = Selection(
        strategy="gap", steps=steps, choices=choices(), student_tokens=1200, teacher_tokens=900
    )
    body = selection.model_dump_json().encode()
    name = storages["artifacts"].save(f"{run.public_id}/{key}", ContentFile(body))
    Artifact.objects.create(
        run=run, attempt=1, kind="selection", key=key, storage_key=name, sha256="a" * 64,
        size_bytes=len(body),
    )  # fmt: skip
    told = Selected(
        key=key, strategy="gap", steps=steps, counts=selection.counts, student_tokens=1200,
        teacher_tokens=900,
    )  # fmt: skip
    tell(run, told)


SELECTING = [{"kind": "select_prompts", "strategy": "random"}, {"kind": "distill", "steps": 20}]


@pytest.fixture
def run(project):
    return make_running(project=project, stages=SELECTING)


def tell(run, payload):
    scribe = Scribe(run, steps=(0, 20))
    scribe.line = Event.objects.filter(run=run).count()
    scribe.record(scribe.parsed(payload))


def part(client, run, **query):
    return client.get(reverse("run-prompts", args=[run.public_id]), query).content.decode()


def test_the_page_has_the_part_only_where_the_recipe_selects(run, project, member, browse):
    plain = make_running(project=project)
    for one, shown in ((run, True), (plain, False)):
        page = browse(member).get(f"/runs/{one.public_id}/").content.decode()
        assert ('aria-controls="prompts"' in page) is shown


def test_kept_and_dropped_are_counted_told_and_paged(run, member, browse):
    publish(run)
    client = browse(member)
    text = part(client, run)
    for count, reason in ((30, "kept"), (20, "no_gap"), (10, "ungraded")):
        assert f"{REASONS[reason]} ({count})" in text.replace("&#x27;", "'")
    assert "Page 1 of 3" in text
    assert "Question 0 &lt;b&gt;" in text
    assert "Training prompts, row 1<" in text
    dropped = part(client, run, reason="ungraded")
    assert "Page 1 of 1" in dropped
    assert dropped.count("Question ") == 10
    assert "Question 49 " not in dropped
    assert part(client, run, page="9", inner="1").count("Question ") == 10


def test_every_reason_the_file_can_hold_has_words():
    assert set(REASONS) == set(Choice.model_fields["reason"].annotation.__args__)


def test_bars_count_every_measured_candidate_once(run):
    publish(run)
    bars = selections.show(run, KEY, reason="", page=1).bars
    assert (sum(bar.kept for bar in bars), sum(bar.dropped for bar in bars)) == (30, 20)
    assert max(bar.height for bar in bars) == 100
    assert bars[0].low == 0.0
    assert bars[-1].high == pytest.approx(1.0)


def test_a_refreshed_selection_is_shown_first_and_the_one_before_stays(run, member, browse):
    later = KEY.replace("0000000", "0000010")
    publish(run)
    publish(run, later, steps=10)
    assert [one.name for one in selections.told(run)] == [
        "Before distillation", "After 10 distillation steps"
    ]  # fmt: skip
    client = browse(member)
    assert f'value="{later}" selected' in part(client, run)
    assert f'value="{KEY}" selected' in part(client, run, selection=KEY)


def test_a_selection_that_is_told_and_not_published_yet_says_so(run, member, browse):
    assert "No prompts selected yet" in part(browse(member), run)
    tell(
        run,
        Selected(
            key=KEY, strategy="gap", steps=0, counts={"kept": 1}, student_tokens=0, teacher_tokens=0
        ),
    )
    assert "Not published yet" in part(browse(member), run)


def test_strangers_do_not_see_what_was_selected(run, stranger, browse):
    publish(run)
    answer = browse(stranger).get(reverse("run-prompts", args=[run.public_id]))
    assert answer.status_code == 404


def test_tokens_of_a_selection_count_as_the_runs_cost(run):
    publish(run)
    run.refresh_from_db()
    assert (run.student_tokens, run.teacher_tokens) == (1200, 900)


def test_the_log_says_how_many_are_kept(run, member, browse):
    publish(run)
    assert (
        "30 of 60 prompts are kept."
        in browse(member).get(f"/runs/{run.public_id}/log/").content.decode()
    )


def seeded(strategy):
    """The laboratory's pair with its prompts, and a recipe of the strategy."""
    demo.seed(tell=lambda text: None)
    pair = Pair.objects.get(name="Laboratory, sums")
    train = PromptSet.objects.get(name="sums-0 train")
    document = recipe_document(strategy=strategy, max_prompt_tokens=64, max_response_tokens=64)
    return pair, RecipeDocument.model_validate(document), train


def test_a_template_that_both_sides_share_is_refused_before_the_launch(db):
    pair, recipe, train = seeded("teacher_template")
    held_out = PromptSet.objects.get(name="sums-0 held out")
    found = launch_checks.problems(pair, recipe, train=train, held_out=held_out)
    codes = {one.code: one.field for one in found}
    assert codes["recipe.same_rendering"] == "recipe.stages.0.strategy"


def test_answers_to_candidates_are_part_of_the_time(db):
    pair, *_ = seeded("low_kl")
    none, four, eight = (
        estimates.of(pair, RecipeDocument.model_validate(recipe_document(**knobs))).seconds
        for knobs in (
            {"strategy": "random"},
            {"strategy": "low_kl", "samples_per_prompt": 4},
            {"strategy": "low_kl", "samples_per_prompt": 8},
        )
    )
    assert four > none
    assert eight - none == pytest.approx(2 * (four - none))
