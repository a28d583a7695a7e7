"""The pairs that benchmarks are measured on: whole model folders whose end token is as likely as asked."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.pairs import Pair, Shape
from benchmarks.programs import pair as program
from opdcore.inspection import inspect

HAZARD = 1 / 16


def made(folder, *, hazard=HAZARD, model_type="qwen2"):
    shape = Shape(64, 2, 4, 4, 128, 512, model_type)
    told = Pair(shape, shape, hazard).spec | {"folder": str(folder), "prompts": 8}
    folder.mkdir(exist_ok=True)
    program.make(told)
    return folder


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_the_end_token_has_the_probability_asked_for(tmp_path, model_type):
    student = AutoModelForCausalLM.from_pretrained(
        made(tmp_path, model_type=model_type) / "student"
    )
    torch.manual_seed(0)
    prompts = torch.randint(2, 512, (64, 32))
    written = student.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, max_new_tokens=32
    )[:, 32:]
    ended = (written == 1).any(1)
    # Of 64 rows, all but (1 - 1/16)^32 = 13 % end; three standard deviations either way.
    assert 1 - ended.float().mean().item() == pytest.approx(0.13, abs=0.13)


def test_the_folders_are_what_a_run_reads(tmp_path):
    folder = made(tmp_path)
    card = inspect(folder / "student")
    assert (card.vocabulary, card.padded_vocabulary, card.eos.all()) == (512, 512, (1,))
    assert card.tied_embeddings
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["prompt"]) for line in lines] == [32] * 8


def test_another_hazard_is_another_folder():
    shape = Shape(64, 2, 4, 4, 128, 512)
    assert Pair(shape, shape, 0.1).folder != Pair(shape, shape, 0.2).folder
