"""Rescues over the API: the plan as it is, as somebody changed it, and the proof."""

import pytest

from tests.webapp.callers import errors_of, post, with_token
from tests.webapp.rescues import end_well, keep_checkpoint, make_failing
from webapp.models import Run
from webapp.services import proofs, rescues

RUNS = "/api/runs"


@pytest.fixture
def client(member):
    return with_token(member)


def test_a_plan_is_read_and_accepted_with_its_control_arm(project, member, client):
    run = make_failing(project, member)
    keep_checkpoint(run, 10)
    planned = client.get(f"{RUNS}/{run.public_id}/rescue").json()
    assert planned["verdict"]["code"] == "STALLED_MISMATCH"
    assert planned["recipe"]["stages"][0]["kind"] == "cold_start"
    answer = post(client, f"{RUNS}/{run.public_id}/rescue", {"control": True})
    assert answer.status_code == 201, answer.content
    assert (answer.json()["relation"], answer.json()["parent"]) == ("rescue", run.public_id)
    assert sorted(run.children.values_list("relation", flat=True)) == ["control", "rescue"]


def test_a_changed_recipe_is_what_is_launched(project, member, client):
    run = make_failing(project, member)
    recipe = client.get(f"{RUNS}/{run.public_id}/rescue").json()["recipe"]
    recipe["stages"][1]["steps"] = 7
    told = post(client, f"{RUNS}/{run.public_id}/rescue", {"recipe": recipe}).json()
    child = Run.objects.get(public_id=told["public_id"])
    assert child.snapshot["recipe"]["document"]["stages"][1]["steps"] == 7
    assert [one["path"] for one in child.snapshot["lineage"]["edited"]] == ["stages.1.steps"]


def test_what_no_recipe_cures_is_a_refusal_with_what_helps(project, member, client):
    run = make_failing(project, member, code="NO_NEW_KNOWLEDGE")
    planned = client.get(f"{RUNS}/{run.public_id}/rescue").json()
    assert planned["recipe"] is None
    assert {offer["kind"] for offer in planned["offers"]} >= {"other_teacher"}
    (fault,) = errors_of(post(client, f"{RUNS}/{run.public_id}/rescue", {}), 422)
    assert fault["code"] == "rescue.no_cure"
    assert not run.children.exists()


def test_strangers_and_viewers_rescue_nothing(project, member, stranger, viewer):
    run = make_failing(project, member)
    address = f"{RUNS}/{run.public_id}/rescue"
    assert with_token(stranger).get(address).status_code == 404
    errors_of(post(with_token(viewer), address, {}), 403)
    assert not run.children.exists()


def test_a_proof_tells_every_arm(project, member, client):
    child = rescues.accept(make_failing(project, member), actor=member)
    end_well(child)
    proofs.update(child.pk)
    told = client.get(f"{RUNS}/{child.public_id}/proof").json()
    assert told["proof"]["code"] == "rescued"
    assert [arm["name"] for arm in told["arms"]] == ["parent", "rescue"]
    assert told["arms"][1]["run"] == child.public_id
    assert client.get(f"{RUNS}/{child.parent.public_id}/proof").status_code == 404
