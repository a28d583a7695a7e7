"""A pair's diagnosis: kept from a job's event, launched from the pair's page, read as a matrix."""

from datetime import UTC, datetime, timedelta

import pytest

from opdcore.contract.verdicts import VERDICTS
from tests.webapp.diagnoses import DIAGNOSE, make_diagnosis, make_prompts, measure
from tests.webapp.rows import make_model, make_pair
from tests.workers.rows import Scribe, make_running
from webapp.models import PairDiagnosis, Project, Recipe, Run
from webapp.services import diagnoses, diagnosis_report

CARD = {"weights_fingerprint": "a1"}


@pytest.fixture
def run(project):
    return make_running(project=project, stages=[DIAGNOSE])


def record(run, diagnosis):
    scribe = Scribe(run, attempt=run.attempt, steps=(0,))
    scribe.line = run.last_seq
    scribe.record(scribe.parsed(diagnosis))
    run.refresh_from_db()


def form_of(prompt_set, **changes):
    chosen = {
        "prompt_set": prompt_set.public_id,
        "verifier": "exact",
        "goal": "acquire",
        "prompts": "32",
        "rollouts_per_prompt": "4",
        "max_response_tokens": "128",
        "relation": "descendant",
    }
    return chosen | changes


def test_a_diagnosis_becomes_the_pairs_verdict_for_its_prompts_and_goal(run):
    record(run, make_diagnosis())
    kept = PairDiagnosis.objects.get()
    assert (kept.pair, kept.prompt_set, kept.goal) == (run.pair, run.train_set, "acquire")
    assert (kept.run, kept.code, kept.prompts) == (run, "PATTERN_MISMATCH", 32)
    assert kept.contract.confidence == "high"
    assert run.health["code"] == "PATTERN_MISMATCH"


def test_the_newest_diagnosis_takes_the_place_of_an_older_one(run):
    record(run, make_diagnosis())
    record(run, make_diagnosis("GO", "go"))
    assert [row.code for row in PairDiagnosis.objects.all()] == ["GO"]


def test_an_older_diagnosis_that_arrives_late_changes_nothing(run):
    record(run, make_diagnosis())
    diagnoses.keep(run.pk, make_diagnosis("GO", "go"), at=datetime.now(UTC) - timedelta(days=1))
    assert [row.code for row in PairDiagnosis.objects.all()] == ["PATTERN_MISMATCH"]


def test_a_verdict_is_of_older_weights_once_a_model_changed(run):
    for model in (run.pair.student, run.pair.teachers.get().model):
        model.card = CARD
        model.save()
    run.snapshot |= {"student": {"card": CARD}, "teachers": [{"card": CARD}]}
    run.save()
    record(run, make_diagnosis())
    assert [one.is_stale for one in diagnoses.latest(run.pair)] == [False]
    run.pair.student.card = {"weights_fingerprint": "b2"}
    run.pair.student.save()
    assert [one.is_stale for one in diagnoses.latest(run.pair)] == [True]


def test_the_report_groups_the_measures_and_keeps_gaps(run):
    record(run, make_diagnosis())
    report = diagnosis_report.of(run)
    assert [group.title for group in report.groups] == ["Alignment", "Knowledge", "Format"]
    rows = {row.key: row for group in report.groups for row in group.rows}
    assert rows.keys() == report.probe.measures.keys()
    assert (rows["overlap_ratio"].track.at, rows["overlap_ratio"].track.zero) == (38.0, 0.0)
    assert (rows["accuracy_gap"].track.at, rows["accuracy_gap"].track.zero) == (75.0, 50.0)
    assert rows["reverse_kl"].track is None
    assert rows["reward_auroc"].measure.value is None
    assert rows["reward_auroc"].track is None
    assert [row.label for row in report.hand_off.rows] == ["25 %", "50 %", "75 %"]
    assert report.chunks.rows[0][3] == (0.44, None)


def test_a_measure_that_nobody_knows_is_shown_all_the_same(run):
    record(run, make_diagnosis(measures={"new_measure": measure(0.5)}))
    (group,) = diagnosis_report.of(run).groups
    assert [row.label for row in group.rows] == ["New measure"]


def test_the_runs_page_reads_as_a_report(browse, viewer, run):
    record(run, make_diagnosis())
    page = browse(viewer).get(f"/runs/{run.public_id}/").content.decode()
    assert VERDICTS["PATTERN_MISMATCH"].meaning.rstrip(".") in page
    assert 'href="#measure-effective_overlap"' in page
    assert 'id="measure-effective_overlap"' in page
    assert "The student stops at 1, the teacher at 1 and 7." in page
    assert "5,120" in page
    assert "series-chart" not in page.partition("<body")[2]


def test_a_pair_without_a_diagnosis_says_what_one_is_and_costs(browse, member, viewer, project):
    pair = make_pair(project)
    make_prompts(project, rows=10)
    page = browse(member).get(f"/pairs/{pair.public_id}/").content.decode()
    assert "Not diagnosed yet" in page
    assert "tokens are written" in page
    assert 'action="/pairs/' in page
    seen = browse(viewer).get(f"/pairs/{pair.public_id}/").content.decode()
    assert "Not diagnosed yet" in seen
    assert f"/pairs/{pair.public_id}/diagnose/" not in seen


def test_the_pairs_page_shows_the_verdict_its_age_and_the_run_behind_it(
    browse, viewer, run, project
):
    run.train_set = make_prompts(project)
    run.save()
    record(run, make_diagnosis())
    page = browse(viewer).get(f"/pairs/{run.pair.public_id}/").content.decode()
    assert "Teacher and student think in different ways" in page
    assert f'href="/runs/{run.public_id}/"' in page
    assert "time-ago" in page
    assert "goal acquire" in page


def test_diagnose_launches_a_run_of_one_stage(browse, member, project):
    pair, prompts = make_pair(project), make_prompts(project)
    answer = browse(member).post(f"/pairs/{pair.public_id}/diagnose/", form_of(prompts))
    run = Run.objects.get()
    assert answer["Location"] == f"/runs/{run.public_id}/"
    assert (run.status, run.pair, run.train_set, run.held_out_set) == (
        "queued", pair, prompts, None,
    )  # fmt: skip
    document = run.recipe.contract
    (stage,) = document.stages
    assert (stage.kind, stage.prompts, stage.relation) == ("diagnose", 32, "descendant")
    assert stage.tiers == ("static", "scored", "hand_off")
    assert (document.goal.kind, document.evaluation.verifier) == ("acquire", "exact")
    assert run.steps_total == 0


def test_the_same_diagnosis_again_makes_no_second_recipe(browse, member, project):
    pair, prompts = make_pair(project), make_prompts(project)
    client = browse(member)
    for prompts_asked in ("32", "64", "32"):
        form = form_of(prompts, prompts=prompts_asked)
        client.post(f"/pairs/{pair.public_id}/diagnose/", form)
    assert Run.objects.count() == 3
    assert Recipe.objects.count() == 2


def test_without_a_verifier_nobody_hands_off(browse, member, project):
    pair, prompts = make_pair(project), make_prompts(project, stats={"answers": 0})
    form = form_of(prompts, verifier="none")
    browse(member).post(f"/pairs/{pair.public_id}/diagnose/", form)
    assert Run.objects.get().recipe.contract.stages[0].tiers == ("static", "scored")


def test_token_maps_that_differ_are_a_finding_and_no_refusal(browse, member, project):
    report = {"verdict": "different", "summary": "48 ids differ.", "shared_vocabulary": 90}
    pair = make_pair(project, token_map_report=report | {"teachers": {}})
    browse(member).post(f"/pairs/{pair.public_id}/diagnose/", form_of(make_prompts(project)))
    assert Run.objects.count() == 1


@pytest.mark.parametrize(
    "case",
    [
        ("prompts", {"prompts": "4"}, "Give at least 8"),
        ("max_response_tokens", {"max_response_tokens": "many"}, "no whole number"),
        ("verifier", {"verifier": "guess"}, "is no choice here"),
        ("goal", {"goal": "win"}, "is no choice here"),
        ("relation", {"relation": "cousin"}, "is no choice here"),
        ("prompt_set", {"prompt_set": "nonsense"}, "not one of the available choices"),
    ],
)
def test_what_is_unsound_is_told_at_its_field_and_launches_nothing(browse, member, project, case):
    field, wrong, told = case
    pair, prompts = make_pair(project), make_prompts(project)
    answer = browse(member).post(f"/pairs/{pair.public_id}/diagnose/", form_of(prompts) | wrong)
    assert answer.status_code == 422
    assert told in str(answer.context["form"].errors[field])
    assert not Run.objects.exists()


def test_prompts_without_answers_cannot_be_graded(browse, member, project):
    pair, prompts = make_pair(project), make_prompts(project, stats={"answers": 0})
    answer = browse(member).post(f"/pairs/{pair.public_id}/diagnose/", form_of(prompts))
    assert answer.status_code == 422
    assert "has an answer" in str(answer.context["form"].errors["prompt_set"])


def test_the_cost_follows_the_form(browse, member, project):
    pair, prompts = make_pair(project), make_prompts(project, rows=10)
    address = f"/pairs/{pair.public_id}/diagnose/cost/"
    told = browse(member).post(address, form_of(prompts)).content.decode()
    assert f"{10 * 4 * 128 * 5:,} tokens" in told
    told = browse(member).post(address, form_of(prompts, verifier="none")).content.decode()
    assert f"{10 * 4 * 128 * 2:,} tokens" in told


def test_only_who_may_launch_diagnoses(browse, viewer, stranger, project):
    pair, prompts = make_pair(project), make_prompts(project)
    address = f"/pairs/{pair.public_id}/diagnose/"
    assert browse(viewer).get(address).status_code == 405
    assert browse(viewer).post(address, form_of(prompts)).status_code == 403
    assert browse(stranger).post(address, form_of(prompts)).status_code == 404
    assert browse(stranger).post(f"{address}cost/", form_of(prompts)).status_code == 404
    assert not Run.objects.exists()


def test_prompts_of_another_project_are_no_choice(browse, member, project):
    other = Project.objects.create(name="Other", slug="other")
    pair, theirs = make_pair(project), make_prompts(other)
    answer = browse(member).post(f"/pairs/{pair.public_id}/diagnose/", form_of(theirs))
    assert answer.status_code == 422
    assert not Run.objects.exists()


def test_the_matrix_has_a_cell_for_every_student_and_teacher(run, project):
    record(run, make_diagnosis())
    other = make_pair(project, "other")
    found = diagnoses.matrix(project)
    cells = {(row.student, cell.teacher): cell for row in found.rows for cell in row.cells}
    assert len(cells) == 4
    diagnosed = cells[run.pair.student, run.pair.teachers.get().model]
    assert (diagnosed.pair, diagnosed.diagnosis.code) == (run.pair, "PATTERN_MISMATCH")
    waiting = cells[other.student, other.teachers.get().model]
    assert (waiting.pair, waiting.diagnosis) == (other, None)
    assert cells[other.student, run.pair.teachers.get().model].pair is None


def test_a_cell_tells_how_many_more_verdicts_there_are(run, project):
    record(run, make_diagnosis())
    PairDiagnosis.objects.create(
        pair=run.pair, prompt_set=make_prompts(project, "others"), goal="acquire", run=run,
        code="GO", verdict=make_diagnosis("GO", "go").verdict.model_dump(mode="json"),
        diagnosed_at=datetime.now(UTC) - timedelta(days=3),
    )  # fmt: skip
    (row,) = diagnoses.matrix(project).rows
    assert (row.cells[0].diagnosis.code, row.cells[0].others) == ("PATTERN_MISMATCH", 1)


def test_the_matrix_links_its_cells_and_offers_what_is_missing(
    browse, member, viewer, run, project
):
    record(run, make_diagnosis())
    other = make_pair(project, "other")
    page = browse(member).get("/pairs/matrix/").content.decode()
    assert f'href="/runs/{run.public_id}/"' in page
    assert "PATTERN_MISMATCH" in page
    assert f'href="/pairs/{other.public_id}/#diagnose"' in page
    assert f"/pairs/new/?student={other.student.public_id}&amp;teacher=" in page
    seen = browse(viewer).get("/pairs/matrix/").content.decode()
    assert "#diagnose" not in seen
    assert "/pairs/new/?student" not in seen


def test_the_matrix_shows_no_other_projects_pairs(browse, member, run, project):
    other = Project.objects.create(name="Other", slug="other")
    theirs = make_running(project=other, stages=[DIAGNOSE])
    record(theirs, make_diagnosis("GO", "go"))
    page = browse(member).get("/pairs/matrix/").content.decode()
    assert theirs.public_id not in page
    assert browse(member).get(f"/runs/{theirs.public_id}/diagnosis/").status_code == 404
    assert browse(member).get(f"/pairs/{theirs.pair.public_id}/").status_code == 404


def test_a_project_without_pairs_says_what_the_matrix_would_show(browse, member):
    assert b"No pairs yet" in browse(member).get("/pairs/matrix/").content


def test_a_pair_to_be_is_filled_in_from_the_matrix(browse, member, project):
    student, teacher = make_model(project, "s"), make_model(project, "t")
    address = f"/pairs/new/?student={student.public_id}&teacher={teacher.public_id}"
    forms = browse(member).get(address).context["forms"]
    assert forms.student["model"].value() == student.public_id
    assert forms.teachers[0]["model"].value() == teacher.public_id


def test_a_recipe_that_diagnoses_is_shown_and_can_be_changed(browse, member, run):
    client = browse(member)
    assert b"Hand off tokens" in client.get(f"/recipes/{run.recipe.public_id}/").content
    edited = client.get(f"/recipes/new/?from={run.recipe.public_id}")
    assert b"Provenance" in edited.content


def test_a_run_that_only_diagnoses_shows_its_verdict_and_no_outcome(browse, viewer, run):
    record(run, make_diagnosis())
    outcome = {"code": "unmeasured", "explanation": "It only diagnoses."}
    Run.objects.filter(pk=run.pk).update(status="succeeded", outcome=outcome)
    client = browse(viewer)
    assert b"It only diagnoses." not in client.get(f"/runs/{run.public_id}/").content
    assert b"PATTERN_MISMATCH" in client.get("/runs/").content
