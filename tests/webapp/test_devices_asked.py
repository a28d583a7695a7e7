"""Devices by role: asked for in form and API, refused where the engine cannot use them, told in words."""

import pytest
from django.utils import timezone

from tests.webapp.callers import errors_of, post, with_token
from tests.webapp.rows import make_pair, make_prompt_set, make_recipe, make_run
from webapp.forms.devices import DevicesForm
from webapp.models import Device, Lease, Worker
from webapp.services import machines, resources, usual_parts
from webapp.services.allocation import RoleNeed

GIB = 1 << 30


@pytest.fixture
def gpus(db):
    """A running worker with a processor and two GPUs of 40 GiB."""
    worker = Worker.objects.create(host="still-1", pid=41, heartbeat_at=timezone.now())
    for name, size in (("cpu:0", 64), ("cuda:0", 40), ("cuda:1", 40)):
        kind = name.partition(":")[0]
        Device.objects.create(worker=worker, name=name, kind=kind, memory_bytes=size * GIB)
    return worker


def asked(**sent):
    form = DevicesForm({"device": "", **sent})
    assert form.is_valid(), form.errors
    return form.resources()


def test_an_empty_form_asks_for_one_device_of_any_kind(gpus):
    assert asked() == {}
    assert resources.needs({}) == (RoleNeed("train", 1),)
    assert resources.words(resources.needs({})) == "a device"


def test_roles_are_asked_for_by_number_and_least_memory(gpus):
    found = asked(device="cuda", train_devices="2", train_memory="40", teacher_devices="1")
    needs = resources.needs(found)
    assert needs == (
        RoleNeed("train", 2, "cuda", 40 * GIB),
        RoleNeed("teacher", 1, "cuda"),
    )
    told = "2 GPUs of at least 40 GiB to train and a GPU for the teacher"
    assert resources.words(needs) == told


def test_memory_of_no_devices_is_refused(gpus):
    form = DevicesForm({"device": "", "sample_memory": "40"})
    assert set(form.errors) == {"sample_devices"}


@pytest.mark.parametrize(
    "sent", [{"train_devices": "0"}, {"train_memory": "-1"}, {"device": "tpu"}]
)
def test_what_is_no_number_of_devices_is_refused_at_its_field(gpus, sent):
    assert set(DevicesForm({"device": "", **sent}).errors) == set(sent)


def test_roles_are_offered_only_where_there_is_something_to_divide(gpus):
    assert DevicesForm().offers_roles
    Device.objects.exclude(name="cpu:0").delete()
    assert not DevicesForm().offers_roles
    assert DevicesForm(initial={"train_devices": "2"}).offers_roles


def test_a_changed_copy_asks_for_the_same(project, gpus):
    sent = {"device": "cuda", "train_memory": "40", "teacher_devices": "2", "threads": "3"}
    run = make_run(project, resources=resources.as_stored(asked(**sent)))
    found = usual_parts.of_run(run)
    again = {name: found[name] for name in found if name in DevicesForm().fields}
    assert resources.needs(asked(**again)) == resources.needs(run.resources)
    assert again["threads"] == "3"


def test_the_job_by_hand_numbers_devices_over_the_roles():
    found = resources.as_job({"train": {"kind": "cuda", "count": 2}, "teacher": {"kind": "cuda"}})
    assert found["train"].devices == ("cuda:0", "cuda:1")
    assert found["teacher"].devices == ("cuda:2",)
    assert resources.as_job({"train": {"threads": 2}})["train"].devices == ()


def launch_body(project):
    rows = {"pair": make_pair(project), "recipe": make_recipe(project)}
    rows["train"], rows["held_out"] = make_prompt_set(project), make_prompt_set(project, "held out")
    return {name: row.public_id for name, row in rows.items()}


def test_devices_that_the_engine_cannot_use_are_refused_before_the_launch(project, member, gpus):
    wanted = {"train": {"kind": "cuda"}, "teacher": {"kind": "cuda"}}
    body = {**launch_body(project), "resources": wanted}
    error = errors_of(post(with_token(member), "/api/runs", body), 422)[0]
    assert (error["code"], error["field"]) == ("resources.several", "resources")


@pytest.mark.parametrize("unsound", [{"count": 0}, {"kind": "tpu"}, {"memory_bytes": 0}])
def test_an_unsound_need_is_named_by_its_field(project, member, unsound):
    body = {**launch_body(project), "resources": {"train": unsound}}
    field = errors_of(post(with_token(member), "/api/runs", body), 422)[0]["field"]
    assert field == f"resources.train.{next(iter(unsound))}"


def test_a_need_that_no_running_worker_has_is_told_before_the_launch(gpus):
    assert machines.misfits({"train": {"kind": "cuda", "count": 2}}) == []
    (found,) = machines.misfits({"train": {"kind": "cuda", "memory_bytes": 80 * GIB}})
    assert found.message == "No running worker has a GPU of at least 80 GiB."
    Worker.objects.update(heartbeat_at="2026-01-01T00:00Z")
    assert machines.misfits({"train": {"kind": "cuda", "count": 9}}) == []


def test_a_waiting_run_says_on_its_page_what_is_kept_for_it(project, viewer, browse, gpus):
    holder = make_run(project, status="running")
    Lease.objects.create(
        run=holder, device=gpus.devices.get(name="cuda:0"), attempt=1, expires_at=timezone.now()
    )
    snapshot = {"recipe": {"document": make_recipe(project, "r").document}, "teachers": []}
    wanted = {"train": {"kind": "cuda", "count": 2}}
    run = make_run(project, resources=wanted, snapshot=snapshot)
    assert machines.reason(run) == "Waits for 2 GPUs; 1 is free, kept for it."
    assert machines.reason(holder) is None
    text = browse(viewer).get(f"/runs/{run.public_id}/").content.decode()
    assert "Waits for 2 GPUs; 1 is free, kept for it." in text


def test_the_workers_page_names_the_role_of_a_lease(project, viewer, browse, gpus):
    run = make_run(project, name="Holder", status="running")
    Lease.objects.create(
        run=run, device=gpus.devices.get(name="cuda:1"), attempt=1, role="teacher",
        expires_at=timezone.now(),
    )  # fmt: skip
    text = browse(viewer).get("/workers/").content.decode()
    assert '<span class="row-sub">teacher</span>' in text


def test_a_run_that_no_older_one_blocks_starts_whatever_else_waits(project, viewer, gpus):
    Lease.objects.create(
        run=make_run(project, status="running"), device=gpus.devices.get(name="cuda:0"),
        attempt=1, expires_at=timezone.now(),
    )  # fmt: skip
    make_run(project, resources={"train": {"kind": "cuda", "count": 2}})
    make_run(project, resources={"train": {"kind": "cuda"}})
    make_run(project, resources={"train": {"kind": "cpu"}})
    assert [waiting.reason for waiting in machines.state(viewer).queue] == [
        "Waits for 2 GPUs; 1 is free, kept for it.",
        "Waits for a GPU; what is free is kept for older runs.",
        "It starts in a moment.",
    ]
