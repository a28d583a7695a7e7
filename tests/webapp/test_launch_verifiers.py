"""What a verifier needs of a launch: tests for unit_tests, a registered judge for judge."""

import json
from hashlib import sha256

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages

from opdcore.contract.errors import BadInput
from tests.webapp.rows import RECIPE, make_pair, make_prompt_set, make_recipe
from webapp.models import Run
from webapp.services import endpoints, launch_preview, run_documents, runs
from webapp.services.asked_parts import AskedParts
from workers import job_secrets

KEY = "sk-AbCdEfGhIjKlMnOpQrSt"
TESTED = {"prompt": "Write add(a, b).", "tests": ["assert add(1, 2) == 3"]}
ANSWERED = {"prompt": "1 + 1?", "answer": "2"}


def stored(project, name, rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    key = storages["prompts"].save(f"{name}.jsonl", ContentFile(lines.encode()))
    answers = sum("answer" in row for row in rows)
    return make_prompt_set(
        project, name, storage_key=key, rows=len(rows), sha256=sha256(lines.encode()).hexdigest(),
        stats={"answers": answers},
    )  # fmt: skip


def parts(project, verifier, rows):
    document = RECIPE | {"evaluation": RECIPE["evaluation"] | {"verifier": verifier}}
    return {
        "project": project,
        "pair": make_pair(project, "code"),
        "train": stored(project, "train", [TESTED]),
        "held_out": stored(project, "held", rows),
        "recipe": make_recipe(project, verifier, document=document),
    }


def test_unit_tests_without_a_test_are_refused_at_the_held_out_set(project, member):
    with pytest.raises(runs.LaunchRefused, match="No prompt of held v1 has tests") as caught:
        runs.launch(actor=member, **parts(project, "unit_tests", [ANSWERED]))
    info = caught.value.info
    assert (info.code, info.field) == ("launch.no_tests", "held_out")
    assert "column `tests`" in info.remedy
    assert not Run.objects.exists()


def test_unit_tests_need_tests_and_no_answers(project, member):
    chosen = parts(project, "unit_tests", [TESTED, ANSWERED])
    assert runs.launch(actor=member, **chosen).status == "queued"


def test_a_set_that_is_not_there_yet_is_not_looked_into(project, member):
    chosen = parts(project, "unit_tests", [ANSWERED])
    chosen["held_out"] = make_prompt_set(project, "importing", state="importing", storage_key="")
    with pytest.raises(runs.LaunchRefused) as caught:
        runs.launch(actor=member, **chosen)
    assert [problem.code for problem in caught.value.problems] == ["launch.prompt_set_not_ready"]


def test_prompts_without_tests_are_counted_before_the_launch(project):
    chosen = parts(project, "unit_tests", [TESTED, ANSWERED, ANSWERED])
    told = launch_preview.warnings(
        chosen["pair"],
        chosen["recipe"].contract,
        train=chosen["train"],
        held_out=chosen["held_out"],
    )
    (warning,) = [one for one in told if one.code == "launch.some_tests_missing"]
    assert warning.message == "2 of 3 held-out prompts have no tests."


def test_a_judge_is_asked_for_where_the_verifier_is_one(project, member):
    with pytest.raises(runs.LaunchRefused, match="no endpoint is named that it asks") as caught:
        runs.launch(actor=member, **parts(project, "judge", [ANSWERED]))
    info = caught.value.info
    assert (info.code, info.field) == ("recipe.no_judge", "judge")
    assert not Run.objects.exists()


def make_judge(project, admin):
    address = "http://judge:8000"
    return endpoints.register(
        project, "Judge", base_url=address, model="tall/judge", key=KEY, actor=admin
    )


def test_a_registered_endpoint_judges_and_its_key_is_in_the_jobs_environment_alone(
    project, member, admin, tmp_path
):
    judge = make_judge(project, admin)
    asked = AskedParts(judge=judge)
    run = runs.launch(actor=member, asked=asked, **parts(project, "judge", [ANSWERED]))
    run.attempt = 1
    job = run_documents.job_document(
        run, run_documents.LocalFiles(train=tmp_path, held_out=tmp_path)
    )
    assert job.judge.base_url == "http://judge:8000/v1"
    assert job.judge.model == "tall/judge"
    assert job_secrets.of(run) == {job.judge.key_variable: KEY}
    assert KEY not in job.model_dump_json() + json.dumps(run.snapshot)


def test_a_run_whose_judge_was_removed_says_so(project, member, admin):
    judge = make_judge(project, admin)
    asked = AskedParts(judge=judge)
    run = runs.launch(actor=member, asked=asked, **parts(project, "judge", [ANSWERED]))
    endpoints.remove(judge, actor=admin)
    run.refresh_from_db()
    with pytest.raises(BadInput, match="was removed") as caught:
        job_secrets.of(run)
    assert caught.value.info.code == "judge.removed"


def test_a_judge_that_no_recipe_asks_is_refused(project, member, admin):
    asked = AskedParts(judge=make_judge(project, admin))
    with pytest.raises(runs.LaunchRefused) as caught:
        runs.launch(actor=member, asked=asked, **parts(project, "exact", [ANSWERED]))
    assert (caught.value.info.code, caught.value.info.field) == ("job.unheeded", "judge")


@pytest.mark.parametrize(("verifier", "field"), [("unit_tests", "held_out"), ("judge", "judge")])
def test_the_form_of_a_new_run_shows_it_at_its_field(browse, member, project, verifier, field):
    chosen = parts(project, verifier, [ANSWERED])
    filled = {name: part.public_id for name, part in chosen.items() if name != "project"}
    answer = browse(member).post("/runs/new/", filled)
    assert list(answer.context["form"].errors) == [field]
    assert not Run.objects.exists()
