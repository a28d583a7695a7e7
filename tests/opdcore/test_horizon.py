"""The horizon: which positions weigh how much, how the cap grows, and that both survive a resume."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from opdcore.contract.distill import DistillStage
from opdcore.contract.errors import Cancelled
from opdcore.contract.positions import Positions
from opdcore.horizon import STEPS, Horizon
from tests.opdcore.jobs import by_kind, events_of, make_job, make_recipe

WEIGHTS = "output/model.safetensors"


def stage(**knobs) -> DistillStage:
    return DistillStage(max_response_tokens=100, **knobs)


def overlaps(*values: float) -> Positions:
    """Quarters of 100 tokens, each reached by as many rollouts."""
    return Positions(
        edges=(0, 25, 50, 75, 100), positions=(50,) * 4, values={"effective_overlap": values}
    )


HOLDS, FADES = overlaps(0.9, 0.9, 0.8, 0.8), overlaps(0.9, 0.9, 0.5, 0.2)


def test_without_a_knob_every_position_weighs_the_same():
    horizon = Horizon(stage())
    horizon.observe(FADES)
    assert horizon.weights(torch.arange(9)) is None
    assert (horizon.longest, horizon.told()) == (100, {})


def test_a_prefix_ends_the_loss_and_a_half_life_halves_it():
    weights = Horizon(stage(loss_prefix_tokens=30, depth_half_life_tokens=10)).weights(
        torch.tensor([0, 10, 20, 29, 30, 99])
    )
    torch.testing.assert_close(weights, torch.tensor([1, 0.5, 0.25, 0.5**2.9, 0, 0]))


def test_chunks_in_which_overlap_does_not_hold_are_masked_once_most_steps_say_so():
    horizon = Horizon(stage(mask_late_chunks=True))
    for seen in (HOLDS, FADES, HOLDS, FADES):
        horizon.observe(seen)
        assert horizon.weights(torch.tensor([99])) is None
    horizon.observe(FADES)
    assert horizon.weights(torch.tensor([49, 50])).tolist() == [1, 0]
    assert horizon.told() == {"trained_up_to_tokens": 50}


def test_the_first_chunk_is_learned_from_even_where_overlap_is_low_in_all_of_them():
    horizon = Horizon(stage(mask_late_chunks=True))
    for _ in range(STEPS):
        horizon.observe(overlaps(0.1, 0.1, 0.1, 0.1))
    assert horizon.weights(torch.tensor([0, 24, 25])).tolist() == [1, 1, 0]
    assert horizon.told() == {"trained_up_to_tokens": 25}


def test_the_cap_grows_while_overlap_holds_and_stays_while_it_does_not():
    horizon = Horizon(stage(curriculum_start_tokens=40))
    for _ in range(2 * STEPS):
        horizon.observe(FADES)
    assert horizon.longest == 40
    for _ in range(STEPS):
        horizon.observe(HOLDS)
    assert horizon.longest > 40
    for _ in range(10 * STEPS):
        horizon.observe(HOLDS)
    assert horizon.longest == 100


def test_what_was_followed_is_taken_up_again():
    first = Horizon(stage(curriculum_start_tokens=40, mask_late_chunks=True))
    for seen in (HOLDS, HOLDS, HOLDS, FADES):
        first.observe(seen)
    second = Horizon(first.stage)
    second.restore(first.state())
    for _ in range(STEPS):
        first.observe(HOLDS)
        second.observe(HOLDS)
        assert (first.longest, first.late_from) == (second.longest, second.late_from)


def test_a_prefix_longer_than_the_response_is_refused():
    with pytest.raises(ValidationError, match="loss_prefix_tokens: 101 is more than"):
        stage(loss_prefix_tokens=101)


def test_a_run_under_a_curriculum_resumes_bit_for_bit_and_tells_its_cap(tmp_path):
    knobs = {"curriculum_start_tokens": 4, "late_overlap": 0.0, "mask_late_chunks": True}
    recipe = make_recipe(steps=8, **knobs)
    (tmp_path / "a").mkdir()
    job = make_job(tmp_path / "a", recipe=recipe)
    whole = events_of(job, tmp_path / "whole")
    caps = [e.payload.values["response_cap_tokens"] for e in by_kind(whole, "metrics")]
    longest = [e.payload.values["response_tokens_max"] for e in by_kind(whole, "metrics")]
    assert caps[0] == 4
    assert caps[-1] > 4
    assert all(length <= cap for length, cap in zip(longest, caps, strict=True))

    steps = iter(range(1000))
    with pytest.raises(Cancelled):
        events_of(job, tmp_path / "cut", stop=lambda: next(steps) > 4)
    events_of(job, tmp_path / "cut")
    both = [load_file(tmp_path / folder / WEIGHTS) for folder in ("whole", "cut")]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
