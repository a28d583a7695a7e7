"""Traces: what both models would rather have written, against tables that are ranked as a whole."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from opdcore import prompts, token_maps, traces
from opdcore.observation import observe
from opdcore.rendering import Renderer
from opdcore.sides import Side
from opdcore.top_tokens import MOST, TopCollector
from opdcore.traces import COLUMNS, RANKS, TOP_IDS, TOP_LOGPROBS
from tests.opdcore.jobs import by_kind, events_of, make_job, make_recipe
from tests.opdcore.model_folders import make_pair
from tests.opdcore.test_scoring import ROWS, VOCABULARY, columns, gradients, run
from tests.opdcore.test_scoring import make_pair as make_heads

TRACED_ROLLOUTS = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traced")
    pair = make_pair(folder)
    recipe = make_recipe(trace_rollouts=TRACED_ROLLOUTS, evaluate_steps=0)
    job = make_job(folder, pair=pair, recipe=recipe)
    return job, pair, folder / "run", events_of(job, folder / "run")


def rows_at(run_dir, step):
    return pq.read_table(run_dir / f"traces/stage-00-step-{step:07d}.parquet").to_pylist()


def collected(pair, wanted, **overrides):
    collector = TopCollector(torch.tensor(wanted))
    scored = run(pair, collector=collector, k=10, **overrides)
    return collector.taken(), scored


def naive_tops(pair, position, k):
    """Both sides' k best ids and logprobs at a position, by sorting lists of floats."""
    sides = []
    for head, hidden in (
        (pair.head, pair.body(pair.inputs)),
        (pair.teacher_head, pair.teacher_hidden),
    ):
        logits = head(hidden)[position].tolist()[:VOCABULARY]
        total = math.log(sum(math.exp(value) for value in logits))
        logprobs = [value - total for value in logits]
        best = sorted(range(VOCABULARY), key=lambda token: -logprobs[token])[:k]
        sides.append((best, logprobs))
    return sides


def test_top_tokens_are_those_of_whole_tables_sorted():
    pair = make_heads()
    wanted = [position % 3 == 1 for position in range(ROWS)]
    top, _ = collected(pair, wanted, chunk_rows=4)
    positions = [position for position in range(ROWS) if wanted[position]]
    assert top.student_top_ids.shape == (len(positions), MOST)
    for row, position in enumerate(positions):
        (best, ours), (theirs_best, theirs) = naive_tops(pair, position, MOST)
        assert top.student_top_ids[row].tolist() == best
        assert top.teacher_top_ids[row].tolist() == theirs_best
        for name, ids, logprobs in (
            ("student_top_logprobs", best, ours),
            ("student_top_teacher_logprobs", best, theirs),
            ("teacher_top_logprobs", theirs_best, theirs),
            ("teacher_top_student_logprobs", theirs_best, ours),
        ):
            told = getattr(top, name)[row].tolist()
            assert told == pytest.approx([logprobs[token] for token in ids], abs=1e-5)
        sampled = int(pair.ids[position])
        for rank, logprobs in ((top.student_rank, ours), (top.teacher_rank, theirs)):
            assert rank[row] == 1 + sum(value > logprobs[sampled] for value in logprobs)


def test_collecting_changes_no_gradient_and_no_metric():
    watched, plain = make_heads(), make_heads()
    _, ours = collected(watched, [True] * ROWS)
    theirs = run(plain, k=10)
    assert ours.loss_sum == theirs.loss_sum
    assert all(a.equal(b) for a, b in zip(gradients(watched), gradients(plain), strict=True))
    assert columns(ours.alignment).equal(columns(theirs.alignment))


@pytest.mark.parametrize("chunk_rows", [1, 3, 1000])
def test_what_is_collected_does_not_depend_on_the_chunks(chunk_rows):
    wanted = [True, False] * (ROWS // 2)
    ours, _ = collected(make_heads(), wanted, chunk_rows=chunk_rows)
    theirs, _ = collected(make_heads(), wanted)
    assert ours.student_top_ids.equal(theirs.student_top_ids)
    assert ours.teacher_rank.equal(theirs.teacher_rank)
    torch.testing.assert_close(ours.teacher_top_logprobs, theirs.teacher_top_logprobs)


def test_fewer_tokens_are_kept_where_fewer_were_ranked():
    collector = TopCollector(torch.ones(ROWS, dtype=torch.bool))
    run(make_heads(), collector=collector, k=3)
    assert collector.taken().student_top_ids.shape[1] == max(3, 4)  # the objective's k is 4


def test_an_observation_measures_as_the_training_pass_does():
    pair = make_heads()
    top, scored = collected(make_heads(), [True] * ROWS, temperature=0.7)
    collector = TopCollector(torch.ones(ROWS, dtype=torch.bool))
    seen = observe(
        Side(pair.body(pair.inputs), pair.head),
        Side(pair.teacher_hidden, pair.teacher_head),
        pair.ids,
        k=10, vocabulary=VOCABULARY, temperature=0.7, collector=collector,
    )  # fmt: skip
    torch.testing.assert_close(columns(seen), columns(scored.alignment), equal_nan=True)
    assert collector.taken().student_top_ids.equal(top.student_top_ids)
    assert not any(parameter.grad is not None for parameter in pair.head.parameters())


def test_the_first_trace_is_what_the_models_say_at_the_start(finished):
    job, folders, run_dir, _ = finished
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    renderers = [Renderer.from_folder(folder, side.rendering)
                 for folder, side in zip(folders, (job.student, job.teachers[0]), strict=True)]  # fmt: skip
    row = rows_at(run_dir, 1)[0]
    train = prompts.read(job.prompt_sets.train, field="train")
    prompt = train[row["prompt_index"]]
    logits = []
    for model, renderer in zip(models, renderers, strict=True):
        ids = [*renderer.render(prompt).ids, *row["ids"]]
        with torch.no_grad():
            table = model(torch.tensor([ids])).logits[0]
        logits.append(table[len(ids) - len(row["ids"]) - 1 : -1])
    shared = token_maps.compare(*folders).shared_vocabulary
    student, teacher = (table[:, :shared].log_softmax(-1) for table in logits)
    width = row["top_width"]
    ranked = student.topk(width)
    told = np.array(row["student_top_logprobs"], dtype=np.float32).reshape(-1, width)
    np.testing.assert_allclose(told, ranked.values.numpy(), rtol=2e-3, atol=2e-3)
    ids = torch.tensor(row["student_top_ids"]).reshape(-1, width)
    theirs = np.array(row["student_top_teacher_logprobs"], dtype=np.float32).reshape(-1, width)
    np.testing.assert_allclose(theirs, teacher.gather(1, ids).numpy(), rtol=2e-3, atol=2e-3)
    sampled = student.gather(1, torch.tensor(row["ids"])[:, None])
    assert row["student_rank"] == (1 + (student > sampled + 1e-6).sum(-1)).tolist()
    assert row["student_logprob"] == pytest.approx(sampled.squeeze(1).tolist(), rel=1e-3, abs=1e-5)


def test_every_column_has_a_value_for_each_token(finished):
    _, _, run_dir, _ = finished
    for row in rows_at(run_dir, 4):
        tokens = len(row["ids"])
        assert all(len(row[name]) == tokens for name in (*COLUMNS, *RANKS, "tokens"))
        for name in (*TOP_IDS, *TOP_LOGPROBS):
            assert len(row[name]) == tokens * row["top_width"]
        known = dict(zip(row["top_text_ids"], row["top_texts"], strict=True))
        assert known.keys() == set(row["student_top_ids"]) | set(row["teacher_top_ids"])


def test_a_later_trace_reads_the_first_texts_again(finished):
    _, _, run_dir, events = finished
    first, later = rows_at(run_dir, 1), rows_at(run_dir, 4)
    assert [row["written_step"] for row in first] == [1] * TRACED_ROLLOUTS
    assert [row["written_step"] for row in later] == [4, 1, 1]
    for before, after in zip((first[0], first[2]), later[1:], strict=True):
        kept = ("prompt_index", "prompt", "response", "ids", "tokens", "correct", "stopped")
        assert all(before[name] == after[name] for name in kept)
        assert before["teacher_logprob"] == pytest.approx(after["teacher_logprob"], rel=2e-3)
        assert before["student_logprob"] != after["student_logprob"]
    told = by_kind(events, "trace")[-1].payload
    assert told.prompts == tuple(row["prompt_index"] for row in later)


def test_reading_again_leaves_the_weights_alone(tmp_path):
    pair = make_pair(tmp_path)
    ends = []
    for name, rollouts in (("with", 3), ("without", 1)):
        recipe = make_recipe(trace_rollouts=rollouts, evaluate_steps=0)
        events_of(make_job(tmp_path, pair=pair, recipe=recipe), tmp_path / name)
        ends.append((tmp_path / name / "output" / "model.safetensors").read_bytes())
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.123456, 0.1235), (-12.34567, -12.35), (0.0, 0.0), (1e-9, 1e-9), (123456.0, 123500.0)],
)
def test_values_keep_four_significant_digits(value, told):
    assert traces.rounded(np.array([value]))[0] == pytest.approx(told, rel=1e-7)


def test_what_is_not_finite_stays_so_until_it_is_written_null():
    assert np.isnan(traces.rounded(np.array([np.nan]))[0])
    assert traces.rounded(np.array([-np.inf]))[0] == -np.inf
