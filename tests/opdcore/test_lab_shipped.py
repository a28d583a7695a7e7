import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from opdcore.lab.measuring import judge, open_model
from opdcore.lab.record import (
    HELD_OUT_FILE,
    LAB_VERSION,
    MODEL_NAMES,
    TRAIN_FILE,
    hashes,
    read,
    read_prompts,
    shipped,
)
from opdcore.lab.tasks import FAMILIES, prompt_sets

families = pytest.mark.parametrize("family", FAMILIES)
MEGABYTE = 1_000_000
SUBSET = 48


@families
def test_the_shipped_record_is_of_this_version_and_seed_0(family):
    record = read(shipped(family))
    assert (record.lab_version, record.family, record.seed) == (LAB_VERSION, family, 0)
    assert tuple(record.models) == MODEL_NAMES


@families
def test_shipped_files_are_what_the_record_says(family):
    assert hashes(shipped(family)) == read(shipped(family)).files


def test_what_is_shipped_is_small():
    files = [path for family in FAMILIES for path in shipped(family).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20 * MEGABYTE


@families
def test_shipped_prompts_are_those_of_seed_0(family):
    sets = prompt_sets(family, seed=0)
    assert read_prompts(shipped(family) / TRAIN_FILE) == sets.train
    assert read_prompts(shipped(family) / HELD_OUT_FILE) == sets.held_out


@families
def test_the_teacher_knows_what_the_student_half_believes(family):
    models = read(shipped(family)).models
    assert models["student"].accuracy.high < 0.7 < models["teacher"].accuracy.low
    assert models["student"].known_accuracy.value > 0.9
    assert models["teacher_other_style"].accuracy.low > 0.9


@families
def test_the_student_has_forgotten_the_other_style(family):
    models = read(shipped(family)).models
    assert models["student"].other_style_mass <= 0.002
    assert models["teacher_other_style"].other_style_mass > 0.99


@families
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_shipped_models_open_like_any_other(family, name):
    folder = shipped(family) / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = prompt_sets(family, seed=0).held_out[0].prompt
    assert tokenizer.decode(tokenizer(prompt)["input_ids"]) == prompt
    assert model.config.vocab_size == len(tokenizer) >= 300
    assert model.config.eos_token_id == tokenizer.eos_token_id


@families
@pytest.mark.parametrize("name", ["student", "teacher"])
def test_shipped_models_are_as_accurate_as_recorded(family, name):
    recorded = read(shipped(family)).models[name].accuracy.value
    prompts = read_prompts(shipped(family) / HELD_OUT_FILE)[:SUBSET] * 2
    right = judge(open_model(shipped(family) / name), prompts, seed=7)
    # Three standard errors of a subset of prompts, or three misses where errors are rare.
    tolerance = max(3 * (recorded * (1 - recorded) / SUBSET) ** 0.5, 3 / SUBSET)
    assert sum(right) / len(right) == pytest.approx(recorded, abs=tolerance)
