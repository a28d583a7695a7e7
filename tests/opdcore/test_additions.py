"""What is added to the objective in a run: demonstrations, the initial student, masks, experiments."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from opdcore.contract.distill import DistillStage
from opdcore.contract.document import experimental_uses
from opdcore.contract.errors import BadInput
from opdcore.contract.rendering import Rendering
from opdcore.rendering import Renderer
from opdcore.scoring import likelihood
from tests.opdcore.jobs import QUESTIONS, by_kind, events_of, make_job, make_recipe
from tests.opdcore.model_folders import make_pair
from tests.opdcore.naive import make_ids, make_logits

SHOWN = [row | {"response": f"He has {row['answer']}."} for row in QUESTIONS]


def told(tmp_path, *, lab=None, rows=QUESTIONS, pair=None, **knobs):
    """Return the metrics of each step of a run without evaluations."""
    recipe = make_recipe(steps=2, evaluate_steps=0, **knobs)
    job = make_job(tmp_path, recipe=recipe, rows=rows, held_out=False, pair=pair, lab_version=lab)
    events = events_of(job, tmp_path / "run")
    return [event.payload.values for event in by_kind(events, "metrics")]


def test_a_likelihood_is_the_one_of_cross_entropy_in_value_and_gradient():
    torch.manual_seed(0)
    head, same = nn.Linear(6, 13), nn.Linear(6, 13)
    same.load_state_dict(head.state_dict())
    hidden, ids = make_logits(40, 6).requires_grad_(), make_ids(40, 13)
    twin = hidden.detach().clone().requires_grad_()
    total = likelihood(hidden, head, ids, vocabulary=10**7, loss_scale=0.3)
    expected = functional.cross_entropy(same(twin), ids, reduction="sum")
    (0.3 * expected).backward()
    assert total == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(hidden.grad, twin.grad)
    torch.testing.assert_close(head.weight.grad, same.weight.grad)


def test_demonstrations_are_learnt_from_and_their_likelihood_is_told(tmp_path):
    pair, runs = make_pair(tmp_path), []
    for weight in (0.0, 5.0):
        folder = tmp_path / f"weight-{weight}"
        folder.mkdir()
        runs.append(told(folder, pair=pair, rows=SHOWN, gold_sft_weight=weight))
    plain, shown = runs
    assert plain[0]["gold_nll"] is None
    assert 0 < shown[1]["gold_nll"] < shown[0]["gold_nll"]
    # The first step's rollouts are the same, so that the demonstrations are all that is added.
    expected = plain[0]["loss"] + 5 * shown[0]["gold_nll"]
    assert shown[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_prompt_without_a_demonstration_is_refused_by_its_row(tmp_path):
    with pytest.raises(BadInput) as refusal:
        told(tmp_path, rows=[*SHOWN[:3], *QUESTIONS[3:]], gold_sft_weight=1.0, prompts_per_step=40)
    info = refusal.value.info
    assert (info.code, info.field) == (
        "recipe.no_demonstrations",
        "recipe.stages.0.gold_sft_weight",
    )
    assert "row 4" in info.message


def test_a_response_is_encoded_with_its_end_and_nothing_before_it(tmp_path):
    student, _ = make_pair(tmp_path)
    renderer = Renderer.from_folder(student, Rendering())
    (ids,) = renderer.responses(["He has 5."])
    assert ids[-1] in renderer.stop_ids
    assert renderer.decode(ids[:-1]) == "He has 5."


def test_the_initial_student_is_where_the_run_started(tmp_path):
    first, second = told(tmp_path, initial_kl_weight=0.1)
    assert first["initial_kl"] == pytest.approx(0, abs=1e-6)
    assert second["initial_kl"] > 1e-6
    assert first["gold_nll"] is None


def test_special_tokens_can_be_left_out_of_the_loss(tmp_path):
    all_of_them, masked = tmp_path / "all", tmp_path / "masked"
    for folder in (all_of_them, masked):
        folder.mkdir()
    assert told(all_of_them)[0]["trained_share"] == 1
    share = told(masked, token_mask="special_and_stop")[0]["trained_share"]
    assert 0 < share <= 1


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"normalisation": "unnormalised"}, "normalisation"),
        ({"form": "sampled", "sampled_loss": "k3"}, "sampled_loss"),
        ({"form": "sampled", "reward_power": 0.5}, "reward_power"),
        ({"extrapolation": 1.25}, "extrapolation"),
        ({"token_selection": "either"}, "token_selection"),
    ],
)
def test_an_experiment_is_refused_outside_the_laboratory_and_works_in_it(tmp_path, knobs, named):
    assert experimental_uses(DistillStage(**knobs)) == (named,)
    with pytest.raises(BadInput) as refusal:
        told(tmp_path, **knobs)
    info = refusal.value.info
    assert (info.code, info.field) == ("recipe.experimental", f"recipe.stages.0.{named}")
    assert told(tmp_path, lab="1", **knobs)[-1]["loss"] is not None


def test_a_default_stage_is_no_experiment():
    assert experimental_uses(DistillStage()) == ()
