"""Estimates are arithmetic on a shape that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opdcore.estimate import (
    Plan,
    Row,
    Throughput,
    assumed_throughput,
    estimate,
    kv_cache_bytes_per_token,
)
from opdcore.inspection import DeclaredIds, ModelCard

NO_IDS = DeclaredIds(tokenizer=(), config=(), generation_config=())
MEASURED = Throughput(sampled=1000, scored=4000, trained=2000, measured=True)


def make_card(**overrides: object) -> ModelCard:
    shape = {
        "architecture": "Qwen2ForCausalLM",
        "model_type": "qwen2",
        "parameters": 1_000_000,
        "weights_bytes": 4_000_000,
        "dtypes": ("F32",),
        "quantization": None,
        "vocabulary": 600,
        "padded_vocabulary": 640,
        "context_length": 256,
        "hidden_size": 64,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "tied_embeddings": True,
        "chat_template_sha256": None,
        "bos": NO_IDS,
        "eos": NO_IDS,
        "pad": NO_IDS,
        "token_map_sha256": "0",
        "weights_fingerprint": "0",
    }
    return ModelCard.model_validate(shape | overrides)


def make_plan(**overrides: object) -> Plan:
    plan = Plan(
        prompts_per_step=8,
        rollouts_per_prompt=4,
        prompt_tokens=50,
        response_tokens=100,
        expected_response_tokens=60.0,
        steps=10,
        train_rollouts_at_once=2,
        logits_rows_at_once=16,
    )
    return replace(plan, **overrides)  # type: ignore[arg-type]


def amounts(rows: tuple[Row, ...]) -> dict[str, float]:
    return {row.label: row.amount for row in rows}


def test_cache_holds_keys_and_values_of_every_layer() -> None:
    assert kv_cache_bytes_per_token(make_card(), "float32") == 2 * 2 * 2 * 16 * 4
    assert kv_cache_bytes_per_token(make_card(), "bfloat16") == 2 * 2 * 2 * 16 * 2


def test_memory_of_training_by_hand() -> None:
    result = estimate(
        make_card(),
        [make_card(parameters=3_000_000)],
        plan=make_plan(sample_rollouts_at_once=1),
        throughput=MEASURED,
    )
    rows = amounts(result.memory)
    assert rows["student weights"] == 4e6
    assert rows["optimizer"] == 8e6
    assert rows["teacher weights"] == 12e6
    assert rows["gradients"] == 4e6
    saved = 4 * 64 + 2 * 64 + 2 * 32 + 3 * 128
    assert rows["activations"] == 2 * 150 * (2 * saved + 128) * 4
    assert rows["one layer's pass"] == 2 * 150 * (3 * 128 + 5 * 64) * 4
    assert rows["logits chunk"] == 16 * (640 + 640) * 4
    assert "KV cache" not in rows
    assert result.peak_memory_bytes == round(sum(rows.values()))


def test_memory_peaks_in_sampling_where_the_cache_is_larger() -> None:
    plan = make_plan(prompts_per_step=800)
    rows = amounts(estimate(make_card(), [], plan=plan, throughput=MEASURED).memory)
    assert rows["KV cache"] == 3200 * 150 * 512
    assert rows["weights joined for sampling"] == 4e6
    assert "gradients" not in rows


def test_sampling_in_parts_shrinks_the_cache() -> None:
    plan = make_plan(prompts_per_step=800, sample_rollouts_at_once=1600)
    rows = amounts(estimate(make_card(), [], plan=plan, throughput=MEASURED).memory)
    assert rows["KV cache"] == 1600 * 150 * 512


def test_half_precision_with_master_weights_by_hand() -> None:
    plan = make_plan(weights_dtype="bfloat16", teacher_dtype="bfloat16", fp32_master=True)
    rows = amounts(estimate(make_card(), [make_card()], plan=plan, throughput=MEASURED).memory)
    assert rows["student weights"] == 2e6
    assert rows["float32 master weights"] == 4e6
    assert rows["gradients"] == 4e6
    assert rows["teacher weights"] == 2e6


def test_lora_trains_its_factors_and_stores_them_beside_the_weights() -> None:
    plan = make_plan(lora_rank=8, sampled=False)
    result = estimate(make_card(), [], plan=plan, throughput=MEASURED)
    # q and o: 64 + 64 each; k and v: 64 + 32 each; gate, up and down: 64 + 128 each.
    trained = 2 * 8 * (2 * 128 + 2 * 96 + 3 * 192)
    assert amounts(result.memory)["optimizer"] == 8 * trained
    assert amounts(result.memory)["gradients"] == 4 * trained
    weights = 4 * (1_000_000 + trained)
    assert amounts(result.disk) == {
        "resume states": weights + 8 * trained,
        "the state written aside": weights + 8 * trained,
        "kept weights": 2 * weights,
    }


def test_checkpointing_keeps_one_layer_and_every_input() -> None:
    card = make_card(layers=20)
    plan = make_plan(sample_rollouts_at_once=1)
    plain = amounts(estimate(card, [], plan=plan, throughput=MEASURED).memory)
    plan = replace(plan, gradient_checkpointing=True)
    spared = amounts(estimate(card, [], plan=plan, throughput=MEASURED).memory)
    assert spared["activations"] == 2 * 150 * (832 + 20 * 64 + 128) * 4
    assert spared["activations"] < plain["activations"] / 5


def test_disk_counts_the_state_that_is_written_aside() -> None:
    plan = make_plan(resume_states_kept=1, weights_kept=2, trace_bytes=123)
    result = estimate(make_card(), [], plan=plan, throughput=MEASURED)
    assert amounts(result.disk) == {
        "resume states": 12e6,
        "the state written aside": 12e6,
        "kept weights": 8e6,
        "traces": 123,
    }
    assert result.disk_bytes == 32_000_123


def test_the_output_is_last_where_no_state_is_written_aside() -> None:
    plan = make_plan(resume_states_kept=2, weights_kept=0, states_written=1)
    result = estimate(make_card(), [], plan=plan, throughput=MEASURED)
    assert amounts(result.disk) == {"resume states": 12e6, "output": 4e6}


def test_a_process_on_a_cpu_holds_its_program_and_what_the_other_phase_left() -> None:
    plan = make_plan(prompts_per_step=800, train_rollouts_at_once=4, program_bytes=300_000_000)
    rows = amounts(estimate(make_card(), [], plan=plan, throughput=MEASURED).memory)
    assert rows["the program itself"] == 300e6
    # Half the cache is one tensor of 123 MB, which is given back; the logits' tables are kept.
    assert rows["KV cache"] == 3200 * 150 * 512
    activations = 4 * 150 * (2 * (4 * 64 + 2 * 64 + 2 * 32 + 3 * 128) + 128) * 4
    passing = 4 * 150 * (4 * 128 + 2 * 64) * 4
    trains = 4e6 + activations + passing + 16 * 640 * 4
    samples = 4e6 + 2 * 3200 * 640 * 4
    assert "allocator" not in rows
    assert rows.get("left by the other phase", 0) == max(0, trains - samples)
    assert rows["holes in the heap"] == pytest.approx(0.2 * max(trains, samples))


def test_processes_that_train_share_what_is_cut_and_hold_the_student_whole() -> None:
    plan = make_plan(processes=4, sampled=False)
    rows = amounts(estimate(make_card(), [make_card()], plan=plan, throughput=MEASURED).memory)
    assert rows["student weights"] == 4e6
    assert rows["share of the weights in training"] == 1e6
    assert rows["optimizer"] == 2e6
    assert rows["gradients"] == 1e6
    assert rows["weights gathered for a pass"] == 640 * 64 * 4
    assert rows["teacher weights"] == 4e6


def test_what_lies_on_devices_of_its_own_is_not_the_trainers() -> None:
    plan = make_plan(prompts_per_step=800, sampler_here=False, teachers_here=False)
    result = estimate(make_card(), [make_card()], plan=plan, throughput=MEASURED)
    rows = amounts(result.memory)
    assert "KV cache" not in rows
    assert "teacher weights" not in rows
    found = {one.role: amounts(one.rows) for one in result.apart}
    assert found["sample"] == {"student weights": 4e6, "KV cache": 3200 * 150 * 512}
    assert found["teacher"] == {"teacher weights": 4e6}
    assert amounts(result.disk)["weights for the sampler's server"] == 4e6


def test_time_by_hand() -> None:
    result = estimate(
        make_card(), [make_card(), make_card()], plan=make_plan(), throughput=MEASURED
    )
    rows = amounts(result.time)
    assert rows["sampling"] == pytest.approx(32 * 60 / 1000)
    assert rows["teacher scoring"] == pytest.approx(2 * 32 * 110 / 4000)
    assert rows["training"] == pytest.approx(32 * 110 / 2000)
    assert result.seconds == pytest.approx(10 * sum(rows.values()))
    assert result.measured


def test_assumed_throughput_follows_arithmetic_or_memory_whichever_binds() -> None:
    card, plan = make_card(), make_plan()
    fast_memory = assumed_throughput(
        card, [make_card(parameters=2_000_000)], plan=plan, flops_per_second=1e9,
        memory_bytes_per_second=1e15,
    )  # fmt: skip
    assert fast_memory.sampled == pytest.approx(500)
    assert fast_memory.scored == pytest.approx(250)
    assert fast_memory.trained == pytest.approx(1000 / 6)
    assert not fast_memory.measured
    slow_memory = assumed_throughput(
        card, [], plan=plan, flops_per_second=1e15, memory_bytes_per_second=1e9
    )
    read = 4e6 + 32 * 150 * 512 / 2
    assert slow_memory.sampled == pytest.approx(32 * 1e9 / read)
