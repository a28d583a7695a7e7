"""The token view's data: files of a run, rollouts in brief, one rollout, top tokens at a window."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages

from opdcore.contract.events import TraceWritten
from opdcore.traces import (
    COLUMNS,
    RANKS,
    TOP_IDS,
    TOP_LOGPROBS,
    Text,
    TracedRollout,
    TracedTop,
    write,
)
from tests.workers.rows import Scribe, make_running
from webapp.models import Artifact
from webapp.services import traces

WIDTH = 3


@pytest.fixture
def run(project):
    return make_running(project=project)


def make_rollout(*, prompt_index=0, tokens=("a", " b"), correct=None, written_step=10, reward=0.5):
    count = len(tokens)
    column = np.full(count, reward, dtype=np.float32)
    ids = np.tile(np.arange(WIDTH), (count, 1))
    return TracedRollout(
        text=Text(prompt_index, list(range(count)), True, correct, written_step),
        prompt=f"<user> sum of {prompt_index} and 1?",
        response="".join(tokens),
        tokens=list(tokens),
        columns=dict.fromkeys(COLUMNS, column),
        top=TracedTop(
            width=WIDTH,
            ids=dict.fromkeys(TOP_IDS, ids),
            logprobs=dict.fromkeys(TOP_LOGPROBS, np.full((count, WIDTH), -1.5, np.float32)),
            ranks=dict.fromkeys(RANKS, np.arange(1, count + 1)),
            texts={0: "a", 1: " b", 2: "<|end|>"},
        ),
    )


def publish(run, content, *, step):
    key = f"traces/stage-00-step-{step:07d}.parquet"
    stored = storages["artifacts"].save(key, ContentFile(content))
    return Artifact.objects.create(
        run=run, attempt=1, kind="trace", key=key, storage_key=stored,
        sha256="a" * 64, size_bytes=len(content),
    )  # fmt: skip


def add_trace(run, folder: Path, rollouts=None, *, step=10):
    path = folder / f"{step}.parquet"
    write(path, rollouts or [make_rollout()], step=step)
    return publish(run, path.read_bytes(), step=step)


def add_old_trace(run, *, step=10):
    """A file as it was before top tokens were kept."""
    row = {"prompt": "1+1?", "tokens": ["a", " b"], "stopped": True, "correct": None,
           "token_reward": [0.5, None], "ids": [1, 2]}  # fmt: skip
    kinds = {"prompt": pa.string(), "tokens": pa.list_(pa.string()), "stopped": pa.bool_(),
             "correct": pa.bool_(), "token_reward": pa.list_(pa.float32()),
             "ids": pa.list_(pa.int64())}  # fmt: skip
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row], schema=pa.schema(kinds)), file)
    return publish(run, file.getvalue(), step=step)


@pytest.fixture
def ask(browse, viewer, run):
    def answer(**query):
        return browse(viewer).get(f"/runs/{run.public_id}/trace.json", query)

    return answer


def test_the_files_are_told_in_the_order_of_their_steps_with_their_prompts(ask, run, tmp_path):
    add_trace(run, tmp_path, step=20)
    first = add_trace(run, tmp_path, step=10)
    scribe = Scribe(run)
    told = TraceWritten(key=first.key, rollouts=2, prompts=(7, 4))
    scribe.record(scribe.parsed(told, step=10))
    files = ask().json()["files"]
    assert [(file["step"], file["prompts"]) for file in files] == [(10, [7, 4]), (20, None)]


def test_a_file_tells_its_rollouts_in_brief(ask, run, tmp_path):
    rollouts = [
        make_rollout(prompt_index=3, tokens=("a", "b", "c"), correct=True, reward=-0.25),
        make_rollout(prompt_index=8, written_step=1),
    ]
    artifact = add_trace(run, tmp_path, rollouts)
    answer = ask(key=artifact.key).json()
    assert answer["total"] == 2
    assert answer["rollouts"][0] == {
        "prompt_index": 3,
        "written_step": 10,
        "excerpt": "3 and 1?",
        "correct": True,
        "truncated": False,
        "length": 3,
        "means": {"token_reward": -0.25, "reverse_kl": -0.25},
    }
    assert answer["rollouts"][1]["written_step"] == 1


def test_no_more_rollouts_are_told_than_a_page_bears(ask, run, tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "MOST_ROLLOUTS", 2)
    answer = ask(key=add_trace(run, tmp_path, [make_rollout()] * 3).key).json()
    assert (len(answer["rollouts"]), answer["total"]) == (2, 3)


def test_a_rollout_has_one_number_a_token_in_each_column(ask, run, tmp_path):
    artifact = add_trace(run, tmp_path, [make_rollout(), make_rollout(tokens=("x",), reward=2.0)])
    answer = ask(key=artifact.key, rollout=1).json()
    assert (answer["tokens"], answer["tokens_total"], answer["top_width"]) == (["x"], 1, WIDTH)
    measured = {name: [2.0] for name in COLUMNS}
    assert answer["columns"] == measured | {name: [1] for name in RANKS}


def test_a_long_rollout_is_cut_and_says_so(ask, run, tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "MOST_TOKENS", 1)
    answer = ask(key=add_trace(run, tmp_path).key, rollout=0).json()
    assert (answer["tokens"], answer["tokens_total"]) == (["a"], 2)
    assert answer["columns"]["token_reward"] == [0.5]


def test_top_tokens_are_told_for_a_window_of_positions(ask, run, tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "WINDOW", 2)
    artifact = add_trace(run, tmp_path, [make_rollout(tokens=("a", "b", "c"))])
    top = ask(key=artifact.key, rollout=0, start=2).json()["top"]
    assert (top["start"], top["width"], top["student_rank"]) == (2, WIDTH, [3])
    assert top["student_top_ids"] == [0, 1, 2]
    assert top["teacher_top_student_logprobs"] == [-1.5] * WIDTH
    assert top["texts"] == {"0": "a", "1": " b", "2": "<|end|>"}


def test_a_file_from_before_the_top_tokens_opens_all_the_same(ask, run):
    key = add_old_trace(run).key
    brief = ask(key=key).json()["rollouts"][0]
    assert (brief["prompt_index"], brief["excerpt"], brief["length"]) == (None, "1+1?", 2)
    assert brief["means"] == {"token_reward": 0.5, "reverse_kl": None}
    rollout = ask(key=key, rollout=0).json()
    assert rollout["columns"] == {"token_reward": [0.5, None]}
    assert rollout["top_width"] is None
    assert ask(key=key, rollout=0, start=0).status_code == 404


@pytest.mark.parametrize(
    "wrong", [{"rollout": "x"}, {"rollout": -1}, {"rollout": 0, "start": "1e3"}]
)
def test_a_wrong_place_is_told_so(ask, run, tmp_path, wrong):
    answer = ask(key=add_trace(run, tmp_path).key, **wrong)
    assert answer.status_code == 400
    assert "whole number" in answer.json()["error"]


def test_what_is_not_there_is_not_found(ask, run, tmp_path):
    key = add_trace(run, tmp_path).key
    assert ask(key="traces/none").status_code == 404
    assert ask(key=key, rollout=5).status_code == 404


def test_a_stranger_gets_no_trace(browse, stranger, run, tmp_path):
    key = add_trace(run, tmp_path).key
    client = browse(stranger)
    for query in ({}, {"key": key}, {"key": key, "rollout": 0}):
        assert client.get(f"/runs/{run.public_id}/trace.json", query).status_code == 404


def test_the_samples_wait_for_a_first_trace(browse, viewer, run, tmp_path):
    address = f"/runs/{run.public_id}/samples/"
    assert b"No rollouts kept yet" in browse(viewer).get(address).content
    add_trace(run, tmp_path)
    assert b"<token-view" in browse(viewer).get(address).content
