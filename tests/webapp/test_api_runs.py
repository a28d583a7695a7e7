"""Runs over the API: the row, then the reply."""

import json
from datetime import timedelta

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.utils import timezone

from opdcore.contract.events import metrics
from tests.webapp.callers import errors_of, post, with_token
from tests.webapp.rows import make_pair, make_prompt_set, make_recipe, make_run
from tests.workers.rows import Scribe, make_running
from webapp.models import Artifact, AuditEntry, Run

RUNS = "/api/runs"


@pytest.fixture
def client(member):
    return with_token(member)


def test_a_launch_gives_the_queued_run(project, member, client):
    rows = {"pair": make_pair(project), "recipe": make_recipe(project)}
    rows["train"], rows["held_out"] = make_prompt_set(project), make_prompt_set(project, "held out")
    body = {name: row.public_id for name, row in rows.items()}
    resources = {"train": {"kind": "cuda"}}
    answer = post(client, RUNS, {**body, "name": "First", "resources": resources})
    assert answer.status_code == 201, answer.content
    run = Run.objects.get()
    assert (run.name, run.created_by, run.held_out_set) == ("First", member, rows["held_out"])
    assert run.resources["train"] == {
        "kind": "cuda",
        "count": 1,
        "memory_bytes": None,
        "memory_share": None,
        "threads": None,
        "served": False,
        "endpoint": None,
    }
    told = answer.json()
    assert told["public_id"] == run.public_id
    assert (told["status"], told["steps_total"], told["created_by"]) == ("queued", 3, "member")
    assert told["recipe"] == {
        "public_id": rows["recipe"].public_id,
        "name": "Sums",
        "version": 1,
    }
    assert told["snapshot"]["prompt_sets"]["held_out"]["name"] == "held out"
    assert told["overlap_ratio"] is None
    assert AuditEntry.objects.get(verb="launch").actor == member


def test_a_refused_launch_lists_every_reason(project, client):
    body = {
        "pair": make_pair(project, token_map_report={
            "verdict": "different", "summary": "Token 3 differs.", "shared_vocabulary": 9,
        }).public_id,
        "recipe": make_recipe(project).public_id,
        "train": make_prompt_set(project, state="importing").public_id,
    }  # fmt: skip
    found = errors_of(post(client, RUNS, body), 422)
    assert [one["code"] for one in found] == [
        "pair.token_maps_differ",
        "launch.prompt_set_not_ready",
    ]
    assert not Run.objects.exists()


def test_cancelling_a_queued_run_ends_it(project, client):
    run = make_run(project)
    answer = client.post(f"{RUNS}/{run.public_id}/cancel")
    run.refresh_from_db()
    assert run.status == "cancelled"
    assert answer.json()["status"] == "cancelled"
    again = client.post(f"{RUNS}/{run.public_id}/cancel")
    assert errors_of(again, 409)[0]["code"] == "run.ended"


def test_resuming_a_failed_run_queues_it(project, client):
    run = make_run(project, status="failed")
    assert client.post(f"{RUNS}/{run.public_id}/resume").json()["status"] == "queued"
    run.refresh_from_db()
    assert run.status == "queued"
    again = client.post(f"{RUNS}/{run.public_id}/resume")
    assert errors_of(again, 409)[0]["code"] == "run.not_resumable"


def test_a_clone_names_its_parent(project, client):
    run = make_run(project, held_out_set=make_prompt_set(project, "held out"))
    answer = post(client, f"{RUNS}/{run.public_id}/clone", {"name": "Second"})
    assert answer.status_code == 201, answer.content
    child = Run.objects.get(parent=run)
    assert (child.name, child.relation) == ("Second", "clone")
    assert answer.json()["parent"] == run.public_id


def test_pages_follow_one_another(project, client):
    shared = {"pair": make_pair(project), "recipe": make_recipe(project)}
    shared["train_set"] = make_prompt_set(project)
    made = [make_run(project, name=f"run {n}", **shared) for n in range(60)]
    first = client.get(RUNS).json()
    second = client.get(RUNS, {"after": first["next"]}).json()
    names = [row["name"] for row in first["items"] + second["items"]]
    assert names == [run.name for run in reversed(made)]
    assert second["next"] is None


def test_filters_narrow_the_list(project, client):
    running = make_run(project, name="one", status="running", tags=["night"], reward=-0.5)
    make_run(project, name="two")
    for asked in ({"status": "running"}, {"tag": "night"}, {"text": "one"}):
        found = client.get(RUNS, asked).json()["items"]
        assert [row["public_id"] for row in found] == [running.public_id], asked
    sorted_names = [row["name"] for row in client.get(RUNS, {"sort": "-reward"}).json()["items"]]
    assert sorted_names == ["one", "two"]


@pytest.mark.parametrize("asked", [{"status": "done"}, {"sort": "-size"}, {"outcome": "good"}])
def test_an_unknown_filter_is_refused_and_not_ignored(project, client, asked):
    (field,) = asked
    assert errors_of(client.get(RUNS, asked), 422)[0]["field"] == field


def test_times_are_utc_and_missing_numbers_null(project, client):
    started = timezone.now() - timedelta(minutes=1)
    run = make_run(project, status="running", started_at=started, loss=0.25)
    told = client.get(f"{RUNS}/{run.public_id}").json()
    assert told["started_at"].endswith("Z")
    assert (told["loss"], told["accuracy"], told["finished_at"]) == (0.25, None, None)


def test_series_and_events_are_those_of_the_page(project, client):
    run = make_running(project=project)
    scribe = Scribe(run)
    values = metrics({"overlap_ratio": 0.5, "loss": float("nan")})
    scribe.record(scribe.parsed(values, step=1))
    told = client.get(f"{RUNS}/{run.public_id}/series", {"keys": "overlap_ratio,loss"}).json()
    assert told["series"]["overlap_ratio"]["last"] == [0.5]
    assert told["series"]["loss"]["nonfinite"] == [1]
    everything = client.get(f"{RUNS}/{run.public_id}/series").json()
    assert set(everything["series"]) == {"overlap_ratio", "loss"}
    events = client.get(f"{RUNS}/{run.public_id}/events").json()
    assert [event["kind"] for event in events["events"]] == ["metrics"]
    later = client.get(f"{RUNS}/{run.public_id}/events", {"after": events["seq"]}).json()
    assert (later["events"], later["seq"]) == ([], events["seq"])


def test_an_unknown_metric_is_refused(project, client):
    run = make_run(project)
    answer = client.get(f"{RUNS}/{run.public_id}/series", {"keys": "overlap"})
    assert errors_of(answer, 422)[0]["field"] == "keys"


def test_artifacts_are_listed_and_fetched(project, client):
    run = make_run(project)
    key = storages["artifacts"].save("one.txt", ContentFile(b"hello"))
    fields = {"run": run, "attempt": 1, "kind": "log", "sha256": "0" * 64, "size_bytes": 5}
    kept = Artifact.objects.create(key="log/one.txt", storage_key=key, **fields)
    Artifact.objects.create(key="log/gone.txt", storage_key=key, dropped=True, **fields)
    (told,) = client.get(f"{RUNS}/{run.public_id}/artifacts").json()
    assert (told["id"], told["key"], told["size_bytes"]) == (kept.pk, "log/one.txt", 5)
    answer = client.get(f"{RUNS}/{run.public_id}/artifacts/{kept.pk}")
    assert b"".join(answer.streaming_content) == b"hello"
    assert 'filename="one.txt"' in answer["Content-Disposition"]


def test_a_page_of_runs_costs_as_many_queries_as_one_run(
    project, client, django_assert_max_num_queries
):
    for _ in range(5):
        make_run(project)
    client.get(RUNS)
    with django_assert_max_num_queries(4):
        assert len(json.loads(client.get(RUNS).content)["items"]) == 5
