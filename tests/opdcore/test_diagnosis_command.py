"""`python -m opdcore diagnose`: exit codes, streams, and what it refuses."""

import json

import pytest
import yaml

from opdcore.__main__ import main
from opdcore.contract.probe import Diagnosis
from opdcore.lab.record import read_prompts, shipped
from tests.opdcore.diagnoses import SUMS

PROMPTS = read_prompts(SUMS / "train.jsonl")


def diagnose(*options, teacher=SUMS / "teacher", student=SUMS / "student", prompts=None) -> int:
    pair = ["--student", str(student), "--teacher", str(teacher)]
    return main(["diagnose", *pair, "--prompts", str(prompts or SUMS / "train.jsonl"), *options])


SMALL = ("--prompts-count", "24", "--rollouts-per-prompt", "2", "--verifier", "laboratory")


def test_a_pair_that_works_exits_with_0_and_tells_it_on_both_streams(capsys):
    assert diagnose(*SMALL, "--json") == 0
    out, err = capsys.readouterr()
    told = Diagnosis.model_validate_json(out)
    assert (told.verdict.code, told.verdict.go) == ("GO", "go")
    assert "GO: go" in err
    assert "Hand-off tier: " in err
    assert err.index("Static tier") < err.index("Scored tier") < err.index("sampling the student")


def test_a_mismatch_exits_with_3_and_leaves_standard_output_alone(capsys):
    assert diagnose(*SMALL, teacher=SUMS / "teacher_other_style") == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "PATTERN_MISMATCH: no-go" in err


def test_what_cannot_be_told_exits_with_4(capsys):
    assert diagnose("--tiers", "static", "--json") == 4
    told = Diagnosis.model_validate_json(capsys.readouterr().out)
    assert (told.probe.tiers, told.probe.prompts) == (("static",), 0)


def test_different_token_maps_exit_with_3_before_any_weight_is_loaded(capsys):
    assert diagnose(*SMALL, "--json", teacher=shipped("cups") / "teacher") == 3
    out, err = capsys.readouterr()
    assert Diagnosis.model_validate_json(out).verdict.code == "INVALID_SETUP"
    assert "loading" not in err


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--rollouts-per-prompt", "0"), "--rollouts-per-prompt"),
        (("--prompts-count", "3"), "--prompts-count"),
        (("--tiers", "all"), "--tiers"),
        (("--temperature", "-1"), "--temperature"),
        (("--recipe", "/nowhere.yaml"), "/nowhere.yaml"),
        (("--calibration", "/nowhere.json"), "/nowhere.json"),
        (("--rollouts", "/nowhere.jsonl", "--prompts-count", "8"), "--rollouts"),
    ],
)
def test_a_bad_option_exits_with_2_and_is_named(capsys, options, field):
    assert diagnose(*options) == 2
    assert field in capsys.readouterr().err


def test_a_folder_without_a_model_exits_with_2(capsys, tmp_path):
    assert diagnose(teacher=tmp_path) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_prompt_file_with_a_bad_line_exits_with_2(capsys, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"question": "b"}\n')
    assert diagnose(prompts=path) == 2
    assert "--prompts, line 2" in capsys.readouterr().err


def test_dumped_rollouts_are_read_instead_of_sampling(capsys, tmp_path):
    text = " So a: 4 plus 3 is 2, 0 plus 2 is 2. Answer: 2"
    path = tmp_path / "dump.jsonl"
    lines = [{"input": one.prompt, "output": text} for one in PROMPTS[:4] for _ in range(2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code = diagnose("--rollouts", str(path), "--json", "--tiers", "static,scored", *SMALL)
    told = Diagnosis.model_validate_json(capsys.readouterr().out)
    assert (told.probe.prompts, told.probe.rollouts_per_prompt) == (4, 2)
    assert told.probe.student_tokens == 0
    assert code == {"go": 0, "no_go": 3, "undecided": 4}[told.verdict.go]


def test_a_bad_line_of_rollouts_exits_with_2_and_its_number(capsys, tmp_path):
    path = tmp_path / "dump.jsonl"
    path.write_text('{"prompt": "a"}\n')
    assert diagnose("--rollouts", str(path), *SMALL) == 2
    assert "line 1" in capsys.readouterr().err


def recipe_file(tmp_path, **changes):
    distill = {
        "kind": "distill", "steps": 40, "prompts_per_step": 64, "max_prompt_tokens": 128,
        "max_response_tokens": 96, "rollouts_per_prompt": 1, "form": "top_k",
    } | changes  # fmt: skip
    document = {
        "name": "planned",
        "evaluation": {"verifier": "laboratory"},
        "stages": [distill],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_a_recipe_gives_verifier_length_and_budget(capsys, tmp_path):
    options = ("--recipe", recipe_file(tmp_path), "--rollouts-per-prompt", "1", "--json")
    diagnose(*options)
    out, err = capsys.readouterr()
    told = Diagnosis.model_validate_json(out)
    assert told.probe.verifier == "laboratory"
    # 3 % of 2,560 rollouts, of which each prompt takes five.
    assert told.probe.prompts <= 16
    assert "The budget pays for" in err


def test_an_objective_that_collapses_is_a_no_go(capsys, tmp_path):
    recipe = recipe_file(tmp_path, normalisation="unnormalised")
    assert diagnose(*SMALL, "--recipe", recipe, "--json") == 3
    assert json.loads(capsys.readouterr().out)["verdict"]["code"] == "BAD_OBJECTIVE"
