"""The page of objectives says what the contract does and what the losses are."""

from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from opdcore.contract.distill import DistillStage
from opdcore.contract.document import experimental_uses
from opdcore.contract.objective import Divergence, Normalisation, SampledLoss, Support
from tests.opdcore.naive import all_objectives, biased_objectives

PAGE = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")


def table(heading):
    """Return the first table under a heading, as a list of rows of cells."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    end = next((i for i, line in enumerate(lines[2:], 2) if line.startswith("|---")), None)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return rows[:1] + rows[2 : end - 1 if end else None]


def verdict(**knobs):
    try:
        stage = DistillStage.model_validate(knobs)
    except ValidationError:
        return "refused"
    return "experiment" if experimental_uses(stage) else "sound"


def top_k_cells():
    header, *rows = table("Form top_k")
    return {
        (row[0], row[1], support): word
        for row in rows
        for support, word in zip(header[2:], row[2:], strict=True)
    }


def test_every_combination_of_top_k_is_on_the_page_as_the_contract_takes_it():
    names = product(get_args(Divergence), get_args(Normalisation), get_args(Support))
    assert top_k_cells() == {
        (divergence, normalisation, support): verdict(
            divergence=divergence, normalisation=normalisation, support=support
        )
        for divergence, normalisation, support in names
    }


def test_the_other_forms_are_on_the_page_as_the_contract_takes_them():
    full = {row[0]: row[1] for row in table("Form full")[1:]}
    assert full == {d: verdict(form="full", divergence=d) for d in get_args(Divergence)}
    sampled = table("Form sampled")[1:]
    assert {row[1] for row in sampled} == {*get_args(SampledLoss), "k1"}
    assert {row[0] for row in sampled} == set(get_args(Divergence))
    for divergence, loss, word in sampled:
        assert verdict(form="sampled", divergence=divergence, sampled_loss=loss) == word


def test_every_sound_cell_has_a_reference_and_every_biased_one_too():
    referenced = {
        (one.divergence, one.normalisation, one.support)
        for one in [*all_objectives(), *biased_objectives()]
        if one.form == "top_k"
    }
    assert referenced == {cell for cell, word in top_k_cells().items() if word != "refused"}


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"form": "scalar_top_k"}, "expected gradient is 0"),
        ({"normalisation": "scalar"}, "expected gradient is 0"),
        ({"form": "sampled", "sampled_loss": "k1"}, "without the teacher"),
        ({"form": "sampled", "divergence": "forward"}, "drawn from the student"),
        ({"form": "sampled", "divergence": "jsd"}, "drawn from the student"),
        ({"k": 1, "normalisation": "renormalised"}, "is 0 wherever one token is left"),
        ({"divergence": "jsd", "normalisation": "unnormalised"}, "has none"),
        ({"form": "full", "reward_clamp": 5}, "held constant"),
        ({"normalisation": "tail_bucket", "reward_clamp": 5}, "held constant"),
        ({"divergence": "jsd", "reward_clamp": 5}, "held constant"),
        ({"form": "sampled", "sampled_loss": "k2", "reward_clamp": 5}, "held constant"),
        ({"reward_power": 1}, "form sampled"),
        ({"form": "sampled", "sampled_loss": "k3", "reward_power": 1}, "form sampled"),
        ({"form": "sampled", "reward_power": 2, "reward_clamp": 5}, "0.5 already"),
        ({"sampled_loss": "k2"}, "form sampled"),
        ({"divergence": "forward", "high_entropy_forward_weight": 1}, "what it would add"),
        ({"divergence": "forward", "extrapolation": 1.2}, "reverse divergence"),
        ({"divergence": "jsd", "jsd_beta": 1}, "jsd_beta"),
        ({"divergence": "jsd", "jsd_beta": 0}, "jsd_beta"),
    ],
)
def test_an_unsound_objective_is_refused_with_the_reason(knobs, reason):
    with pytest.raises(ValidationError) as refusal:
        DistillStage.model_validate(knobs)
    assert reason in str(refusal.value)


def test_an_old_recipe_means_what_it_meant():
    stage = DistillStage()
    added = {
        "reward_clamp": None, "reward_power": 0, "extrapolation": 1, "initial_kl_weight": 0,
        "gold_sft_weight": 0, "high_entropy_forward_weight": 0, "token_mask": "none",
        "token_selection": "all", "sampled_loss": "policy_gradient",
    }  # fmt: skip
    assert {name: getattr(stage, name) for name in added} == added
