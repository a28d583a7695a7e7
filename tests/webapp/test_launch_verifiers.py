"""What a verifier needs of a launch: tests for unit_tests, a registered judge for judge."""

import json
from hashlib import sha256

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages

from tests.webapp.rows import RECIPE, make_pair, make_prompt_set, make_recipe
from webapp.models import Run
from webapp.services import launch_preview, runs

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


def test_a_judge_is_refused_since_none_can_be_registered(project, member):
    with pytest.raises(runs.LaunchRefused, match="no judge can be registered here yet") as caught:
        runs.launch(actor=member, **parts(project, "judge", [ANSWERED]))
    info = caught.value.info
    assert (info.code, info.field) == ("launch.no_judge", "recipe")
    assert not Run.objects.exists()


@pytest.mark.parametrize(("verifier", "field"), [("unit_tests", "held_out"), ("judge", "recipe")])
def test_the_form_of_a_new_run_shows_it_at_its_field(browse, member, project, verifier, field):
    chosen = parts(project, verifier, [ANSWERED])
    filled = {name: part.public_id for name, part in chosen.items() if name != "project"}
    answer = browse(member).post("/runs/new/", filled)
    assert list(answer.context["form"].errors) == [field]
    assert not Run.objects.exists()
