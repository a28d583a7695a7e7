"""A real vLLM server as teacher and as sampler: what it says, what it is given, and what happens if it dies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import yaml

import opdcore
from opdcore.contract.errors import BadInput, EngineFailure
from opdcore.contract.job import Job
from opdcore.contract.prompt import Prompt
from opdcore.lab import record
from opdcore.lab.measuring import open_model
from opdcore.rollouts import Sampling
from opdcore.serving import widening
from opdcore.serving.connection import Connection
from opdcore.serving.model import ServedModel
from opdcore.serving.sampler import ServedSampler
from opdcore.serving.server import Server, Serving

pytestmark = pytest.mark.vllm

LAB = record.shipped("sums")
RECIPES = LAB.parents[3] / "recipes"
TOLERATED_NATS = 1e-3


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The laboratory's teacher behind a server that takes weights, and the same model loaded here."""
    folder = tmp_path_factory.mktemp("served")
    loaded = open_model(LAB / "teacher")
    serving = Serving(
        widening.widen_folder(loaded.folder, folder / "model"),
        longest=256, most_logprobs=64, takes_weights=True,
    )  # fmt: skip
    with ExitStack() as stack:
        server = stack.enter_context(Server(serving, folder / "server.log"))
        for _ in server.readying():
            pass
        connection = stack.enter_context(Connection(server.endpoint))
        yield (
            loaded,
            ServedModel(
                connection, loaded.renderer, loaded.card, loaded.folder, torch.device("cpu")
            ),
        )


def prompts(count):
    lines = (LAB / "train.jsonl").read_text("utf-8").splitlines()[:count]
    return [Prompt.model_validate_json(line) for line in lines]


def rollouts_of(model, asked, *, tokens=96, seed=3):
    ids = [one.ids for one in model.renderer.render_many(asked)]
    sampling = Sampling(tokens, 1.0, 1.0, model.card.vocabulary, frozenset(model.renderer.stop_ids))
    return ids, model.respond(ids, sampling=sampling, seed=seed)


@torch.no_grad()
def logprobs_of(loaded, ids, start):
    table = loaded.project(loaded.hidden(torch.tensor([ids])))[0].log_softmax(-1)
    return table[start - 1 : len(ids) - 1]


def test_both_kinds_of_logprobs_agree_with_the_loaded_model(served):
    loaded, model = served
    ids, rollouts = rollouts_of(model, prompts(48))
    given = [((*prompt, *one.ids), len(prompt)) for prompt, one in zip(ids, rollouts, strict=True)]
    told = sampled = 0.0
    for (sequence, start), known, rollout in zip(
        given, model.known(given, k=20), rollouts, strict=True
    ):
        table = logprobs_of(loaded, sequence, start)
        theirs = torch.from_numpy(known.logprobs)
        ours = table.gather(1, torch.from_numpy(known.ids))
        told = max(told, float((ours - theirs).abs().max()))
        best = table.topk(20).values
        torch.testing.assert_close(theirs[:, :20], best, atol=TOLERATED_NATS, rtol=0)
        drawn = table.gather(1, torch.tensor(rollout.ids)[:, None])[:, 0]
        sampled = max(sampled, float((drawn - torch.tensor(rollout.logprobs)).abs().max()))
    tokens = sum(len(one.ids) for one in rollouts)
    print(f"{tokens} tokens: told logprobs differ by {told:.1e}, sampled ones by {sampled:.1e}")
    assert told < TOLERATED_NATS
    assert sampled < TOLERATED_NATS
    assert all(one.stopped for one in rollouts)


def test_the_same_seed_draws_the_same_whatever_else_is_drawn(served):
    _, model = served
    _, many = rollouts_of(model, prompts(12))
    _, few = rollouts_of(model, prompts(3))
    assert [one.ids for one in few] == [one.ids for one in many[:3]]
    _, other = rollouts_of(model, prompts(3), seed=4)
    assert [one.ids for one in other] != [one.ids for one in few]


def test_new_weights_are_those_that_answer(served, tmp_path):
    _, model = served
    student = open_model(LAB / "student")
    folder = widening.widen_folder(student.folder, tmp_path / "student")
    model.give(folder, version="student-1", differs=True)
    assert model.version() == "student-1"
    ids, rollouts = rollouts_of(model, prompts(8))
    for prompt, one in zip(ids, rollouts, strict=True):
        table = logprobs_of(student, (*prompt, *one.ids), len(prompt))
        drawn = table.gather(1, torch.tensor(one.ids)[:, None])[:, 0]
        torch.testing.assert_close(drawn, torch.tensor(one.logprobs), atol=TOLERATED_NATS, rtol=0)


def test_a_server_that_sleeps_between_steps_writes_with_the_weights_it_is_given(served, tmp_path):
    """The requests of one GPU for both, in their order; a CPU's server keeps its memory all the same."""
    _, model = served
    student = open_model(LAB / "student")
    sampler = ServedSampler(model, tmp_path / "weights", on_cpu=True, sleeps=True)
    ids = [one.ids for one in student.renderer.render_many(prompts(8))]
    sampling = Sampling(96, 1.0, 1.0, student.card.vocabulary, frozenset(student.renderer.stop_ids))
    for step in (1, 2):
        rollouts = sampler.sample(
            student, ids, sampling=sampling, seed=step, version=f"step-{step}"
        )
        assert model.connection.get("/is_sleeping") == {"is_sleeping": True}
        assert model.version() == "asleep"
        for prompt, one in zip(ids, rollouts, strict=True):
            table = logprobs_of(student, (*prompt, *one.ids), len(prompt))
            drawn = table.gather(1, torch.tensor(one.ids)[:, None])[:, 0]
            told = torch.tensor(one.logprobs)
            torch.testing.assert_close(drawn, told, atol=TOLERATED_NATS, rtol=0)
        with torch.no_grad():
            student.model.lm_head.weight.mul_(0.9)
    model.wake("weights")
    model.wake("kv_cache")


def job(steps, **fields):
    recipe = yaml.safe_load((RECIPES / "laboratory-sums.yaml").read_text("utf-8"))
    recipe["evaluation"] |= {"prompts": 32, "teacher": False}
    recipe["stages"][0] |= {
        "steps": steps, "warmup_steps": 1, "prompts_per_step": 16, "support": "teacher",
        "evaluate_steps": 0, "checkpoint_steps": 1, "trace_steps": steps,
    }  # fmt: skip
    sets = {name: {"path": str(LAB / f"{name}.jsonl")} for name in ("train", "held_out")}
    return Job.model_validate(
        {
            "run_id": "served",
            "student": {"model": {"kind": "local", "path": str(LAB / "student")}},
            "teachers": [{"model": {"kind": "local", "path": str(LAB / "teacher")}}],
            "prompt_sets": sets,
            "recipe": recipe,
            "resources": {"train": {"threads": 1}},
        }
        | fields
    )


def served_teacher(**said):
    return [{"model": {"kind": "local", "path": str(LAB / "teacher")}, "served": said}]


def metrics(events):
    return [one.payload.values for one in events if one.kind == "metrics"]


def test_a_run_with_both_behind_servers_samples_its_own_student_at_every_step(tmp_path):
    events = list(opdcore.run(job(4, teachers=served_teacher(), sampler={}), tmp_path / "run"))
    differences = [values["sampler_logprob_difference"] for values in metrics(events)]
    print("sampler and trainer differ by", [f"{one:.1e}" for one in differences])
    assert len(differences) == 4
    assert max(differences) < TOLERATED_NATS
    assert events[-1].payload.status == "succeeded"
    assert not [one for one in events if one.kind == "log" and one.payload.level == "warning"]


def test_a_student_with_adapters_is_sampled_as_it_is_at_every_step(tmp_path):
    """Adapters change packed matrices alone, of which a server on a CPU has no checksum."""
    asked = job(4, sampler={}).model_dump(mode="json")
    asked["recipe"]["stages"][0]["tuning"] = "lora"
    values = metrics(opdcore.run(Job.model_validate(asked), tmp_path / "run"))
    differences = [one["sampler_logprob_difference"] for one in values]
    print("with adapters, sampler and trainer differ by", [f"{one:.1e}" for one in differences])
    assert len(differences) == 4
    assert max(differences) < TOLERATED_NATS


def test_a_teacher_behind_a_server_teaches_what_a_loaded_one_does(tmp_path):
    ours = metrics(opdcore.run(job(3), tmp_path / "loaded"))
    theirs = metrics(opdcore.run(job(3, teachers=served_teacher()), tmp_path / "served"))
    for loaded, served in zip(ours, theirs, strict=True):
        for key in ("loss", "token_reward", "overlap_ratio", "grad_norm", "rollout_accuracy"):
            assert served[key] == pytest.approx(loaded[key], abs=2e-4, rel=2e-3), key


@pytest.fixture
def second_runner(monkeypatch):
    """Servers started meanwhile run vLLM's second model runner, which only a GPU has otherwise."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "second_runner"))
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")


@pytest.mark.usefixtures("second_runner")
def test_a_server_that_tells_the_students_top_k_teaches_on_it_what_a_loaded_teacher_does(tmp_path):
    def on_its_own_top_k(**fields):
        asked = job(3, **fields).model_dump(mode="json")
        asked["recipe"]["stages"][0]["support"] = "student"
        return Job.model_validate(asked)

    ours = metrics(opdcore.run(on_its_own_top_k(), tmp_path / "loaded"))
    teachers = served_teacher(student_top_k=True)
    theirs = metrics(opdcore.run(on_its_own_top_k(teachers=teachers), tmp_path / "served"))
    assert len(theirs) == 3
    for loaded, served in zip(ours, theirs, strict=True):
        for key in ("loss", "token_reward", "overlap_ratio", "overlap_mass_teacher", "grad_norm"):
            assert served[key] == pytest.approx(loaded[key], abs=2e-4, rel=2e-3), key


def test_several_processes_ask_a_server_that_they_share(tmp_path):
    ours = metrics(opdcore.run(job(2), tmp_path / "loaded"))
    several = job(
        2,
        teachers=served_teacher(shared=str(tmp_path / "shared")),
        resources={"train": {"devices": ["cpu:0", "cpu:1"], "threads": 2}},
    )
    theirs = metrics(opdcore.run(several, tmp_path / "several"))
    for loaded, served in zip(ours, theirs, strict=True):
        for key in ("loss", "token_reward", "overlap_ratio", "grad_norm"):
            assert served[key] == pytest.approx(loaded[key], abs=2e-4, rel=2e-3), key


def test_what_a_server_told_is_replayed_without_it_bit_for_bit(tmp_path):
    def ran(mode):
        scores = {"mode": mode, "folder": str(tmp_path / "scores")}
        teachers = [one | {"scores": scores} for one in served_teacher()]
        values = metrics(opdcore.run(job(3, teachers=teachers), tmp_path / mode))
        told = ("loss", "token_reward", "overlap_ratio", "grad_norm")
        return [[one[key] for key in told] for one in values]

    assert ran("keep") == ran("replay")
    assert not (tmp_path / "replay" / "serving").exists()
    output = "output/model.safetensors"
    assert (tmp_path / "keep" / output).read_bytes() == (tmp_path / "replay" / output).read_bytes()


def test_a_server_without_the_second_runner_is_refused_before_the_first_step(tmp_path):
    teachers = served_teacher(student_top_k=True)
    with pytest.raises(BadInput) as caught:
        list(opdcore.run(job(1, teachers=teachers), tmp_path / "run"))
    assert caught.value.info.code == "serving.no_student_top_k"
    assert "requires the V2 model runner" in caught.value.info.message


@pytest.mark.chaos
def test_a_server_killed_in_the_run_is_told_of_and_started_anew(tmp_path):
    run_dir, events, killed = tmp_path / "run", [], threading.Event()

    def kill():
        while len(metrics(events)) < 2:
            time.sleep(0.1)
        for pid in servers_in(run_dir):
            os.kill(pid, signal.SIGKILL)
        killed.set()

    threading.Thread(target=kill, daemon=True).start()
    for event in opdcore.run(job(5, teachers=served_teacher()), run_dir):
        events.append(event)  # noqa: PERF402 - the list is watched while it grows
    assert killed.is_set()
    told = [one.payload.message for one in events if one.kind == "log"]
    assert any("does not answer, and is started anew" in message for message in told)
    assert any("answers again" in message for message in told)
    assert len(metrics(events)) == 5
    assert events[-1].payload.status == "succeeded"


@pytest.mark.chaos
def test_a_server_that_stays_away_ends_the_run_with_a_code_and_its_checkpoint(tmp_path, served):
    _, model = served
    endpoint = model.connection.endpoint.model_copy(update={"patience_seconds": 3.0})
    process = next(iter(servers_of(endpoint)))
    events, run_dir = [], tmp_path / "run"
    teachers = served_teacher(endpoint=json.loads(endpoint.model_dump_json()))

    def run():
        for event in opdcore.run(job(40, teachers=teachers), run_dir):
            events.append(event)
            if event.kind == "metrics" and len(metrics(events)) == 2:
                os.kill(process, signal.SIGKILL)

    with pytest.raises(EngineFailure) as caught:
        run()
    assert caught.value.info.code == "serving.unreachable"
    assert events[-1].payload.error.code == "serving.unreachable"
    assert list((run_dir / "checkpoints").glob("stage-*"))


@pytest.mark.chaos
def test_two_runs_share_a_teachers_server_which_outlives_the_one_that_started_it(tmp_path):
    shared = tmp_path / "shared"
    first = started(tmp_path / "first", 400, shared)
    wait_for(lambda: steps_of(tmp_path / "first") >= 1)
    second = started(tmp_path / "second", 3, shared)
    wait_for(lambda: steps_of(tmp_path / "second") >= 1)
    (server,) = servers_in(shared)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert second.wait(120) == 0
    assert steps_of(tmp_path / "second") == 3
    assert "one that another run has started" in (tmp_path / "second" / "events").read_text()
    wait_for(lambda: server not in servers_in(shared))


def started(folder, steps, shared):
    """A job as a process of its own, its events in a file."""
    folder.mkdir()
    told = job(steps, teachers=served_teacher(shared=str(shared)))
    (folder / "job.json").write_text(told.model_dump_json())
    argv = [sys.executable, "-m", "opdcore", "run", str(folder / "job.json")]
    with (folder / "events").open("wb") as events:
        return subprocess.Popen([*argv, "--run-dir", str(folder / "run")], stdout=events)


def steps_of(folder):
    return (folder / "events").read_text().count('"kind":"metrics"')


def wait_for(condition, seconds=420):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "It did not happen in time."
        time.sleep(0.2)


def servers_in(folder):
    """Processes of servers whose model lies in a run's folder."""
    return _pids(str(folder))


def servers_of(endpoint):
    """Processes of the server at an endpoint."""
    return _pids(endpoint.base_url.rpartition(":")[2])


def _pids(word):
    told = subprocess.run(
        ["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True
    )
    lines = [line.split(None, 1) for line in told.stdout.splitlines()]
    return [
        int(pid) for pid, args in lines
        if word in args and "-m vllm.entrypoints" in args and "keeper" not in args
    ]  # fmt: skip
