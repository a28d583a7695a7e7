"""A run's page, its parts, its data and its downloads."""

import io
import json
import zipfile
from typing import get_args

import pytest

from opdcore.contract.errors import ErrorInfo
from opdcore.contract.events import (
    ArtifactKind,
    Evaluated,
    JobFinished,
    JobStarted,
    Logged,
    metrics,
)
from opdcore.contract.metrics import METRICS, POSITION_METRICS
from opdcore.contract.positions import Positions
from tests.webapp.rescues import keep_file
from tests.workers.rows import Scribe, make_running
from webapp.models import Comment
from webapp.services import run_files, run_report
from webapp.views.run_charts import GROUPS, groups_of

PARTS = (
    "",
    "status/",
    "figures/",
    "health/",
    "diagnosis/",
    "samples/",
    "log/",
    "artifacts/",
    "details/",
)
DATA = ("series.json?keys=loss", "positions.json?keys=overlap_ratio")
ACTIONS = (
    "register-output",
    "cancel",
    "resume",
    "clone",
    "replay",
    "rename",
    "notes",
    "tags",
    "comments",
    "review",
)


@pytest.fixture
def run(project):
    run = make_running(project=project)
    scribe = Scribe(run)
    line = scribe.parsed
    scribe.record(
        line(
            JobStarted(device="cpu", versions={"torch": "2.13"}, steps_by_stage=(20,)), stage=None
        ),
        line(evaluated("student", accuracy=0.2, accuracy_low=0.1, accuracy_high=0.3), step=0),
        line(evaluated("teacher", teacher_accuracy=0.9), step=0),
        line(metrics({"loss": 0.5, "overlap_ratio": 0.7}), step=1),
        line(positions(0.7), step=1),
        line(metrics({"loss": float("nan"), "overlap_ratio": 0.8}), step=2),
        line(positions(0.8), step=2),
        line(evaluated("student", accuracy=0.6, accuracy_low=0.5, accuracy_high=0.7), step=2),
        line(Logged(level="warning", message="38 % were cut"), step=2),
    )
    run.refresh_from_db()
    return run


def evaluated(role, **values):
    return Evaluated(role=role, prompts=8, samples_per_prompt=1, verifier="exact", values=values)


def positions(value):
    columns = dict.fromkeys(POSITION_METRICS, (value, None))
    return Positions(edges=(0, 16, 32), positions=(9, 0), values=columns)


def test_every_part_answers_a_viewer(browse, viewer, run):
    client = browse(viewer)
    for part in (*PARTS, *DATA):
        assert client.get(f"/runs/{run.public_id}/{part}").status_code == 200, part


def test_no_part_answers_a_stranger(browse, stranger, run):
    output = keep_file(run, "output/model.safetensors", b"w", kind="output")
    client = browse(stranger)
    for part in (*PARTS, *DATA, "output/", f"artifacts/{output.pk}/", "trace.json"):
        assert client.get(f"/runs/{run.public_id}/{part}").status_code == 404, part


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_wants_a_post_and_a_role(browse, member, viewer, run, action):
    address = f"/runs/{run.public_id}/{action}/"
    assert browse(member).get(address).status_code == 405
    form = {"name": "x", "text": "x", "review": "approved", "add": "x", "notes": "x"}
    assert browse(viewer).post(address, form).status_code == 403
    run.refresh_from_db()
    assert (run.name, run.status, run.tags, run.notes) == (run.name, "running", [], "")
    assert not Comment.objects.exists()


@pytest.mark.parametrize("action", ACTIONS)
def test_no_action_reaches_a_stranger(browse, stranger, run, action):
    assert browse(stranger).post(f"/runs/{run.public_id}/{action}/").status_code == 404


def test_the_page_shows_what_the_database_knows(browse, member, run):
    page = browse(member).get(f"/runs/{run.public_id}/").content.decode()
    assert f'after="{run.last_seq}"' in page
    assert 'steps-by-stage="20"' in page
    assert "60.0 %" in page  # accuracy of the last evaluation


def test_charts_show_metrics_of_the_table_with_a_name_for_each_line():
    groups = [*groups_of(["cold_start", "reinforce"]), *groups_of(["distill"])]
    for chart in (chart for group in groups for chart in group.charts):
        keys = chart.keys.split(",")
        assert all(key in METRICS for key in keys), chart.label
        assert len(chart.names.split(",")) == len(keys), chart.label


def test_a_stage_that_not_every_run_has_brings_its_own_charts():
    own = {title.replace("_", " ").capitalize(): title for title in ("cold_start", "reinforce")}
    for title, kind in own.items():
        (group,) = set(groups_of([kind, "distill"])) - set(GROUPS)
        assert group.title == title
    assert len(groups_of(["reinforce", "cold_start", "distill"])) == len(GROUPS) + 2
    assert groups_of(["distill"]) == GROUPS


def test_a_run_that_distils_nothing_shows_no_comparison_with_a_teacher(browse, member, project):
    stages = [{"kind": "reinforce", "steps": 20}]
    run = make_running(project=project, stages=stages, created_by=member)
    page = browse(member).get(f"/runs/{run.public_id}/").content.decode()
    assert "reward_mean" in page
    assert not {one for one in ("overlap_ratio", "token_reward", "<position-view") if one in page}


def test_series_count_what_is_not_finite(browse, viewer, run):
    answer = browse(viewer).get(f"/runs/{run.public_id}/series.json?keys=loss&points=10").json()
    assert answer["seq"] == run.last_seq
    loss = answer["series"]["loss"]
    assert (loss["x"], loss["last"], loss["nonfinite"]) == ([1, 2], [0.5, None], [0, 1])


@pytest.mark.parametrize("wrong", ["keys=nonsense", "keys=loss&points=0", "keys=loss&points=x"])
def test_a_wrong_question_for_series_is_told_so(browse, viewer, run, wrong):
    answer = browse(viewer).get(f"/runs/{run.public_id}/series.json?{wrong}")
    assert answer.status_code == 400
    assert "cannot be used" in answer.json()["error"]


def test_evaluations_are_the_first_the_last_and_the_teachers(run):
    found = run_report.evaluations(run)
    assert (found.before.value, found.last.value, found.teacher.value) == (0.2, 0.6, 0.9)
    assert (found.last.low, found.last.high) == (0.5, 0.7)


def test_the_log_says_what_happened_in_order(browse, viewer, run):
    lines = [line.text for line in run_report.log(run)]
    assert lines[0] == "The job started on cpu."
    assert "step 2: 38 % were cut" in lines
    assert "The teacher answered 8 held-out prompts: accuracy 90.0%." in lines


def test_the_last_line_names_the_error(run):
    error = ErrorInfo(code="train.nan", message="loss is nan", remedy="Lower it.")
    scribe = Scribe(run)
    scribe.line = 100
    scribe.record(scribe.parsed(JobFinished(status="failed", error=error), stage=None))
    assert run_report.log(run)[-1].text == "Failed: loss is nan [train.nan]"


def test_the_status_is_sent_again_only_when_it_changed(browse, viewer, run):
    client = browse(viewer)
    seen = client.get(f"/runs/{run.public_id}/").context["fingerprint"]
    address = f"/runs/{run.public_id}/status/?seen={seen}"
    assert client.get(address).status_code == 204
    type(run).objects.filter(pk=run.pk).update(status="failed", error=ErrorInfo(
        code="x.y", message="It broke.", remedy="Mend it.").model_dump())  # fmt: skip
    answer = client.get(address)
    assert answer.status_code == 200
    assert b"Mend it." in answer.content


def test_a_file_is_downloaded_as_it_is(browse, viewer, run):
    artifact = keep_file(run, "checkpoints/a.bin", b"0123")
    answer = browse(viewer).get(f"/runs/{run.public_id}/artifacts/{artifact.pk}/")
    assert b"".join(answer.streaming_content) == b"0123"
    assert answer["Content-Disposition"] == 'attachment; filename="a.bin"'


def test_a_file_is_not_found_under_another_run(browse, viewer, run, project):
    artifact = keep_file(run, "checkpoints/b.bin", b"0")
    other = make_running(project=project)
    answer = browse(viewer).get(f"/runs/{other.public_id}/artifacts/{artifact.pk}/")
    assert answer.status_code == 404


def test_every_kind_of_file_has_a_heading():
    assert set(run_files.NAMES) == set(get_args(ArtifactKind))


def test_files_stand_by_kind_the_output_first(browse, viewer, run):
    keep_file(run, "checkpoints/1/state.json", b"{}")
    keep_file(run, "output/config.json", b"{}", kind="output")
    page = browse(viewer).get(f"/runs/{run.public_id}/artifacts/").content.decode()
    assert page.index("<h3>Output</h3>") < page.index("<h3>Checkpoints</h3>")
    assert page.count(" open>") == 1


def test_the_output_is_one_archive(browse, viewer, run):
    keep_file(run, "output/config.json", b"{}", kind="output")
    keep_file(run, "output/model.safetensors", b"weights", kind="output")
    answer = browse(viewer).get(f"/runs/{run.public_id}/output/")
    bundle = zipfile.ZipFile(io.BytesIO(b"".join(answer.streaming_content)))
    contents = {name.rsplit("/", 1)[-1]: bundle.read(name) for name in bundle.namelist()}
    assert contents == {"config.json": b"{}", "model.safetensors": b"weights"}


def test_a_run_is_renamed_where_it_stands(browse, member, run):
    answer = browse(member).post(f"/runs/{run.public_id}/rename/", {"name": "Sweep <3>"})
    run.refresh_from_db()
    assert run.name == "Sweep <3>"
    assert b"Sweep &lt;3&gt;" in answer.content
    refused = browse(member).post(f"/runs/{run.public_id}/rename/", {"name": " "})
    assert b"The name is empty. Give a name." in refused.content


def test_tags_are_added_and_taken_away(browse, member, run):
    client, address = browse(member), f"/runs/{run.public_id}/tags/"
    client.post(address, {"add": "a, b"})
    client.post(address, {"remove": "a"})
    run.refresh_from_db()
    assert run.tags == ["b"]
    assert b"is too long" in client.post(address, {"add": "x" * 41}).content


def test_comments_notes_and_review_are_kept(browse, member, run):
    client, address = browse(member), f"/runs/{run.public_id}/"
    said = client.post(f"{address}comments/", {"text": "Overlap stalls."})
    assert b"Overlap stalls." in said.content
    comment = Comment.objects.get()
    client.post(f"{address}comments/{comment.pk}/", {"text": "It rose."})
    client.post(f"{address}notes/", {"notes": "k = 16"})
    client.post(f"{address}review/", {"review": "approved"})
    run.refresh_from_db()
    comment.refresh_from_db()
    assert (comment.text, run.notes, run.review) == ("It rose.", "k = 16", "approved")
    assert run.reviewed_by == member


def test_nobody_edits_anothers_comment(browse, member, maintainer, run):
    comment = Comment.objects.create(run=run, author=member, text="Mine.")
    address = f"/runs/{run.public_id}/comments/{comment.pk}/"
    answer = browse(maintainer).post(address, {"text": "Yours."})
    comment.refresh_from_db()
    assert comment.text == "Mine."
    assert b"Answer it with one of your own." in answer.content


def test_cancel_asks_the_run_to_stop(browse, member, run):
    page = browse(member).post(f"/runs/{run.public_id}/cancel/", follow=True)
    run.refresh_from_db()
    assert run.cancel_requested_at is not None
    assert b"Stopping" in page.content


def test_a_run_that_is_stopping_is_not_shown_as_paused(browse, member, run):
    client = browse(member)
    client.post(f"/runs/{run.public_id}/cancel/")
    for address in (f"/runs/{run.public_id}/status/", f"/runs/{run.public_id}/row/"):
        text = client.get(address).content.decode()
        assert "Stopping" in text
        assert "paused" not in text.lower()


def test_resume_queues_a_failed_run_and_refuses_others(browse, member, run):
    refused = browse(member).post(f"/runs/{run.public_id}/resume/", follow=True)
    assert b"Only a failed, cancelled or paused run can be resumed" in refused.content
    type(run).objects.filter(pk=run.pk).update(status="failed")
    browse(member).post(f"/runs/{run.public_id}/resume/")
    run.refresh_from_db()
    assert run.status == "queued"


def test_model_output_is_only_ever_text(browse, viewer, run):
    scribe = Scribe(run)
    scribe.line = 50
    scribe.record(scribe.parsed(Logged(level="info", message="<script>alert(1)</script>")))
    assert b"<script>alert" not in browse(viewer).get(f"/runs/{run.public_id}/log/").content


def test_details_show_recipe_and_versions(browse, viewer, run):
    page = browse(viewer).get(f"/runs/{run.public_id}/details/").content.decode()
    assert "kind: distill" in page
    assert "2.13" in page


def test_a_grid_of_positions_keeps_nulls(browse, viewer, run):
    address = f"/runs/{run.public_id}/positions.json?keys=overlap_ratio"
    grid = json.loads(browse(viewer).get(address).content)["grids"][0]
    assert grid["x"] == [1, 2]
    assert grid["values"]["overlap_ratio"] == [[0.7, None], [0.8, None]]
