"""The engine's rows say how many times better we are, and unequal gradients end the comparison."""

import numpy as np
import pytest

from benchmarks import engine, parity


def cell(side, seconds, *, tokens=1024, peak=200e6):
    return {
        "side": side, "seconds": [seconds] * 3, "cpu_seconds": [seconds / 2] * 3, "tokens": [tokens] * 3,
        "extra_peak_bytes": peak, "warmup": 1, "measured": 3, "threads": 1, "load_1min": [0.5, 0.6],
        "phases": [{"step_seconds": seconds}] * 3,
    }  # fmt: skip


MACHINE = {"side": "machine", "device": "cpu", "flops": 1e11, "bytes_per_second": 1e10}


def rows_of(name, *cells):
    summary = engine.summarise({name: [*cells, MACHINE]})
    return {row["name"]: row for row in summary["rows"]}


def test_half_the_seconds_is_twice_as_good():
    cells = [cell("ours", 1.0, peak=100e6), cell("peer", 2.0)] * 2
    rows = rows_of("distill_step_v1k", *cells)
    row = rows["distill_step_v1k"]
    assert (row["ours"], row["peer"], row["ratio"], row["unit"]) == (1.0, 2.0, 2.0, "s")
    assert rows["distill_step_v1k_memory"]["ratio"] == 2.0


def test_a_ratio_is_the_median_of_the_pairs_ratios():
    cells = [cell("ours", 1), cell("peer", 3), cell("ours", 4), cell("peer", 4), cell("ours", 1)]
    row = rows_of("distill_step_v1k", *cells, cell("peer", 2))["distill_step_v1k"]
    assert (row["ratio_low"], row["ratio"], row["ratio_high"]) == (1.0, 2.0, 3.0)


def test_steps_of_varying_length_count_by_their_tokens():
    cells = [cell("ours", 1.0, tokens=2000), cell("peer", 1.0, tokens=1000)]
    assert rows_of("distill_step_varying", *cells)["distill_step_varying"]["ratio"] == 2.0


def test_more_tokens_per_second_is_better():
    row = rows_of("rollout_cpu", cell("ours", 1.0), cell("peer", 2.0))["rollout_cpu"]
    assert (row["ours"], row["peer"], row["ratio"]) == (1024.0, 512.0, 2.0)


def test_a_part_without_its_device_says_so():
    rows = {"gpu_step_0_5b": [{"side": "not run", "why": "no CUDA device"}]}
    summary = engine.summarise(rows)
    assert summary["not_run"] == {"gpu_step_0_5b": "no CUDA device"}
    assert summary["rows"] == []


def test_the_same_gradient_has_cosine_one_and_no_error():
    gradient = {"a": np.ones((2, 3), np.float32), "b": np.arange(4, dtype=np.float32)}
    assert parity.difference(gradient, gradient) == {
        "cosine": pytest.approx(1.0),
        "relative_error": 0.0,
    }


def test_a_gradient_off_by_a_factor_fails_by_its_error():
    gradient = {"a": np.ones(3, np.float32)}
    found = parity.difference({"a": 1.01 * gradient["a"]}, gradient)
    assert not parity.agrees({**found, "loss_relative_error": 0.0})
    assert found["relative_error"] == pytest.approx(0.01, rel=1e-4)


def test_gradients_of_other_names_are_no_comparison():
    with pytest.raises(ValueError, match="Only one side"):
        parity.difference({"a": np.ones(1)}, {"b": np.ones(1)})
