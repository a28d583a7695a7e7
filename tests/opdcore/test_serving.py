"""Models behind a server: what is waited for and what is refused, what is told and what is made of it."""

import base64
import io
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from opdcore.batches import cut, sequences
from opdcore.comparison import compare
from opdcore.contract.errors import BadInput, EngineFailure
from opdcore.contract.participant import Participant
from opdcore.contract.serving import Endpoint
from opdcore.contract.soundness import served_refusal
from opdcore.lab.measuring import open_model
from opdcore.lab.record import shipped
from opdcore.models import adapters, load
from opdcore.rollouts import Rollout, Sampling
from opdcore.scoring import score
from opdcore.serving import requests, widening
from opdcore.serving.connection import Connection
from opdcore.serving.model import ServedModel
from opdcore.serving.server import Server, Serving
from opdcore.sides import KnownSide, Side
from opdcore.top_tokens import most_probable
from tests.opdcore.jobs import events_of, make_job, make_recipe
from tests.opdcore.model_folders import make_pair
from tests.opdcore.naive import make_objective

ROWS, VOCABULARY = 9, 23


@contextmanager
def serving(answer):
    """A real HTTP server; `answer(number, path, body)` gives status and document, or raises to hang up."""
    seen, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append((time.monotonic(), self.path, body, dict(self.headers)))
                number = len(seen)
            try:
                status, told = answer(number, self.path, body)
            except ConnectionError:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            content = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


def endpoint(address, **knobs):
    return Endpoint(base_url=address, model="m", **{"patience_seconds": 20, **knobs})


def test_a_busy_server_is_asked_again_until_it_answers():
    def answer(number, _path, _body):
        return (503, {}) if number < 3 else (200, {"ok": number})

    with serving(answer) as (address, seen), Connection(endpoint(address)) as asked:
        assert asked.post("/v1/completions", {"a": 1}) == {"ok": 3}
    first, second, third = (one[0] for one in seen)
    assert third - second > 0.5 * (second - first)
    assert [one[2] for one in seen] == [{"a": 1}] * 3


def test_a_server_that_hangs_up_is_asked_again():
    def answer(number, _path, _body):
        if number == 1:
            raise ConnectionError
        return 200, {"ok": True}

    with serving(answer) as (address, _), Connection(endpoint(address)) as asked:
        assert asked.post("/x", {}) == {"ok": True}


def test_a_wait_is_told_once_and_so_is_its_end():
    heard = []

    def answer(number, _path, _body):
        return (503, {}) if time.monotonic() < until else (200, {})

    until = time.monotonic() + 3.5
    with (
        serving(answer) as (address, _),
        Connection(endpoint(address), listener=heard.append) as asked,
    ):
        asked.post_all("/x", [{}] * 4)
    away, back = heard
    assert "503" in away.why
    assert away.address == address
    assert back is None


def test_a_connection_that_was_closed_while_quiet_costs_no_wait():
    def once_each(number, path, body):
        return 200, {"number": number}

    with serving(once_each) as (address, seen), Connection(endpoint(address)) as connection:
        connection.post("/a", {})
        connection._own.connection.sock.shutdown(socket.SHUT_RDWR)
        began = time.monotonic()
        assert connection.post("/a", {}) == {"number": 2}
        assert time.monotonic() - began < 0.1
    assert len(seen) == 2


def test_a_status_of_500_is_final_where_it_says_that_something_cannot_be_done():
    def broken(number, path, body):
        return 500, {"error": {"message": "there is no such folder"}}

    with (
        serving(broken) as (address, seen),
        Connection(endpoint(address)) as connection,
        pytest.raises(BadInput, match="no such folder"),
    ):
        connection.post("/collective_rpc", {}, once=True)
    assert len(seen) == 1


def test_a_key_that_a_server_repeats_is_not_shown(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "a-key-of-ours")

    def repeating(number, path, body):
        return 401, {"error": {"message": "a-key-of-ours is not the key"}}

    with (
        serving(repeating) as (address, _),
        Connection(endpoint(address, key_variable="TEACHER_KEY")) as connection,
        pytest.raises(BadInput, match="is not the key") as refusal,
    ):
        connection.post("/v1/completions", {})
    assert "a-key-of-ours" not in str(refusal.value)


def test_responses_that_a_stopping_server_gave_up_are_asked_for_again():
    def stopping(number, path, body):
        finish = "abort" if number == 1 else "length"
        logprobs = {"token_logprobs": [-1.0] * number}
        told = {"index": 0, "token_ids": [3] * number, "logprobs": logprobs}
        return 200, {"choices": [told | {"finish_reason": finish}]}

    sampling = Sampling(4, 1.0, 1.0, VOCABULARY, frozenset())
    with serving(stopping) as (address, seen), Connection(endpoint(address)) as connection:
        model = ServedModel(connection, None, None, Path(), torch.device("cpu"))
        (response,) = model.respond([[1, 2]], sampling=sampling, seed=0)
    assert response.ids == (3, 3)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("checksums", "taken"),
    [({"a": "1"}, False), ({"a": "1", "b": sha256(b"").hexdigest()}, True)],
)
def test_weights_that_did_not_change_are_noticed_where_a_server_can_tell(checksums, taken):
    with (
        serving(lambda *_: (200, {"checksums": checksums})) as (address, _),
        Connection(endpoint(address)) as connection,
    ):
        model = ServedModel(connection, None, None, Path(), torch.device("cpu"))
        with nullcontext() if taken else pytest.raises(EngineFailure, match="are the same after"):
            model.give(Path("weights"), version="2", differs=True)


@pytest.mark.parametrize(
    "told",
    [
        [],
        {},
        {"choices": []},
        {"choices": [{"index": 1, "prompt_logprobs": [None, {}]}]},
        {"choices": [{"index": 0, "prompt_logprobs": None}]},
        {"choices": [{"index": 0, "prompt_logprobs": [None, {"2": {"rank": 1}}]}]},
        {"choices": [{"index": 0, "prompt_logprobs": [None, {"9": {"logprob": -1, "rank": 1}}]}]},
        {"choices": [{"index": 0, "prompt_logprobs": [None, {"2": {"logprob": None, "rank": 1}}]}]},
    ],
)
def test_a_reply_that_tells_something_else_has_a_code(told):
    with serving(lambda *_: (200, told)) as (address, _), Connection(endpoint(address)) as asking:
        model = ServedModel(asking, None, None, Path(), torch.device("cpu"))
        with pytest.raises(EngineFailure) as failure:
            model.known([((1, 2), 1)], k=1)
    assert failure.value.info.code == "serving.unreadable"


def test_a_server_that_ends_is_explained_by_the_first_error_of_its_log(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text(
        "#!/bin/sh\necho 'ERROR core.py: ValueError: Free memory is less than asked for.'\n"
        "echo 'RuntimeError: Engine core initialization failed'\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("STILLROOM_VLLM_PYTHON", str(program))
    log = tmp_path / "server.log"
    log.write_text("KeyError: of an earlier start\n")
    with (
        Server(Serving(tmp_path, longest=64), log) as server,
        pytest.raises(EngineFailure, match="ValueError: Free memory is less than asked for"),
    ):
        list(server.readying())


def test_patience_ends_with_a_code_and_the_last_reason():
    closed = "http://127.0.0.1:9"
    with (
        Connection(endpoint(closed, patience_seconds=0.5)) as asked,
        pytest.raises(EngineFailure) as caught,
    ):
        asked.post("/x", {})
    assert caught.value.info.code == "serving.unreachable"
    assert "ConnectionRefusedError" in caught.value.info.message
    assert "resume" in caught.value.info.remedy


def test_a_stop_ends_the_waiting():
    began = time.monotonic()
    with (
        Connection(endpoint("http://127.0.0.1:9"), stop=lambda: True) as asked,
        pytest.raises(EngineFailure),
    ):
        asked.post("/x", {})
    assert time.monotonic() - began < 5


def test_what_a_server_refuses_is_not_asked_again_and_told_in_its_words():
    told = {"error": {"message": "Requested prompt logprobs of 64, which is more than max of 20."}}
    with (
        serving(lambda *_: (400, told)) as (address, seen),
        Connection(endpoint(address)) as asked,
        pytest.raises(BadInput, match="more than max of 20") as caught,
    ):
        asked.post_all("/v1/completions", [{}])
    assert caught.value.info.code == "serving.refused"
    assert len(seen) == 1


def test_no_more_requests_are_under_way_than_allowed():
    under_way, most, lock = 0, 0, threading.Lock()

    def answer(*_):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.05)
        with lock:
            under_way -= 1
        return 200, {}

    with serving(answer) as (address, seen), Connection(endpoint(address, requests_at_once=3)) as c:
        c.post_all("/x", [{"n": n} for n in range(12)])
    assert len(seen) == 12
    assert most == 3


def test_a_reply_that_is_no_json_has_a_code():
    with (
        serving(lambda *_: (200, b"<html>")) as (address, _),
        Connection(endpoint(address)) as asked,
        pytest.raises(EngineFailure) as caught,
    ):
        asked.post("/x", {})
    assert caught.value.info.code == "serving.unreadable"


def test_the_key_is_sent_and_a_missing_one_refused(monkeypatch):
    monkeypatch.setenv("SERVER_KEY", "s3cret")
    with (
        serving(lambda *_: (200, {})) as (address, seen),
        Connection(endpoint(address, key_variable="SERVER_KEY")) as asked,
    ):
        asked.post("/x", {})
    assert seen[0][3]["Authorization"] == "Bearer s3cret"
    monkeypatch.delenv("SERVER_KEY")
    with pytest.raises(BadInput) as caught:
        Connection(endpoint("http://127.0.0.1:9", key_variable="SERVER_KEY"))
    assert (caught.value.info.code, caught.value.info.field) == ("serving.no_key", "key_variable")


def test_sequences_are_scored_in_requests_of_bounded_size():
    given = [[1] * 5, [2] * 4, [3] * 9, [4]]
    asked = list(requests.scoring_bodies("m", given, k=3, tokens=9))
    assert [places for places, _ in asked] == [[0, 1], [2], [3]]
    assert [len(body["prompt"]) for _, body in asked] == [2, 1, 1]


def test_a_reply_is_read_by_rank_with_the_given_token_last():
    entries = {
        "7": {"logprob": -0.1, "rank": 1}, "3": {"logprob": -2.5, "rank": 2},
        "5": {"logprob": -9.0, "rank": 17},
    }  # fmt: skip
    known = requests.read_known({"prompt_logprobs": [None, entries]}, [4, 5], start=1, k=2)
    assert known.ids.tolist() == [[7, 3, 5]]
    np.testing.assert_allclose(known.logprobs, [[-0.1, -2.5, -9.0]])
    short = {"7": entries["7"], "5": entries["5"]}
    with pytest.raises(EngineFailure, match="the 3 most probable"):
        requests.read_known({"prompt_logprobs": [None, short]}, [4, 5], start=1, k=3)


def asked_reply(told, logprobs):
    """A reply of /inference/v1/generate to one text of which two positions are scored."""
    file = io.BytesIO()
    np.save(file, np.asarray(told, dtype=np.float32))
    best = [
        {"7": {"logprob": one, "rank": 1}, "5": {"logprob": -9.0, "rank": 9}} for one in logprobs
    ]
    content = base64.b64encode(file.getvalue()).decode()
    return {"prompt_logprobs": [None, *best], "prompt_token_id_logprobs": content}


def test_tokens_that_were_asked_for_stand_before_the_given_one():
    rows, ids = np.array([[2, 3], [3, 4]]), [4, 5, 5]
    body = requests.asking_body("m", ids, rows, start=1, k=1)
    assert body["sampling_params"]["prompt_logprob_token_ids"] == [[2, 3], [3, 4]]
    assert body["sampling_params"]["prompt_logprob_start"] == 0
    reply = asked_reply([[-1, -2], [-3, -4]], [-0.5, -0.25])
    known = requests.read_asked(reply, ids, rows, start=1, k=1)
    assert known.ids.tolist() == [[7, 2, 3, 5], [7, 3, 4, 5]]
    np.testing.assert_allclose(known.logprobs, [[-0.5, -1, -2, -9], [-0.25, -3, -4, -9]])


@pytest.mark.parametrize(
    "content",
    [None, "no base64", base64.b64encode(b"no array").decode(), asked_reply([[-1.0]], [])],
)
def test_asked_tokens_that_are_not_told_have_a_code(content):
    reply = asked_reply([[-1, -2], [-3, -4]], [-0.5, -0.25])
    told = content["prompt_token_id_logprobs"] if isinstance(content, dict) else content
    with pytest.raises(EngineFailure) as caught:
        requests.read_asked(
            reply | {"prompt_token_id_logprobs": told}, [4, 5, 5], np.array([[2, 3], [3, 4]]),
            start=1, k=1,
        )  # fmt: skip
    assert caught.value.info.code == "serving.unreadable"


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (403, {"error": {"message": "Scale-out endpoints are disabled."}}),
        (404, {"detail": "Not Found"}),
        (200, {"choices": [], "prompt_logprobs": [None, {}]}),
    ],
)
def test_a_server_that_cannot_tell_the_students_tokens_is_refused_before_the_first_step(
    status, told
):
    with (
        serving(lambda *_: (status, told)) as (address, _),
        Connection(endpoint(address)) as asking,
    ):
        model = ServedModel(asking, None, None, Path(), torch.device("cpu"), student_top_k=True)
        with pytest.raises(BadInput, match="--enable-scale-out") as refusal:
            model.check()
    assert refusal.value.info.code == "serving.no_student_top_k"


def test_a_response_is_cut_where_the_pair_does_not_share_a_token():
    sampling = Sampling(8, 1.0, 1.0, 10, frozenset({1}))
    choice = {"token_ids": [4, 12, 1], "logprobs": {"token_logprobs": [-1.0, -2.0, -3.0]}}
    assert requests.read_rollout(choice, 3, sampling) == Rollout(3, (4,), (-1.0,), False)
    choice["token_ids"][1] = 5
    assert requests.read_rollout(choice, 0, sampling).stopped


def tables(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(ROWS, VOCABULARY, generator=generator) for _ in range(2)]


def known_side(teacher, sampled, k, asked=None):
    logprobs = teacher.log_softmax(-1)
    others = sampled[:, None] if asked is None else torch.cat([asked, sampled[:, None]], 1)
    ids = torch.cat([logprobs.topk(k, -1).indices, others], 1)
    return KnownSide(ids, logprobs.gather(1, ids), k)


def test_a_server_that_tells_all_is_the_teacher():
    student, teacher = tables()
    sampled = torch.arange(ROWS)
    told = known_side(teacher, sampled, VOCABULARY).logits(student)
    torch.testing.assert_close(told, teacher.log_softmax(-1))


@pytest.mark.parametrize("k", [1, 4, 16])
def test_told_tokens_keep_their_logprobs_and_the_rest_stays_below_them(k):
    student, teacher = tables(1)
    student[:, 3] += 8  # a token that the student is sure of and the teacher does not tell
    sampled = torch.arange(ROWS)
    side = known_side(teacher, sampled, k)
    logprobs = side.logits(student).log_softmax(-1)
    torch.testing.assert_close(logprobs.gather(1, side.ids), side.logprobs, atol=1e-4, rtol=1e-4)
    untold = torch.ones_like(logprobs, dtype=torch.bool).scatter_(1, side.ids, False)
    least = side.logprobs[:, :k].amin(-1, keepdim=True)
    assert (logprobs <= least + 1e-4)[untold].all()


def test_the_kl_to_what_was_told_has_one_bucket_for_the_tail():
    student, teacher = tables(2)
    teacher[:, :4] = 8 + 0.1 * teacher[:, :4]  # no tail token is near the told ones
    sampled = teacher.argmax(-1)
    side = known_side(teacher, sampled, 4)
    kl = compare(student.clone(), side.logits(student), k=4).reverse_kl
    p, q = student.log_softmax(-1), teacher.log_softmax(-1)
    inside = torch.zeros_like(p, dtype=torch.bool).scatter_(1, side.ids, True)
    tails = [t.masked_fill(inside, -torch.inf).logsumexp(-1) for t in (p, q)]
    expected = (p.exp() * (p - q) * inside).sum(-1) + tails[0].exp() * (tails[0] - tails[1])
    torch.testing.assert_close(kl, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "objective",
    [
        make_objective("sampled"),
        make_objective(support="teacher", k=4),
        make_objective(support="teacher", k=4, normalisation="renormalised"),
        make_objective(support="teacher", k=4, normalisation="tail_bucket", divergence="forward"),
        make_objective(support="intersection", k=4),
        make_objective(support="student", k=4),
        make_objective(support="student", k=4, normalisation="renormalised"),
        make_objective(support="union", k=4, normalisation="tail_bucket"),
        make_objective(support="symmetric_difference", k=4),
    ],
)  # fmt: skip
def test_what_a_server_can_teach_has_the_whole_teachers_gradient(objective):
    student, teacher = tables(3)
    sampled = torch.arange(ROWS)
    theirs = objective.support not in {"teacher", "intersection"}
    asked = most_probable(Side(student, torch.clone), k=4, vocabulary=VOCABULARY)

    def gradient(reference):
        hidden = student.clone().requires_grad_()
        scored = score(
            Side(hidden, torch.clone), reference, sampled, objective=objective, k=4,
            vocabulary=VOCABULARY, temperature=1.0, loss_scale=1.0,
        )  # fmt: skip
        return hidden.grad, scored

    ours, told = gradient(known_side(teacher, sampled, 4, asked if theirs else None))
    whole, known = gradient(Side(teacher, torch.clone))
    torch.testing.assert_close(ours, whole, atol=2e-5, rtol=1e-4)
    for column in ("overlap_ratio", "overlap_token_advantage", "token_reward", "top1_agreement"):
        torch.testing.assert_close(
            getattr(told.alignment, column), getattr(known.alignment, column),
            atol=1e-4, rtol=1e-4, equal_nan=True,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"form": "full"}, "form"),
        ({"support": "student"}, "support"),
        ({"support": "union"}, "support"),
        ({"temperature": 0.7}, "temperature"),
        ({"extrapolation": 1.5}, "extrapolation"),
        ({"token_selection": "either"}, "token_selection"),
        ({"high_entropy_forward_weight": 0.1}, "high_entropy_forward_weight"),
    ],
)
def test_what_a_server_cannot_teach_is_refused(knobs, named):
    sound = {
        "form": "top_k", "support": "teacher", "temperature": 1.0, "extrapolation": 1.0,
        "token_selection": "all", "high_entropy_forward_weight": 0.0, "student_top_k": False,
    }  # fmt: skip
    assert served_refusal(**sound) is None
    assert served_refusal(**sound | {"form": "sampled", "support": "student"}) is None
    assert served_refusal(**sound | knobs).startswith(f"{named}: ")
    more = served_refusal(**sound | knobs | {"student_top_k": True})
    assert more is None if named == "support" else more.startswith(f"{named}: ")


def test_a_job_with_an_unsound_objective_for_its_server_is_refused_at_the_knob(tmp_path):
    pair = make_pair(tmp_path)
    teacher = {"model": {"kind": "local", "path": str(pair[1])}, "served": {}}
    job = make_job(tmp_path, pair=pair, recipe=make_recipe(k=4), teachers=[teacher])
    with pytest.raises(BadInput) as caught:
        events_of(job, tmp_path / "run")
    info = caught.value.info
    assert (info.code, info.field) == ("recipe.served_teacher", "recipe.stages.0.support")
    assert info.remedy.startswith("Choose teacher or intersection")


def test_without_vllm_its_server_is_refused_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_VLLM_PYTHON", str(tmp_path / "python"))
    pair = make_pair(tmp_path)
    teacher = {"model": {"kind": "local", "path": str(pair[1])}, "served": {}}
    recipe = make_recipe(k=4, support="teacher")
    job = make_job(tmp_path, pair=pair, recipe=recipe, teachers=[teacher])
    with pytest.raises(EngineFailure) as caught:
        events_of(job, tmp_path / "run")
    assert caught.value.info.code == "serving.no_vllm"
    assert "make vllm" in caught.value.info.remedy


def test_a_batch_gives_its_sequences_back():
    prompts = [(5, 6), (7, 8, 9), (4,)]
    rollouts = [
        Rollout(i, ids, (0.0,) * len(ids), True) for i, ids in enumerate([(1, 2), (3,), (2, 2, 2)])
    ]
    for batch in cut(rollouts, [prompts, prompts], tokens=100):
        given = sequences(batch, side=1)
        expected = [([*prompts[i], *rollouts[i].ids], len(prompts[i])) for i in batch.rollouts]
        assert given == expected


@pytest.mark.parametrize("family", ["sums", "cups"])
def test_wider_heads_compute_the_same(family, tmp_path):
    narrow = open_model(shipped(family) / "teacher")
    wide = open_model(widening.widen_folder(narrow.folder, tmp_path / "wide"))
    config = json.loads((tmp_path / "wide" / "config.json").read_bytes())
    assert config["head_dim"] == 32
    ids = torch.randint(2, 300, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, same = (m.project(m.hidden(ids)).log_softmax(-1) for m in (narrow, wide))
    torch.testing.assert_close(same, ours, atol=1e-4, rtol=1e-4)


def test_heads_that_are_wide_enough_are_left_as_they_are(tmp_path):
    assert (
        widening.factor({"model_type": "qwen2", "hidden_size": 128, "num_attention_heads": 4}) == 1
    )
    assert (
        widening.factor({"model_type": "gemma", "hidden_size": 64, "num_attention_heads": 4}) == 1
    )


def test_a_student_with_adapters_is_given_to_a_server_as_a_plain_model(tmp_path):
    folder, _ = make_pair(tmp_path)
    said = Participant.model_validate({"model": {"kind": "local", "path": str(folder)}})
    model = load(said, device=torch.device("cpu"), field="student")
    names = set(adapters.plain_weights(model.model))
    adapters.attach(model.network, rank=2, alpha=4, seed=0)
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    told = {name: value.clone() for name, value in adapters.plain_weights(model.model).items()}
    assert set(told) == names
    adapters.merge(model.network)
    for name, value in model.model.named_parameters():
        torch.testing.assert_close(told[name], value)


def test_the_keeper_ends_what_the_program_has_started(tmp_path):
    keeper = Path(requests.__file__).with_name("keeper.py")
    script = tmp_path / "script.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    kept = f"[sys.executable, {str(keeper)!r}, f'--parent={{os.getpid()}}', sys.executable, {str(script)!r}]"
    text = f"import os, subprocess, sys, time; subprocess.Popen({kept}); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", text])
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    child = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(child))


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "It did not happen in time."
        time.sleep(0.05)


def alive(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({}, ["0.9", "1"]),
        ({"beside": True}, ["0.4", "1"]),
        ({"beside": True, "takes_weights": True}, ["0.4", "1", "--enable-sleep-mode"]),
        ({"takes_weights": True}, ["0.9", "1"]),
        ({"memory_share": 0.25, "beside": True}, ["0.25", "1"]),
    ],
)
def test_a_server_beside_a_trainer_takes_less_and_sleeps(knobs, told):
    arguments = Serving(Path("model"), longest=8, devices=("cuda:0",), **knobs).arguments(1)
    at = arguments.index("--gpu-memory-utilization")
    assert [one for one in arguments[at:] if one not in {
        "--gpu-memory-utilization", "--tensor-parallel-size"
    }] == told  # fmt: skip


def test_a_server_on_several_gpus_divides_its_model():
    arguments = Serving(Path("m"), longest=8, devices=("cuda:0", "cuda:1")).arguments(1)
    assert arguments[arguments.index("--tensor-parallel-size") + 1] == "2"
    assert "--tensor-parallel-size" not in Serving(Path("m"), longest=8).arguments(1)


def test_a_job_says_whether_a_role_is_on_a_device_that_it_trains_on(tmp_path):
    resources = {"train": ["cuda:0"], "sample": ["cuda:0"], "teacher": ["cuda:1"]}
    job = make_job(
        tmp_path, pair=make_pair(tmp_path), recipe=make_recipe(),
        resources={role: {"devices": names} for role, names in resources.items()},
    )  # fmt: skip
    assert (job.trains_on("sample"), job.trains_on("teacher")) == (True, False)


def test_a_server_sees_the_gpus_that_its_job_was_given():
    serving = Serving(Path("model"), longest=8, devices=("cuda:1", "cuda:2"))
    told = serving.environment({"CUDA_VISIBLE_DEVICES": "4,6,7", "HF_TOKEN": "x", "PATH": "p"})
    assert told["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert serving.environment({})["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert "HF_TOKEN" not in told
    assert told["PATH"] == "p"
