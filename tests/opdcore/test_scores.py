"""A teacher's scores: kept, asked for once, and replayed without the teacher."""

import json
import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from opdcore.__main__ import main
from opdcore.contract.errors import BadInput, Cancelled, EngineFailure
from opdcore.contract.participant import Participant
from opdcore.contract.recipe import Recipe
from opdcore.contract.scores import Scores
from opdcore.lab.record import shipped
from opdcore.models import load
from opdcore.teachers import records
from opdcore.teachers.telling import tell
from tests.opdcore.jobs import QUESTIONS, by_kind, events_of, make_job, make_recipe
from tests.opdcore.model_folders import make_pair

K = 4
TIMED = ("_seconds", "tokens_per_second", "peak_memory_bytes")
OUTPUT = "output/model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


def teacher_of(folder, mode, scores, **fields):
    told = {"mode": mode, "folder": str(scores)}
    return {"model": {"kind": "local", "path": str(folder)}, "scores": told} | fields


def job_of(tmp_path, models, mode, *, recipe=None, teacher=None, **fields):
    told = teacher or teacher_of(models[1], mode, tmp_path / "scores")
    return make_job(
        tmp_path,
        pair=models,
        recipe=recipe or make_recipe(k=K, support="teacher"),
        teachers=[told],
        **fields,
    )


def values_of(events):
    """Everything that was measured, but for what a clock or a gauge told."""
    measured = [
        {key: one for key, one in event.payload.values.items() if not key.endswith(TIMED)}
        for event in events
        if event.kind in ("metrics", "evaluation", "positions") and hasattr(event.payload, "values")
    ]
    positions = [e.payload.model_dump() for e in by_kind(events, "positions")]
    return measured, positions, events[-1].payload.outcome


def kept_of(run):
    (record,) = json.loads((run / "scores.json").read_text())["records"]
    return record


def without_teacher(models, folder):
    """The pair as it is once the teacher is gone."""
    shutil.copytree(models[0], folder / "student")
    shutil.copytree(models[1], folder / "teacher")
    return folder / "student", folder / "teacher"


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_replay_is_the_run_bit_for_bit_and_needs_no_teacher(tmp_path, models, tuning, precision):
    pair = without_teacher(models, tmp_path)
    recipe = make_recipe(k=K, support="teacher", tuning=tuning, precision=precision)
    first = events_of(job_of(tmp_path, pair, "keep", recipe=recipe), tmp_path / "kept")
    shutil.rmtree(pair[1])
    again = events_of(job_of(tmp_path, pair, "replay", recipe=recipe), tmp_path / "replayed")
    assert values_of(again) == values_of(first)
    assert (tmp_path / "kept" / OUTPUT).read_bytes() == (
        tmp_path / "replayed" / OUTPUT
    ).read_bytes()
    assert first[-1].payload.outcome.teacher is not None
    traces = [sorted((tmp_path / one / "traces").iterdir()) for one in ("kept", "replayed")]
    assert [file.name for file in traces[0]] == [file.name for file in traces[1]]
    assert [file.read_bytes() for file in traces[0]] == [file.read_bytes() for file in traces[1]]


def test_a_repeated_run_asks_the_teacher_for_nothing(tmp_path, models):
    for run in ("first", "second"):
        events_of(job_of(tmp_path, models, "keep"), tmp_path / run)
    first, second = (kept_of(tmp_path / run) for run in ("first", "second"))
    assert first["asked_tokens"] > 0
    assert second["asked_tokens"] == 0
    assert second["found_tokens"] == first["asked_tokens"] + first["found_tokens"]
    assert (second["record"], second["tokens"]) == (first["record"], first["tokens"])


def test_keeping_learns_what_a_teacher_that_is_not_kept_teaches(tmp_path, models):
    """The loss is on told tokens alone, so that they decide its gradient."""
    plain = {"model": {"kind": "local", "path": str(models[1])}}
    recipe = make_recipe(k=K, support="teacher", steps=1)
    whole = job_of(tmp_path, models, "keep", recipe=recipe, teacher=plain)
    events_of(whole, tmp_path / "whole")
    events_of(job_of(tmp_path, models, "keep", recipe=recipe), tmp_path / "kept")
    one, other = (load_file(tmp_path / run / OUTPUT) for run in ("whole", "kept"))
    for name, weights in one.items():
        torch.testing.assert_close(other[name], weights, atol=2e-4, rtol=1e-3)


def test_a_text_that_was_not_kept_ends_a_replay_at_its_step(tmp_path, models):
    events_of(job_of(tmp_path, models, "keep"), tmp_path / "kept")
    recipe = make_recipe(k=K, support="teacher", learning_rate=2e-2)
    with pytest.raises(EngineFailure) as caught:
        events_of(job_of(tmp_path, models, "replay", recipe=recipe), tmp_path / "replayed")
    info = caught.value.info
    assert info.code == "scores.not_kept"
    assert "at step 2" in info.message
    assert "more. How many has he?" in info.message
    assert "seed" in info.remedy


def test_other_prompts_for_the_teachers_evaluation_end_a_replay(tmp_path, models):
    events_of(job_of(tmp_path, models, "keep"), tmp_path / "kept")
    recipe = make_recipe(k=K, support="teacher", evaluation={"prompts": 7})
    with pytest.raises(EngineFailure, match="no response to") as caught:
        events_of(job_of(tmp_path, models, "replay", recipe=recipe), tmp_path / "replayed")
    assert caught.value.info.code == "scores.not_kept"


@pytest.mark.parametrize("strategy", ["low_kl", "gap"])
def test_a_cold_start_and_a_selection_are_replayed_too(tmp_path, strategy):
    """The laboratory's, whose teacher writes responses that are sound."""
    pair = without_teacher([shipped("sums") / one for one in ("student", "teacher")], tmp_path)
    stages = [
        {"kind": "cold_start", "steps": 2, "warmup_steps": 0, "prompts": 6, "held_out_prompts": 1,
         "source": "teacher", "max_response_tokens": 48, "retries": 1, "checkpoint_steps": 2},
        {"kind": "select_prompts", "strategy": strategy, "candidates": 10, "share": 0.5,
         "samples_per_prompt": 2, "max_response_tokens": 32},
        make_recipe(k=K, support="teacher", steps=1).stages[0].model_dump(),
    ]  # fmt: skip
    recipe = Recipe.model_validate(make_recipe().model_dump() | {"stages": stages})
    rows = lab_rows("sums", 40)
    first = events_of(job_of(tmp_path, pair, "keep", recipe=recipe, rows=rows), tmp_path / "kept")
    shutil.rmtree(pair[1])
    again = events_of(
        job_of(tmp_path, pair, "replay", recipe=recipe, rows=rows), tmp_path / "replayed"
    )
    assert values_of(again) == values_of(first)
    for file in (OUTPUT, "responses/stage-00.json"):
        assert (tmp_path / "kept" / file).read_bytes() == (
            tmp_path / "replayed" / file
        ).read_bytes()


def lab_rows(family, count):
    lines = (shipped(family) / "train.jsonl").read_text().splitlines()[:count]
    return [json.loads(line) for line in lines]


class Served:
    """A server's stand-in over HTTP that scores and answers by a real model, and counts what it is asked."""

    def __init__(self, folder):
        said = Participant.model_validate({"model": {"kind": "local", "path": str(folder)}})
        self.model = load(said, device=torch.device("cpu"), field="teacher")
        self.asked, self.lock = [], threading.Lock()

    def answer(self, body):
        with self.lock:
            if "prompt_logprobs" in body:
                self.asked += [tuple(ids) for ids in body["prompt"]]
                return [self.scored(ids, body["prompt_logprobs"]) for ids in body["prompt"]]
            return [self.written(body)]

    def scored(self, ids, k):
        (known,) = tell(
            self.model, [(ids, 1)], k=k, vocabulary=self.model.card.vocabulary,
            precision="float32", tokens=4096,
        )  # fmt: skip
        told = [
            {str(token): {"logprob": float(value), "rank": rank}
             for rank, (token, value) in reversed(list(enumerate(zip(row, values, strict=True), 1)))}
            for row, values in zip(known.ids.tolist(), known.logprobs, strict=True)
        ]  # fmt: skip
        return {"prompt_logprobs": [None, *told]}

    def written(self, body):
        count = body["max_tokens"]
        logprobs = {"token_logprobs": [-1.0] * count}
        return {"token_ids": [20] * count, "logprobs": logprobs, "finish_reason": "length"}


@contextmanager
def serving(folder):
    served = Served(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told = [{"index": i, **one} for i, one in enumerate(served.answer(body))]
            content = json.dumps({"choices": told}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", served
    finally:
        server.shutdown()
        server.server_close()


def test_a_resumed_run_asks_its_server_for_no_text_twice_and_is_replayed_without_it(
    tmp_path, models
):
    with serving(models[1]) as (address, served):
        endpoint = {"base_url": address, "model": "m", "patience_seconds": 5}
        teacher = teacher_of(models[1], "keep", tmp_path / "scores", served={"endpoint": endpoint})
        recipe = make_recipe(k=K, support="teacher", checkpoint_steps=1, trace_steps=100)
        job = job_of(tmp_path, models, "keep", recipe=recipe, teacher=teacher)
        whole = events_of(job, tmp_path / "whole")
        once = list(served.asked)
        assert len(set(once)) == len(once)

        served.asked.clear()
        shutil.rmtree(tmp_path / "scores")
        with pytest.raises(Cancelled):
            events_of(job, tmp_path / "broken", stop=lambda: len(served.asked) > 12)
        before = len(served.asked)
        resumed = events_of(job, tmp_path / "broken")
        assert 0 < before < len(served.asked)
        assert sorted(served.asked) == sorted(once)
    teacher["scores"]["mode"] = "replay"
    job = job_of(tmp_path, models, "replay", recipe=recipe, teacher=teacher)
    replayed = events_of(job, tmp_path / "replayed")
    files = [(tmp_path / run / OUTPUT).read_bytes() for run in ("whole", "broken", "replayed")]
    assert files[0] == files[1] == files[2]
    assert values_of(replayed)[2] == values_of(resumed)[2] == values_of(whole)[2]


@pytest.mark.slow
def test_two_processes_share_a_record_and_replay_it(tmp_path, models):
    two = {"train": {"devices": ["cpu:0", "cpu:1"], "threads": 2}}
    recipe = make_recipe(k=K, support="teacher", steps=2, trace_steps=2)
    pair = without_teacher(models, tmp_path)
    events_of(job_of(tmp_path, pair, "keep", recipe=recipe, resources=two), tmp_path / "kept")
    assert len(list((tmp_path / "scores").glob("*/*.scores"))) == 2
    shutil.rmtree(pair[1])
    events_of(job_of(tmp_path, pair, "replay", recipe=recipe, resources=two), tmp_path / "again")
    one, other = (load_file(tmp_path / run / OUTPUT) for run in ("kept", "again"))
    for name, weights in one.items():
        torch.testing.assert_close(other[name], weights, atol=0, rtol=0)
    recipe = make_recipe(k=K, support="teacher", steps=2, max_response_tokens=15)
    with pytest.raises(EngineFailure) as caught:
        events_of(job_of(tmp_path, pair, "replay", recipe=recipe, resources=two), tmp_path / "new")
    assert caught.value.info.code == "scores.not_kept"


def test_two_teachers_by_tag_have_a_record_each(tmp_path, models):
    rows = [one | {"tags": ["a" if i % 2 else "b"]} for i, one in enumerate(QUESTIONS)]
    pair = without_teacher(models, tmp_path)
    shutil.copytree(models[0], tmp_path / "other")

    def job(mode):
        told = [
            teacher_of(pair[1], mode, tmp_path / "scores", tags=["a"]),
            teacher_of(tmp_path / "other", mode, tmp_path / "scores", tags=["b"]),
        ]
        recipe = make_recipe(k=K, support="teacher", steps=2)
        return make_job(tmp_path, pair=pair, recipe=recipe, rows=rows, teachers=told)

    first = events_of(job("keep"), tmp_path / "kept")
    kept = json.loads((tmp_path / "kept" / "scores.json").read_text())["records"]
    assert [one["teacher"] for one in kept] == [0, 1]
    assert all(one["asked_tokens"] > 0 for one in kept)
    for folder in (pair[1], tmp_path / "other"):
        shutil.rmtree(folder)
    assert values_of(events_of(job("replay"), tmp_path / "again")) == values_of(first)


@pytest.mark.parametrize(
    ("knobs", "code", "field"),
    [
        ({"support": "student"}, "recipe.kept_scores", "recipe.stages.0.support"),
        ({"support": "teacher", "temperature": 0.7}, "recipe.kept_scores", "recipe.stages.0.temperature"),
    ],
)  # fmt: skip
def test_an_objective_that_needs_more_than_is_kept_is_refused(tmp_path, models, knobs, code, field):
    for mode in ("keep", "replay"):
        with pytest.raises(BadInput, match="The teacher has a record") as caught:
            events_of(
                job_of(tmp_path, models, mode, recipe=make_recipe(k=K, **knobs)), tmp_path / mode
            )
        assert (caught.value.info.code, caught.value.info.field) == (code, field)


def test_a_diagnosis_and_a_teacher_that_follows_are_refused(tmp_path, models):
    recipe = make_recipe(k=K, support="teacher")
    diagnosing = Recipe.model_validate(
        recipe.model_dump() | {"stages": [{"kind": "diagnose"}, *recipe.model_dump()["stages"]]}
    )
    with pytest.raises(BadInput) as caught:
        events_of(job_of(tmp_path, models, "replay", recipe=diagnosing), tmp_path / "a")
    assert caught.value.info.code == "diagnose.kept_scores"
    moving = teacher_of(models[0], "keep", tmp_path / "scores", follows="average")
    with pytest.raises(BadInput) as caught:
        events_of(job_of(tmp_path, models, "keep", teacher=moving), tmp_path / "b")
    assert caught.value.info.code == "teachers.scores_follow"


def test_two_teachers_of_one_prompt_are_refused(tmp_path, models):
    told = [teacher_of(folder, "keep", tmp_path / "scores") for folder in models]
    recipe = make_recipe(k=K, support="teacher")
    job = make_job(tmp_path, pair=models, recipe=recipe, teachers=told)
    with pytest.raises(BadInput) as caught:
        events_of(job, tmp_path / "run")
    assert caught.value.info.code == "teachers.served_together"
    assert caught.value.info.field.startswith("teachers.0.scores")


def test_a_replay_without_a_record_or_with_two_is_refused(tmp_path, models):
    with pytest.raises(BadInput) as caught:
        events_of(job_of(tmp_path, models, "replay"), tmp_path / "a")
    assert (caught.value.info.code, caught.value.info.field) == (
        "scores.no_record",
        "teachers.0.scores.folder",
    )
    pair = without_teacher(models, tmp_path)
    job = job_of(tmp_path, pair, "keep", recipe=make_recipe(k=K, support="teacher", steps=1))
    events_of(job, tmp_path / "b")
    weights = load_file(pair[1] / "model.safetensors")
    halved = {name: one / 2 for name, one in weights.items()}
    save_file(halved, pair[1] / "model.safetensors", metadata={"format": "pt"})
    events_of(job, tmp_path / "c")
    with pytest.raises(BadInput) as caught:
        events_of(job_of(tmp_path, pair, "replay"), tmp_path / "d")
    assert caught.value.info.code == "scores.several_records"
    named = kept_of(tmp_path / "b")["record"]
    assert named in caught.value.info.message
    teacher = teacher_of(pair[1], "replay", tmp_path / "scores")
    teacher["scores"]["record"] = named
    events_of(job_of(tmp_path, pair, "replay", recipe=job.recipe, teacher=teacher), tmp_path / "e")
    assert (tmp_path / "e" / OUTPUT).read_bytes() == (tmp_path / "b" / OUTPUT).read_bytes()


def test_a_full_record_is_told_once_and_the_run_goes_on(tmp_path, models):
    teacher = teacher_of(models[1], "keep", tmp_path / "scores")
    teacher["scores"]["most_bytes"] = 1 << 20
    (tmp_path / "scores" / "old").mkdir(parents=True)
    (tmp_path / "scores" / "old" / "teacher.json").write_text("{}")
    (tmp_path / "scores" / "old" / "a.scores").write_bytes(b"0" * ((1 << 20) - 4000))
    job = job_of(tmp_path, models, "keep", teacher=teacher)
    events = events_of(job, tmp_path / "run")
    said = [one.payload.message for one in by_kind(events, "log") if one.payload.level == "warning"]
    assert len([one for one in said if "is full" in one]) == 1
    assert kept_of(tmp_path / "run")["is_whole"] is False
    assert events[-1].payload.status == "succeeded"


def test_a_record_is_not_named_where_it_is_kept():
    with pytest.raises(ValidationError, match="leave it out"):
        Scores(mode="keep", folder="scores", record="0" * 32)


def test_records_are_listed_and_freed(tmp_path, models, capsys):
    recipe = make_recipe(k=K, support="teacher", steps=1)
    events_of(job_of(tmp_path, models, "keep", recipe=recipe), tmp_path / "run")
    folder = tmp_path / "scores"
    (record,) = records.every(folder)
    assert main(["scores", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{record.name}  ")
    assert main(["scores", str(folder), "--free-unused-days", "1"]) == 0
    assert len(list(records.every(folder))) == 1
    assert main(["scores", str(folder), "--free-unused-days", "0"]) == 0
    assert "freed" in capsys.readouterr().out
    assert list(folder.iterdir()) == []
