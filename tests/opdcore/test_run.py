"""Runs of the whole engine on small real pairs: what they promise, and how they refuse and resume."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import opdcore
from opdcore import checkpoints
from opdcore.contract.errors import BadInput, Cancelled, EngineFailure
from opdcore.contract.metrics import METRICS
from tests.opdcore.jobs import QUESTIONS, by_kind, events_of, make_job, make_recipe
from tests.opdcore.model_folders import make_folder, make_pair


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of four steps between models of unequal widths, templates and EOS ids."""
    folder = tmp_path_factory.mktemp("finished")
    return folder / "run", events_of(make_job(folder), folder / "run")


def weights(folder):
    return load_file(folder / "output" / "model.safetensors")


# Told by other stages, or with knobs that a plain distillation leaves alone.
TOLD_BY_SOME = {
    "held_out_nll", "reward_mean", "zero_variance_groups", "response_cap_tokens",
    "trained_up_to_tokens",
}  # fmt: skip


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_lines_count_from_one_and_the_last_says_how_it_ended(finished):
    _, events = finished
    assert [event.line for event in events] == list(range(1, len(events) + 1))
    assert events[0].kind == "job_started"
    assert events[-1].payload.status == "succeeded"
    assert events[-1].payload.outcome.prompts == 6


def test_the_metric_table_and_the_emitted_keys_are_the_same(finished):
    _, events = finished
    emitted = {key for event in by_kind(events, "metrics") for key in event.payload.values}
    emitted |= {key for event in by_kind(events, "evaluation") for key in event.payload.values}
    assert emitted == METRICS.keys() - TOLD_BY_SOME


def test_each_step_tells_its_scalars_once_and_their_phases_add_up(finished):
    _, events = finished
    told = by_kind(events, "metrics")
    assert [event.step for event in told] == [1, 2, 3, 4]
    for values in (event.payload.values for event in told):
        phases = [values[f"{name}_seconds"] for name in ("sample", "grade", "train", "update")]
        assert values["step_seconds"] == pytest.approx(sum(phases), rel=1e-6)
        assert values["weights_changed_share"] > 0.9
        assert values["sampler_logprob_difference"] < 1e-5
        assert values["generated_tokens"] == pytest.approx(8 * values["response_tokens_mean"])


def test_position_chunks_hold_every_generated_token(finished):
    _, events = finished
    for scalars, chunks in zip(
        by_kind(events, "metrics"), by_kind(events, "positions"), strict=True
    ):
        counts, values = chunks.payload.positions, chunks.payload.values
        assert sum(counts) == scalars.payload.values["generated_tokens"]
        pooled = sum(n * v for n, v in zip(counts, values["reverse_kl"], strict=True) if n)
        assert pooled / sum(counts) == pytest.approx(scalars.payload.values["reverse_kl"], rel=1e-4)


def test_the_output_opens_with_transformers_and_its_tokenizer(finished):
    run_dir, _ = finished
    model = AutoModelForCausalLM.from_pretrained(run_dir / "output")
    ids = AutoTokenizer.from_pretrained(run_dir / "output")("How many?", return_tensors="pt")
    assert torch.isfinite(model(**ids).logits).all()


def test_what_is_announced_lies_in_the_folder_with_its_hash(finished):
    run_dir, events = finished
    dropped = {event.payload.key for event in by_kind(events, "artifact_dropped")}
    for event in by_kind(events, "artifact"):
        path = run_dir / event.payload.key
        assert path.exists() == (event.payload.key not in dropped)
        if path.is_file():
            assert checkpoints.hash_file(path) == (event.payload.sha256, event.payload.size_bytes)


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(tmp_path):
    folder = make_folder(tmp_path / "model", "llama")
    recipe = make_recipe(form="full", steps=1, weight_decay=0)
    told = by_kind(
        events_of(make_job(tmp_path, pair=(folder, folder), recipe=recipe), tmp_path / "run"),
        "metrics",
    )[0].payload.values
    assert abs(told["loss"]) < 1e-6
    assert told["grad_norm"] < 1e-5
    assert (told["overlap_ratio"], told["top1_agreement"]) == (1.0, 1.0)
    assert abs(told["entropy_gap"]) < 1e-6


@pytest.mark.parametrize("form", ["top_k", "sampled", "full"])
def test_how_a_step_is_cut_into_micro_batches_changes_nothing(tmp_path, form):
    """Weights in the mean: where a gradient is next to 0, Adam makes its rounding a whole step."""
    pair = make_pair(tmp_path)
    outputs, told = [], []
    for tokens in (16, 100_000):
        recipe = make_recipe(steps=2, micro_batch_tokens=tokens, form=form, learning_rate=1e-3)
        job = make_job(tmp_path, pair=pair, recipe=recipe)
        events = events_of(job, tmp_path / f"run-{tokens}")
        told.append([event.payload.values for event in by_kind(events, "metrics")])
        outputs.append(weights(tmp_path / f"run-{tokens}"))
    for one, other in zip(*told, strict=True):
        for key in ("loss", "grad_norm", "reverse_kl", "token_reward"):
            assert one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6), key
    for name in outputs[0]:
        assert (outputs[0][name] - outputs[1][name]).abs().mean() < 1e-6, name


def start(job, folder, run_dir):
    (folder / "job.json").write_text(job.model_dump_json())
    command = [
        sys.executable,
        "-m",
        "opdcore",
        "run",
        str(folder / "job.json"),
        "--run-dir",
        str(run_dir),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_run_killed_at_step_7_and_resumed_ends_with_the_same_weights_bit_for_bit(tmp_path):
    recipe = make_recipe(steps=20, checkpoint_steps=3, evaluate_steps=10)
    job = make_job(tmp_path, recipe=recipe)
    events_of(job, tmp_path / "undisturbed")
    with start(job, tmp_path, tmp_path / "killed") as process:
        for line in process.stdout:
            event = json.loads(line)
            if (event["kind"], event["step"]) == ("metrics", 7):
                os.kill(process.pid, signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
    second = events_of(job.model_copy(update={"attempt": 2}), tmp_path / "killed")
    assert by_kind(second, "stage_started")[0].payload.resumed_from_step == 6
    assert [event.step for event in by_kind(second, "metrics")] == list(range(7, 21))
    assert same_weights(weights(tmp_path / "undisturbed"), weights(tmp_path / "killed"))
    assert (
        second[-1].payload.outcome == events_of(job, tmp_path / "undisturbed")[-1].payload.outcome
    )


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    job = make_job(tmp_path)
    events_of(job, tmp_path / "run")
    torn = tmp_path / "run" / "checkpoints" / "stage-00-step-0000004" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-10])
    again = events_of(job, tmp_path / "run")
    assert by_kind(again, "stage_started")[0].payload.resumed_from_step == 2


def test_a_stopped_run_keeps_its_last_step_and_says_cancelled(tmp_path):
    job, events = make_job(tmp_path, recipe=make_recipe(checkpoint_steps=100, steps=100)), []

    def run():
        stop = lambda: any(event.step == 3 for event in by_kind(events, "metrics"))  # noqa: E731
        for event in opdcore.run(job, tmp_path / "run", stop=stop):
            events.append(event)  # noqa: PERF402 - the list is watched while it grows

    with pytest.raises(Cancelled):
        run()
    assert events[-1].payload.status == "cancelled"
    sha256 = checkpoints.recipe_sha256(job.recipe)
    assert checkpoints.newest(tmp_path / "run" / "checkpoints", recipe_sha256=sha256).step == 3


def test_sigterm_ends_the_command_with_its_code_and_a_checkpoint(tmp_path):
    job = make_job(tmp_path, recipe=make_recipe(steps=500, checkpoint_steps=500, evaluate_steps=0))
    with start(job, tmp_path, tmp_path / "run") as process:
        for line in process.stdout:
            if json.loads(line)["kind"] == "positions":
                process.terminate()
                break
        last = process.stdout.read().splitlines()[-1]
        assert process.wait() == 5
    assert json.loads(last)["payload"]["error"]["code"] == "run.cancelled"
    assert list((tmp_path / "run" / "checkpoints").glob("stage-*"))


def test_without_a_verifier_a_run_works_and_says_what_it_cannot_tell(tmp_path):
    recipe = make_recipe(evaluation={"verifier": "none"}, steps=1)
    events = events_of(make_job(tmp_path, recipe=recipe), tmp_path / "run")
    assert "no verifier" in by_kind(events, "log")[0].payload.message
    assert by_kind(events, "evaluation") == []
    assert by_kind(events, "metrics")[0].payload.values["rollout_accuracy"] is None
    assert events[-1].payload.outcome.code == "unmeasured"


def test_what_the_verifier_could_not_grade_is_counted_by_its_reason(tmp_path):
    tested = [{**row, "tests": ["assert add(1, 2) == 3"]} for row in QUESTIONS[:4]]
    recipe = make_recipe(evaluation={"verifier": "unit_tests", "prompts": 6}, steps=1)
    job = make_job(tmp_path, recipe=recipe, rows=[*tested, *QUESTIONS[4:]])
    evaluations = [
        event.payload for event in by_kind(events_of(job, tmp_path / "run"), "evaluation")
    ]
    assert {one.role for one in evaluations} == {"student", "teacher"}
    for one in evaluations:
        # Two of six prompts have no tests, and each is answered twice; no answer here is Python.
        assert one.abstentions == {"the prompt has no tests": 4}
        assert one.values["accuracy" if one.role == "student" else "teacher_accuracy"] == 0.0
    student = next(one for one in evaluations if one.role == "student")
    assert student.values["evaluation_abstained_share"] == pytest.approx(1 / 3)


def test_a_judge_that_is_away_leaves_the_accuracy_unknown_and_says_why(tmp_path):
    recipe = make_recipe(evaluation={"verifier": "judge", "prompts": 2, "teacher": False}, steps=1)
    judge = {"base_url": "http://127.0.0.1:9", "model": "any", "timeout_seconds": 1}
    events = events_of(make_job(tmp_path, recipe=recipe, judge=judge), tmp_path / "run")
    for event in by_kind(events, "evaluation"):
        assert sum(event.payload.abstentions.values()) == 4
        assert event.payload.values["accuracy"] is None


def test_a_judge_without_an_endpoint_is_refused(tmp_path):
    recipe = make_recipe(evaluation={"verifier": "judge"})
    info = refused(tmp_path, recipe=recipe)
    assert (info.code, info.field) == ("judge.missing", "judge")


def test_a_non_finite_step_ends_the_run_before_the_update(tmp_path):
    recipe = make_recipe(learning_rate=1.0, max_grad_norm=1e6, weight_decay=0, steps=60)
    student, teacher = make_pair(tmp_path)
    tensors = load_file(teacher / "model.safetensors")
    tensors["model.norm.weight"] *= 1e20
    save_file(tensors, teacher / "model.safetensors", metadata={"format": "pt"})
    job, events = make_job(tmp_path, pair=(student, teacher), recipe=recipe), []
    with pytest.raises(EngineFailure) as failure:
        events.extend(opdcore.run(job, tmp_path / "run"))
    assert failure.value.info.code == "run.nonfinite"


def refused(tmp_path, **changes):
    job = make_job(tmp_path, **changes)
    with pytest.raises(BadInput) as refusal:
        events_of(job, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*")), "nothing is half-saved"
    return refusal.value.info


def test_token_maps_that_differ_are_refused(tmp_path):
    pair = (
        make_folder(tmp_path / "a", "qwen2"),
        make_folder(tmp_path / "b", "qwen3", vocabulary=500),
    )
    assert refused(tmp_path, pair=pair).code == "pair.token_maps_differ"


def test_k_above_the_vocabulary_is_refused(tmp_path):
    info = refused(tmp_path, recipe=make_recipe(k=4000))
    assert (info.code, info.field) == ("recipe.k_above_vocabulary", "recipe.stages.0.k")


def test_a_prompt_beyond_the_context_is_refused_by_its_row(tmp_path):
    rows = [*QUESTIONS[:3], {"prompt": "word " * 400, "answer": "1"}]
    info = refused(tmp_path, rows=rows, held_out=False, recipe=make_recipe(steps=8))
    assert (info.code, "row 4" in info.field) == ("prompt_set.too_long", True)


def test_a_broken_line_is_refused_by_its_number(tmp_path):
    job = make_job(tmp_path)
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    lines[6] = lines[6][:-1]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    with pytest.raises(BadInput) as refusal:
        events_of(job, tmp_path / "run")
    assert refusal.value.info.code == "prompt_set.row"
    assert "line 7" in refusal.value.info.field


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    pair = make_pair(tmp_path)
    events_of(make_job(tmp_path, pair=pair), tmp_path / "run")
    with pytest.raises(BadInput) as refusal:
        events_of(make_job(tmp_path, pair=pair, recipe=make_recipe(k=4)), tmp_path / "run")
    assert refusal.value.info.code == "run.other_recipe"


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("llama", "qwen2"), ("qwen2", "gpt_neox"), ("qwen3", "gemma"), ("gpt_neox", "llama")],
)
def test_any_two_architectures_of_one_tokenizer_distil(tmp_path, student, teacher):
    recipe = make_recipe(steps=1, evaluation={"verifier": "math", "prompts": 2})
    job = make_job(tmp_path, pair=make_pair(tmp_path, student, teacher), recipe=recipe)
    events = events_of(job, tmp_path / "run")
    assert events[-1].payload.status == "succeeded"
    assert by_kind(events, "evaluation")[0].payload.verifier == "math"
    assert by_kind(events, "metrics")[0].payload.values["sampler_logprob_difference"] < 1e-5
