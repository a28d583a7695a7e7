"""Leases: no device twice, no run twice, no big run starved; lost runs are taken back once."""

import random
import threading
from datetime import timedelta

import pytest
from django.db import IntegrityError, connections
from django.utils import timezone

from tests.workers.rows import make_run
from webapp.models import Device, Lease, Run, Worker
from workers import job_folder, leases, sweep
from workers.sweep import Sweep, take_back

DEVICES = tuple(f"cuda:{i}" for i in range(8))

GPU = {"kind": "cuda"}


def make_queued(*, devices=(), age_seconds=0, **overrides):
    kinds = {name.partition(":")[0] for name in devices}
    resources = {"train": {"kind": kinds.pop(), "count": len(devices)}} if devices else {}
    queued_at = timezone.now() - timedelta(seconds=age_seconds)
    return make_run(resources=resources, queued_at=queued_at, **overrides)


def held(run):
    return sorted(run.leases.values_list("device__name", flat=True))


@pytest.mark.django_db
def test_a_claim_moves_the_run_into_its_next_attempt_and_leases_its_device(host):
    worker = host()
    run = make_queued()
    claimed = leases.claim(worker)
    assert (claimed.run.pk, claimed.attempt, claimed.run.host) == (run.pk, 1, "here")
    run.refresh_from_db()
    assert (run.status, run.attempt) == ("running", 1)
    assert held(run) == ["cpu:0"]
    assert run.started_at is not None


@pytest.mark.django_db
def test_the_oldest_run_comes_first(host):
    worker = host("cpu:0", "cpu:1")
    newer, older = make_queued(age_seconds=1), make_queued(age_seconds=9)
    assert leases.claim(worker).run == older
    assert leases.claim(worker).run == newer
    assert leases.claim(worker) is None


@pytest.mark.django_db
@pytest.mark.parametrize("theirs", [{"host": "there"}, {"resources": {"train": GPU}}])
def test_many_older_runs_of_another_host_hide_none_of_ones_own(host, theirs):
    worker, other = host(), host("cuda:0", name="there")
    old = make_queued(age_seconds=99)
    fields = {name: getattr(old, name) for name in ("project", "pair", "recipe", "train_set")}
    fields |= {"snapshot": {}, "queued_at": old.queued_at, **theirs}
    old.delete()
    Run.objects.bulk_create(Run(name="theirs", **fields) for _ in range(300))
    mine = make_queued()
    assert leases.claim(worker).run == mine
    assert leases.claim(worker) is None
    assert leases.claim(other).run.name == "theirs"


@pytest.mark.django_db
def test_devices_are_given_all_or_not_at_all(host):
    worker = host(*DEVICES[:4])
    running = make_queued(devices=DEVICES[:2], age_seconds=9)
    assert leases.claim(worker).run == running
    big = make_queued(devices=DEVICES[:3])
    assert leases.claim(worker) is None
    assert held(big) == []


@pytest.mark.django_db
def test_what_a_big_run_waits_for_is_kept_for_it(host):
    worker = host(*DEVICES[:4])
    make_queued(devices=DEVICES[:2], age_seconds=9)
    first = leases.claim(worker)
    big = make_queued(devices=DEVICES[:4], age_seconds=5)
    make_queued(devices=DEVICES[:1], age_seconds=1)
    assert leases.claim(worker) is None
    leases.release(first)
    assert leases.claim(worker).run == big


@pytest.mark.django_db
def test_a_run_too_big_for_this_host_blocks_nobody(host):
    worker = host(*DEVICES[:2])
    make_queued(devices=DEVICES, age_seconds=9)
    small = make_queued(devices=DEVICES[:1])
    assert leases.claim(worker).run == small


@pytest.mark.django_db
def test_a_cpu_run_does_not_wait_for_a_busy_gpu(host):
    worker = host("cuda:0", "cpu:0")
    gpu, waiting = make_queued(age_seconds=9), make_queued(age_seconds=5)
    cpu = make_queued(devices=["cpu:0"])
    assert leases.claim(worker).run == gpu
    assert leases.claim(worker).run == cpu
    assert held(waiting) == []


@pytest.mark.django_db
def test_a_run_goes_on_where_its_folder_is(host):
    there = host(name="there")
    run = make_queued(attempt=1)
    Run.objects.filter(pk=run.pk).update(host="there")
    here = host(name="here")
    assert leases.claim(here) is None
    assert leases.claim(there).run == run


@pytest.mark.django_db
def test_a_shared_state_folder_lets_any_host_resume(host, settings):
    host(name="there")
    run = make_queued(attempt=1)
    Run.objects.filter(pk=run.pk).update(host="there")
    settings.WORKER_SHARED_STATE = True
    assert leases.claim(host(name="here")).run == run


@pytest.mark.django_db
def test_a_host_that_is_gone_for_good_does_not_keep_its_runs(host):
    host(name="there")
    run = make_queued(attempt=1)
    Run.objects.filter(pk=run.pk).update(host="there")
    here = host(name="here")
    long_ago = timezone.now() - timedelta(seconds=leases.HOST_LOST_SECONDS + 1)
    Worker.objects.filter(host="there").update(heartbeat_at=long_ago)
    assert leases.claim(here).run == run


def in_threads(count, work):
    """What `work` returned in each of `count` threads that start together."""
    results, barrier = [], threading.Barrier(count)

    def one(number):
        barrier.wait()
        try:
            results.append(work(number))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.django_db(transaction=True)
def test_of_two_claims_at_once_one_gets_the_run(host):
    worker = host("cpu:0", "cpu:1", "cpu:2")
    run = make_queued()
    claims = [claimed for claimed in in_threads(4, lambda _: leases.claim(worker)) if claimed]
    assert [claimed.run.pk for claimed in claims] == [run.pk]
    run.refresh_from_db()
    assert run.attempt == 1
    assert Lease.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_eight_devices_and_random_needs_never_share_a_device(host):
    worker = host(*DEVICES)
    rng = random.Random(0)
    for age in range(16):
        count = rng.choice([1, 1, 2, 4, 8])
        make_queued(devices=DEVICES[:count], age_seconds=100 - age)
    held_by, lock, overlaps = {}, threading.Lock(), []

    def work(_):
        done = 0
        for _ in range(400):
            claimed = leases.claim(worker)
            if claimed is None:
                if not Run.objects.filter(status="queued").exists():
                    break
                continue
            names = {device.name for device in claimed.devices}
            with lock:
                overlaps.extend(names & held_by.keys())
                held_by.update(dict.fromkeys(names, claimed.run.pk))
            Run.objects.filter(pk=claimed.run.pk).update(status="succeeded")
            with lock:
                for name in names:
                    del held_by[name]
            leases.release(claimed)
            done += 1
        return done

    assert sum(in_threads(4, work)) == 16
    assert overlaps == []
    assert set(Run.objects.values_list("attempt", flat=True)) == {1}


def expire(run):
    past = timezone.now() - timedelta(seconds=1)
    Lease.objects.filter(run=run).update(expires_at=past)


@pytest.mark.django_db
def test_a_renewed_lease_is_left_alone(host, monkeypatch):
    monkeypatch.setattr(sweep, "SECOND_LOOK_SECONDS", 0)
    worker = host()
    make_queued()
    claimed = leases.claim(worker)
    assert leases.renew(claimed)
    assert Sweep().look(supervised=()) == []


@pytest.mark.django_db
def test_a_lost_run_is_queued_again_at_the_second_look(host, monkeypatch):
    worker = host()
    run = make_queued()
    claimed = leases.claim(worker)
    expire(run)
    looks = Sweep()
    assert looks.look(supervised=()) == []
    monkeypatch.setattr(sweep, "SECOND_LOOK_SECONDS", 0)
    assert looks.look(supervised={run.pk}) == []
    assert looks.look(supervised=()) == [run]
    run.refresh_from_db()
    assert (run.status, run.attempt, run.losses) == ("queued", 1, 1)
    assert not leases.renew(claimed)
    assert "[worker.lost]" in run.events.get().payload
    assert leases.claim(worker).attempt == 2


@pytest.mark.django_db
def test_a_run_that_is_lost_three_times_fails_with_a_reason(host, monkeypatch):
    monkeypatch.setattr(sweep, "SECOND_LOOK_SECONDS", 0)
    worker = host()
    run = make_queued()
    for _ in range(3):
        leases.claim(worker)
        expire(run)
        Sweep().look(supervised=())
    run.refresh_from_db()
    assert (run.status, run.error["code"], run.attempt) == ("failed", "worker.lost", 3)
    assert leases.claim(worker) is None


@pytest.mark.django_db
def test_a_lost_run_that_somebody_cancelled_is_cancelled(host, monkeypatch):
    monkeypatch.setattr(sweep, "SECOND_LOOK_SECONDS", 0)
    run = make_queued()
    leases.claim(host())
    expire(run)
    Run.objects.filter(pk=run.pk).update(cancel_requested_at=timezone.now())
    Sweep().look(supervised=())
    run.refresh_from_db()
    assert run.status == "cancelled"


@pytest.mark.django_db(transaction=True)
def test_a_lost_run_is_taken_back_by_one_of_many(host):
    worker = host()
    run = make_queued()
    leases.claim(worker)
    expire(run)
    run.refresh_from_db()
    assert sorted(in_threads(4, lambda _: take_back(run))) == [False, False, False, True]
    run.refresh_from_db()
    assert run.losses == 1


@pytest.mark.django_db
def test_a_worker_that_comes_back_takes_up_what_it_left_at_once(host):
    worker = host()
    run = make_queued()
    leases.claim(worker)
    assert sweep.recover("elsewhere") == []
    assert sweep.recover("here") == [run]
    assert leases.claim(worker).attempt == 2


@pytest.mark.django_db
def test_registering_again_keeps_devices_and_drops_those_that_are_gone(host):
    host("cuda:0", "cuda:1")
    kept = Device.objects.get(name="cuda:0").pk
    host("cuda:0")
    assert list(Device.objects.values_list("pk", "name")) == [(kept, "cuda:0")]


def random_needs(rng):
    """One to three roles of one kind, which eight devices of two kinds can always serve."""
    kind, most = rng.choice([("cuda", 5), ("cuda", 5), ("cpu", 3)])
    found = {"train": {"kind": kind, "count": rng.randint(1, most - 2)}}
    found |= {role: {"count": 1} for role in ("sample", "teacher") if rng.random() < 0.3}
    return found


@pytest.mark.django_db(transaction=True)
def test_threads_of_two_hosts_claim_by_role_never_a_device_twice_and_never_a_part(host):
    names = [f"cuda:{i}" for i in range(5)] + [f"cpu:{i}" for i in range(3)]
    hosts = [host(*names, name="here"), host(*names, name="there")]
    rng = random.Random(1)
    asked = {}
    for age in range(24):
        run = make_run(
            resources=random_needs(rng), queued_at=timezone.now() - timedelta(seconds=99 - age)
        )
        asked[run.pk] = {role: one.get("count", 1) for role, one in run.resources.items()}
    held, lock, faults, done = set(), threading.Lock(), [], []

    def work(number):
        worker = hosts[number % 2]
        for _ in range(600):
            claimed = leases.claim(worker)
            if claimed is None:
                if len(done) == len(asked):
                    return
                continue
            mine = {device.pk for device in claimed.devices}
            rows = Lease.objects.filter(run=claimed.run).values_list("role", "device_id")
            given = {role: len(of_role) for role, of_role in claimed.held.items()}
            with lock:
                faults.extend(mine & held)
                faults.extend([] if given == asked[claimed.run.pk] else [given])
                faults.extend([] if {key for _, key in rows} == mine else [list(rows)])
                held.update(mine)
            with lock:
                held.difference_update(mine)
                done.append(claimed.run.pk)
            leases.release(claimed)

    in_threads(4, work)
    assert faults == []
    assert sorted(done) == sorted(asked)
    assert set(Run.objects.values_list("attempt", flat=True)) == {1}


SERVED = {"train": GPU, "teacher": GPU | {"served": True, "count": 1}}


@pytest.mark.django_db
def test_runs_of_one_teacher_hold_its_device_together_until_the_last_ends(host):
    worker = host("cuda:0", "cuda:1", "cuda:2")
    for _ in range(2):
        make_run(resources=SERVED, teacher_server="one")
    first, second = leases.claim(worker), leases.claim(worker)
    assert held(first.run) == ["cuda:0", "cuda:1"]
    assert held(second.run) == ["cuda:1", "cuda:2"]
    folders = {job_folder._teacher_server(claimed) for claimed in (first, second)}
    assert [folder.name for folder in folders] == ["one"]
    leases.release(first)
    make_run(resources={"train": GPU | {"count": 2}})
    assert leases.claim(worker) is None
    leases.release(second)
    assert len(held(leases.claim(worker).run)) == 2


@pytest.mark.django_db
def test_a_device_that_is_not_shared_has_one_lease(host):
    worker = host("cuda:0", "cuda:1")
    claimed, other = make_run(resources=SERVED), make_run()
    leases.claim(worker)
    lease = claimed.leases.get(role="teacher")
    with pytest.raises(IntegrityError):
        Lease.objects.create(
            run=other, device=lease.device, attempt=1, role="teacher", expires_at=timezone.now()
        )


@pytest.mark.django_db
@pytest.mark.parametrize(("kind", "is_shared"), [("cpu", True), ("cuda", False)])
def test_a_server_on_the_device_that_its_run_trains_on_is_shared_on_processors_alone(
    host, kind, is_shared
):
    worker = host(f"{kind}:0")
    resources = {"train": {"kind": kind}, "teacher": {"served": True, "count": 0}}
    make_run(resources=resources, teacher_server="one")
    assert (job_folder._teacher_server(leases.claim(worker)) is not None) is is_shared


@pytest.mark.django_db
def test_a_claim_names_the_role_of_each_lease_and_a_job_sees_devices_of_its_own(host):
    worker = host("cpu:0", "cuda:4", "cuda:5", "cuda:6")
    resources = {"train": {"kind": "cuda", "count": 2}, "teacher": {"count": 1}}
    make_run(resources=resources)
    claimed = leases.claim(worker)
    roles = claimed.run.leases.order_by("device__name").values_list("device__name", "role")
    assert list(roles) == [("cuda:4", "train"), ("cuda:5", "train"), ("cuda:6", "teacher")]
    given = job_folder.resources(claimed)
    assert given["train"].devices == given["sample"].devices == ("cuda:0", "cuda:1")
    assert given["teacher"].devices == ("cuda:2",)
    environment = job_folder.environment(claimed.devices, inherited={})
    assert environment["CUDA_VISIBLE_DEVICES"] == "4,5,6"
