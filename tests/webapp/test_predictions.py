"""What a run was predicted to take, kept as launched and shown beside what it took."""

import json

import pytest

from opdcore.contract.events import metrics
from tests.webapp.rows import make_run
from tests.webapp.test_run_launch import form_of, make_card, parts  # noqa: F401 (a fixture)
from tests.workers.rows import Scribe, make_running
from webapp.models import PairTeacher, Run
from webapp.services import estimates, predictions
from webapp.services.predictions import Amount, Prediction

MADE = Prediction(
    peak_memory_bytes=400_000_000,
    memory=(Amount(label="student weights", amount=400_000_000.0),),
    disk_bytes=20_000_000,
    disk=(Amount(label="output", amount=20_000_000.0),),
    seconds=100.0,
    device="cpu",
    basis="from the models' sizes; rough",
)


def with_cards(pair):
    for model in (pair.student, pair.teachers.get().model):
        model.card = make_card() | {"context_length": 100_000}
        model.save()


def test_a_launch_keeps_the_prediction_that_its_check_shows(browse, member, parts):  # noqa: F811
    with_cards(parts["pair"])
    page = browse(member).post("/runs/new/check/", form_of(parts)).content.decode()
    answer = browse(member).post("/runs/new/", form_of(parts))
    assert answer.status_code == 302, answer.content.decode()
    made = predictions.of(Run.objects.get())
    assert made.seconds > 0
    assert made.peak_memory_bytes == pytest.approx(sum(row.amount for row in made.memory), abs=1)
    assert made.disk_bytes == pytest.approx(sum(row.amount for row in made.disk), abs=1)
    assert f"{made.peak_memory_bytes / 1e6:.0f} MB" in page


def test_roles_of_their_own_devices_are_told_apart_and_endpoints_take_nothing(project, parts):  # noqa: F811
    pair, recipe = parts["pair"], parts["recipe"].contract
    with_cards(pair)
    pair = type(pair).objects.get(pk=pair.pk)
    served = {"kind": "cuda", "served": True}
    found = {
        name: estimates.of(pair, recipe, resources=resources).memory
        for name, resources in {
            "here": {},
            "server": {"teacher": served, "sample": served},
            "endpoint": {"teacher": served | {"endpoint": "ep.1"}},
        }.items()
    }
    labels = {name: {row.label for row in memory.memory} for name, memory in found.items()}
    assert "teacher weights" in labels["here"]
    assert "teacher weights" not in labels["server"] | labels["endpoint"]
    roles = {name: [one.role for one in memory.apart] for name, memory in found.items()}
    assert roles == {"here": [], "server": ["sample", "teacher"], "endpoint": []}


def test_servers_that_a_run_starts_take_their_time(project, parts):  # noqa: F811
    pair, recipe = parts["pair"], parts["recipe"].contract
    with_cards(pair)
    pair = type(pair).objects.get(pk=pair.pk)
    own, theirs = (
        estimates.of(
            pair, recipe, resources={"teacher": {"served": True, "count": 0} | more}
        ).seconds
        for more in ({}, {"endpoint": "ep.1"})
    )
    assert own - theirs == pytest.approx(estimates.SERVER_START_SECONDS)


def test_a_teacher_of_some_tags_scores_the_share_of_prompts_that_has_them(project, parts):  # noqa: F811
    pair, recipe = parts["pair"], parts["recipe"].contract
    with_cards(pair)
    model = pair.teachers.get().model
    PairTeacher.objects.create(pair=pair, model=model, position=1, tags=["sums"])
    pair = type(pair).objects.get(pk=pair.pk)

    def seconds(tags):
        found = estimates.of(pair, recipe, tags=tags).memory.time
        return next(row.amount for row in found if row.label == "teacher scoring")

    both, one = seconds({("sums",): 4}), seconds({(): 4})
    assert both == pytest.approx(2 * one)
    assert seconds({("sums",): 1, ("cups",): 3}) == pytest.approx(1.25 * one)


def test_a_pair_of_unknown_shapes_is_launched_without_a_prediction(browse, member, parts):  # noqa: F811
    browse(member).post("/runs/new/", form_of(parts))
    run = Run.objects.get()
    assert run.predicted is None
    assert predictions.compared(run) == []


@pytest.mark.django_db
def test_a_run_keeps_the_highest_memory_that_any_step_told():
    run = make_running()
    scribe = Scribe(run)
    for step, peak in ((1, 300.0), (2, 500.0), (3, 400.0)):
        scribe.record(scribe.parsed(metrics({"peak_memory_bytes": peak}), step=step))
    scribe.record(scribe.parsed(metrics({"loss": 1.0}), step=4))
    run.refresh_from_db()
    assert run.peak_memory_bytes == 500


def test_details_and_api_tell_predicted_beside_measured(browse, viewer, project):
    run = make_running(
        project=project,
        predicted=MADE.model_dump(mode="json"),
        peak_memory_bytes=440_000_000,
        disk_bytes=10_000_000,
        seconds=150.0,
    )
    ratios = {one.label: one.ratio for one in predictions.compared(run)}
    assert ratios == pytest.approx({"Peak memory": 1.1, "Disk": 0.5, "Wall time": 1.5})
    page = browse(viewer).get(f"/runs/{run.public_id}/details/").content.decode()
    assert "Predicted and measured" in page
    for said in ("400 MB", "440 MB", "1.10", "20.0 MB", "10.0 MB", "0.50"):
        assert said in page
    told = json.loads(browse(viewer).get(f"/api/runs/{run.public_id}").content)
    assert told["predicted"]["peak_memory_bytes"] == 400_000_000
    assert (told["peak_memory_bytes"], told["disk_bytes"]) == (440_000_000, 10_000_000)


def test_a_run_from_before_predictions_shows_none(browse, viewer, project):
    run = make_running(project=project, peak_memory_bytes=440_000_000)
    page = browse(viewer).get(f"/runs/{run.public_id}/details/").content.decode()
    assert "Predicted and measured" not in page
    told = json.loads(browse(viewer).get(f"/api/runs/{run.public_id}").content)
    assert told["predicted"] is None


def test_what_is_not_measured_yet_has_no_ratio(project):
    run = make_run(project, predicted=MADE.model_dump(mode="json"))
    memory, disk, time = predictions.compared(run)
    assert (memory.ratio, disk.ratio, time.ratio) == (None, None, None)
    assert memory.shares == (100.0, 0.0)
