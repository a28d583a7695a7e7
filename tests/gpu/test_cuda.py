"""A run on a CUDA device samples, learns and tells the same numbers as on a CPU."""

import pytest
import torch

from tests.opdcore.jobs import by_kind, events_of, make_job, make_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
STEPS = 2


def metrics_on(device, folder):
    folder.mkdir()
    recipe = make_recipe(steps=STEPS, form="full", learning_rate=1e-3)
    job = make_job(
        folder, recipe=recipe, held_out=False, resources={"train": {"devices": [device]}}
    )
    events = events_of(job, folder / "run")
    assert events[-1].payload.status == "succeeded"
    return [event.payload.values for event in by_kind(events, "metrics")]


def test_a_run_on_a_gpu_samples_and_learns(tmp_path):
    steps = metrics_on("cuda:0", tmp_path / "gpu")
    assert len(steps) == STEPS
    for values in steps:
        assert values["loss"] > 0
        assert values["weights_changed_share"] > 0.9
        # What a token was sampled with is what it is trained with, up to float32's rounding.
        assert values["sampler_logprob_difference"] < 1e-3
        assert values["peak_memory_bytes"] > 0


def test_the_first_steps_alignment_is_that_of_a_cpu(tmp_path):
    """The draws differ by device, so both are compared where they hardly matter: at random weights."""
    gpu = metrics_on("cuda:0", tmp_path / "gpu")[0]
    cpu = metrics_on("cpu", tmp_path / "cpu")[0]
    for key in ("student_entropy", "teacher_entropy"):
        assert gpu[key] == pytest.approx(cpu[key], rel=0.02)
