"""Runs in two processes: the same trajectory, the same files, and an end when one of them is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import opdcore
from opdcore.contract.errors import Cancelled, EngineFailure
from opdcore.contract.recipe import Recipe
from opdcore.lab.record import shipped
from opdcore.processes.several import dealt
from tests.opdcore.jobs import by_kind, events_of, make_job, make_recipe

ONE = {"train": {"devices": ["cpu"], "threads": 1}}
TWO = {"train": {"devices": ["cpu:0", "cpu:1"], "threads": 2}}
STEPS = 4
OUTPUT = "output/model.safetensors"
SECOND = "checkpoints/stage-00-step-0000002"
COMPARED = ("loss", "grad_norm", "reverse_kl", "overlap_ratio", "token_reward", "student_entropy",
            "rollout_accuracy", "generated_tokens", "initial_kl", "gold_nll")  # fmt: skip


def laboratory_job(folder, resources, **knobs):
    folder.mkdir(parents=True, exist_ok=True)
    knobs = {"steps": STEPS, "learning_rate": 3e-4, "max_response_tokens": 32} | knobs
    return make_job(
        folder,
        pair=(shipped("sums") / "student", shipped("sums") / "teacher"),
        recipe=make_recipe(**knobs),
        resources=resources,
    )


@dataclass
class Ran:
    """A run's folder and events."""

    folder: Path
    events: list

    @property
    def metrics(self):
        return {event.step: event.payload.values for event in by_kind(self.events, "metrics")}

    def weights(self, file=OUTPUT):
        return load_file(self.folder / file)


def ran(folder, resources, **knobs):
    job = laboratory_job(folder, resources, **knobs)
    return Ran(folder / "run", events_of(job, folder / "run"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return ran(tmp_path_factory.mktemp("alone"), ONE)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return ran(tmp_path_factory.mktemp("together"), TWO)


def assert_alike(one, other, *, tolerance=1e-5):
    for step, values in one.metrics.items():
        for key in COMPARED:
            expected, found = values.get(key), other.metrics[step].get(key)
            assert (found is None) == (expected is None), (step, key)
            if expected is not None:
                assert found == pytest.approx(expected, abs=tolerance, rel=tolerance), (step, key)


def assert_close(one, other, *, tolerance=1e-5):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.shape == other[name].shape
        assert tensor.dtype == other[name].dtype
        torch.testing.assert_close(other[name], tensor, atol=tolerance, rtol=tolerance)


def test_two_processes_follow_the_trajectory_of_one(alone, together):
    assert set(alone.metrics) == set(range(1, STEPS + 1))
    assert_alike(alone, together)
    assert_close(alone.weights(), together.weights())


@pytest.mark.slow
def test_layers_computed_anew_in_two_processes_leave_the_trajectory_as_it_is(alone, tmp_path):
    anew = ran(tmp_path, TWO, gradient_checkpointing="always")
    assert_alike(alone, anew)
    assert_close(alone.weights(), anew.weights())


def test_two_processes_tell_what_one_tells(alone, together):
    assert [e.kind for e in together.events] == [e.kind for e in alone.events]
    for one, other in zip(
        by_kind(alone.events, "evaluation"), by_kind(together.events, "evaluation"), strict=True
    ):
        assert other.payload == one.payload
    (started,) = by_kind(together.events, "job_started")
    assert started.payload.device == "2 x cpu"


def test_checkpoints_of_two_processes_are_of_one_format(alone, together):
    assert {f.name for f in (alone.folder / SECOND).iterdir()} == {
        f.name for f in (together.folder / SECOND).iterdir()
    }
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert_close(alone.weights(f"{SECOND}/{file}"), together.weights(f"{SECOND}/{file}"))


def stopped_after(folder, resources, step, **knobs):
    """A run that was asked to stop once the step's checkpoint was written."""
    events = []

    def asked():
        return any(event.kind == "artifact" and event.step == step for event in events)

    job = laboratory_job(folder, resources, **knobs)
    with pytest.raises(Cancelled):
        events.extend(opdcore.run(job, folder / "run", stop=asked))
    return folder


def resumed(folder, resources, **knobs):
    run = ran(folder, resources, **knobs)
    (started,) = by_kind(run.events, "stage_started")
    assert started.payload.resumed_from_step == 2
    return run


@pytest.fixture(scope="module")
def begun_together(tmp_path_factory):
    return stopped_after(tmp_path_factory.mktemp("begun"), TWO, 2)


def test_a_resumed_run_of_two_processes_equals_an_uninterrupted_one(
    tmp_path, together, begun_together
):
    run = resumed(shutil.copytree(begun_together, tmp_path / "copy"), TWO)
    for file in (OUTPUT, "checkpoints/stage-00-step-0000004/optimizer.safetensors"):
        expected, found = together.weights(file), run.weights(file)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_two_processes_began_one_finishes(tmp_path, alone, begun_together):
    run = resumed(shutil.copytree(begun_together, tmp_path / "copy"), ONE)
    assert run.metrics.keys() == {3, 4}
    assert_close(alone.weights(), run.weights())


def test_what_one_process_began_two_finish(tmp_path, alone):
    run = resumed(stopped_after(tmp_path, ONE, 2), TWO)
    assert run.metrics.keys() == {3, 4}
    assert_close(alone.weights(), run.weights())


@pytest.mark.slow
def test_two_processes_train_adapters_as_one_does(tmp_path):
    knobs = {"tuning": "lora", "lora_rank": 4, "lora_learning_rate": 1e-3, "evaluate_steps": 0}
    one, two = (ran(tmp_path / str(len(r["train"]["devices"])), r, **knobs) for r in (ONE, TWO))
    assert_alike(one, two)
    assert_close(one.weights(), two.weights())
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert_close(one.weights(f"{SECOND}/{file}"), two.weights(f"{SECOND}/{file}"))


def every_stage(folder, resources):
    """A cold start, a distillation by two teachers of which one follows the student, a reinforcement."""
    folder.mkdir(parents=True)
    common = {"max_response_tokens": 48, "checkpoint_steps": 2, "learning_rate": 3e-4,
              "warmup_steps": 0, "steps": 2}  # fmt: skip
    sampled = common | {"prompts_per_step": 4, "evaluate_steps": 0}
    stages = [
        common
        | {"kind": "cold_start", "responses_per_step": 4, "prompts": 8, "held_out_prompts": 2},
        sampled | {"kind": "distill", "rollouts_per_prompt": 2, "initial_kl_weight": 0.1},
        sampled | {"kind": "reinforce", "rollouts_per_prompt": 4, "initial_kl_weight": 0.05},
    ]
    told = {"verifier": "numeric", "prompts": 6, "samples_per_prompt": 2, "max_response_tokens": 48}
    student, teacher = (
        {"model": {"kind": "local", "path": str(shipped("sums") / side)}}
        for side in ("student", "teacher")
    )
    lines = (shipped("sums") / "train.jsonl").read_text().splitlines()[:40]
    job = make_job(
        folder,
        pair=(shipped("sums") / "student", shipped("sums") / "teacher"),
        recipe=Recipe.model_validate({"name": "all", "evaluation": told, "stages": stages}),
        rows=[json.loads(line) for line in lines],
        resources=resources,
        teachers=[teacher, student | {"follows": "average", "average_decay": 0.5}],
    )
    return Ran(folder / "run", events_of(job, folder / "run"))


@pytest.mark.slow
def test_every_stage_follows_the_trajectory_of_one_process(tmp_path):
    one, two = every_stage(tmp_path / "one", ONE), every_stage(tmp_path / "two", TWO)
    assert [e.kind for e in two.events] == [e.kind for e in one.events]
    for expected, found in zip(
        by_kind(one.events, "metrics"), by_kind(two.events, "metrics"), strict=True
    ):
        for key in (*COMPARED, "held_out_nll", "reward_mean"):
            if (value := expected.payload.values.get(key)) is not None:
                assert found.payload.values[key] == pytest.approx(value, abs=1e-5, rel=1e-4), key
    assert_close(one.weights(), two.weights(), tolerance=1e-4)
    average = "checkpoints/stage-01-step-0000002/teacher-1.safetensors"
    assert_close(one.weights(average), two.weights(average), tolerance=1e-4)


def test_the_largest_task_goes_to_whoever_has_the_least():
    assert dealt([5, 9, 3, 4], 2) == [[1, 2], [0, 3]]
    assert dealt([7], 3) == [[0], [], []]


@pytest.mark.slow
def test_a_launchers_processes_are_one_run(tmp_path, together):
    job = tmp_path / "job.json"
    job.write_text(laboratory_job(tmp_path, TWO).model_dump_json())
    command = ["-m", "opdcore", "run", job, "--run-dir", tmp_path / "run"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, *launcher, *command, "--events", tmp_path / "events.jsonl"], check=True
    )
    found = load_file(tmp_path / "run" / OUTPUT)
    assert all(torch.equal(found[name], value) for name, value in together.weights().items())
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "events.jsonl").open()]
    assert kinds == [event.kind for event in together.events]


def test_a_run_in_one_process_loads_nothing_of_several():
    program = (
        "import sys, opdcore.execution, opdcore.peer\n"
        "sys.exit(bool({'torch.distributed.fsdp', 'torch.distributed.tensor'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def peers_of(pid):
    return [p for p in psutil.Process(pid).children() if "opdcore.peer" in p.cmdline()]


def test_a_run_that_loses_a_process_fails_and_says_so(tmp_path):
    killed = []

    def go_on():
        for event in opdcore.run(laboratory_job(tmp_path, TWO), tmp_path / "run"):
            if event.kind == "metrics" and not killed:
                killed.extend(peers_of(os.getpid()))
                killed[0].kill()

    with pytest.raises(EngineFailure) as failure:
        go_on()
    assert failure.value.info.code == "run.process_lost"
    assert "SIGKILL" in failure.value.info.message
    assert len(killed) == 1
    assert not peers_of(os.getpid())


def started(folder, **knobs):
    """The command line on a job of two processes, once it has trained a step; its other process."""
    (folder / "job.json").write_text(
        laboratory_job(folder, TWO, steps=500, **knobs).model_dump_json()
    )
    events = folder / "events.jsonl"
    events.touch()
    leader = subprocess.Popen(
        [sys.executable, "-m", "opdcore", "run", folder / "job.json",
         "--run-dir", folder / "run", "--events", events]
    )  # fmt: skip
    while '"kind":"metrics"' not in events.read_text():
        assert leader.poll() is None
        time.sleep(0.1)
    (peer,) = peers_of(leader.pid)
    return leader, peer


def test_a_wish_to_stop_ends_both_processes_with_a_checkpoint(tmp_path):
    leader, peer = started(tmp_path)
    peer.send_signal(signal.SIGTERM)  # Only the first process heeds it.
    leader.send_signal(signal.SIGTERM)
    assert leader.wait(60) == Cancelled.exit_code
    psutil.wait_procs([peer], 10)
    assert not peer.is_running()
    assert list((tmp_path / "run/checkpoints").glob("stage-00-step-*"))


@pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel's word of a parent's death is Linux's"
)
def test_no_process_outlives_the_first(tmp_path):
    leader, peer = started(tmp_path)
    leader.kill()
    leader.wait()
    psutil.wait_procs([peer], 10)
    assert not peer.is_running()
