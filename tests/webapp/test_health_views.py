"""A run's verdict on its page: what it says, what it rests on, how it came to it, what helps."""

import html
import re

import pytest

from opdcore.contract.events import Health, StageStarted, metrics
from opdcore.contract.metrics import METRICS
from opdcore.contract.verdicts import VERDICTS
from tests.webapp.diagnoses import make_evidence, make_verdict
from tests.workers.rows import Scribe, make_running
from webapp.models import Run
from webapp.services import health, remedies
from webapp.views.run_charts import uncharted


@pytest.fixture
def run(project):
    stages = [{"kind": "distill", "steps": 20}, {"kind": "distill", "steps": 30}]
    return make_running(project=project, stages=stages)


@pytest.fixture
def scribe(run):
    return Scribe(run, steps=(20, 30))


def says(scribe, verdict, *, step, stage=0):
    scribe.record(scribe.parsed(Health(verdict=verdict), step=step, stage=stage))


def page_of(client, run, part=""):
    return client.get(f"/runs/{run.public_id}/{part}").content.decode()


def test_every_code_has_a_remedy_and_no_remedy_lacks_a_code():
    assert remedies.REMEDIES.keys() == VERDICTS.keys()
    assert all(remedy.text.endswith(".") for remedy in remedies.REMEDIES.values())


def test_the_banner_says_verdict_evidence_and_remedy(browse, viewer, run, scribe):
    evidence = (
        make_evidence("overlap_ratio", 0.412, low=0.38, high=0.44, reference=0.72, step=12),
        make_evidence("token_reward", -1.5, step=12),
    )
    says(scribe, make_verdict(evidence=evidence), step=15)
    page = page_of(browse(viewer), run)
    assert "Overlap stays low and the loss stays large" in page
    assert "STALLED_MISMATCH" in page
    assert "No-go" in page
    assert "Medium confidence" in page
    assert html.escape(remedies.of("STALLED_MISMATCH").text) in page
    words = re.sub(r"<[^>]+>|\s+", " ", page)
    assert re.search(r"Overlap ratio +0\.412 +0\.38 to 0\.44 +0\.72 +Step 12 ", words)
    assert re.search(r"Token reward +-1\.5 +nat", words)
    assert 'href="#overlap_ratio@12"' in page


def test_a_step_is_counted_from_the_start_of_the_run(run, scribe):
    evidence = (make_evidence("loss", 2.5, step=7),)
    says(scribe, make_verdict(evidence=evidence), step=9, stage=1)
    found = health.of(run)
    assert found.said.x == 29
    assert [row.x for row in found.said.rows] == [27]


def test_what_is_not_known_is_a_dash_and_never_nought(browse, viewer, run, scribe):
    says(scribe, make_verdict(evidence=(make_evidence("accuracy", None),)), step=1)
    row = page_of(browse(viewer), run, "health/").partition('class="num"><span>')[2][:40]
    assert row.startswith("–</span>")


def test_changes_are_told_oldest_first_without_what_a_later_attempt_undid(run, scribe):
    says(scribe, make_verdict("HEALTHY", "go"), step=5)
    says(scribe, make_verdict(), step=12)
    Run.objects.filter(pk=run.pk).update(attempt=2)
    again = Scribe(run, attempt=2, steps=(20, 30))
    again.record(again.parsed(StageStarted(stage_kind="distill", steps=20, resumed_from_step=10)))
    assert [turn.code for turn in health.of(run).turns] == ["HEALTHY"]
    run.refresh_from_db()
    assert run.health["code"] == "HEALTHY"
    says(again, make_verdict("OVERWRITE"), step=14)
    turns = health.of(run).turns
    assert [(turn.code, turn.x) for turn in turns] == [("HEALTHY", 5), ("OVERWRITE", 14)]


def test_a_restless_run_shows_its_newest_changes(run, scribe, monkeypatch):
    monkeypatch.setattr(health, "MOST_TURNS", 2)
    for step in range(1, 5):
        says(scribe, make_verdict("HEALTHY", "go"), step=step)
    found = health.of(run)
    assert [turn.x for turn in found.turns] == [3, 4]
    assert found.left_out == 2


def test_before_a_verdict_a_running_run_says_that_none_is_there(browse, viewer, run):
    assert "No verdict yet" in page_of(browse(viewer), run)
    Run.objects.filter(pk=run.pk).update(status="succeeded")
    assert "No verdict yet" not in page_of(browse(viewer), run, "health/")


def test_a_metric_without_a_chart_gets_one_beside_the_verdict(browse, viewer, run, scribe):
    assert [chart.keys for chart in uncharted(["loss", "initial_kl", "hand_off_min"])] == [
        "initial_kl"
    ]
    says(scribe, make_verdict(evidence=(make_evidence("initial_kl", 0.5, step=1),)), step=2)
    assert 'keys="initial_kl"' in page_of(browse(viewer), run)


def test_every_metric_that_evidence_can_name_has_a_place_to_link_to():
    charted = {key for chart in uncharted(METRICS) for key in chart.keys.split(",")}
    assert "overlap_ratio" not in charted
    assert "student_logprob" in charted


def test_a_strangers_verdict_is_not_found(browse, stranger, run, scribe):
    says(scribe, make_verdict(), step=1)
    for part in ("health/", "diagnosis/"):
        assert browse(stranger).get(f"/runs/{run.public_id}/{part}").status_code == 404


def test_words_of_a_verdict_are_no_markup(browse, viewer, run, scribe):
    verdict = make_verdict().model_copy(update={"explanation": "<b>Bold</b>. Two."})
    says(scribe, verdict, step=1)
    assert "&lt;b&gt;Bold" in page_of(browse(viewer), run)


def test_a_page_of_metrics_and_verdict_stays_within_its_queries(
    browse, viewer, run, scribe, django_assert_max_num_queries
):
    for step in range(1, 6):
        scribe.record(scribe.parsed(metrics({"loss": 1.0}), step=step))
        says(scribe, make_verdict("HEALTHY", "go"), step=step)
    client = browse(viewer)
    with django_assert_max_num_queries(8):
        client.get(f"/runs/{run.public_id}/health/")
