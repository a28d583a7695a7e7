"""The operations that a limit counts are those that torch counts."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import limits
from benchmarks.pairs import PROMPT_TOKENS, Pair, Shape

SHAPE = Shape(64, 2, 4, 2, 128, 256)
BATCH, RESPONSE = 4, 16


def model():
    config = AutoConfig.for_model(
        "qwen2", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, vocab_size=256, tie_word_embeddings=True,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_a_forward_pass_counts_what_torch_counts():
    student = model()
    ids = torch.randint(256, (BATCH, PROMPT_TOKENS + RESPONSE))

    def work():
        hidden = student.base_model(ids).last_hidden_state
        student.lm_head(hidden[:, :RESPONSE])

    found = counted(work)
    told = limits.forward(SHAPE, batch=BATCH, tokens=BATCH * RESPONSE)
    # torch counts attention in full, causal attention needs half of it; on a CPU it may count none.
    attention = 2 * 64 * 2 * BATCH * (PROMPT_TOKENS + RESPONSE) ** 2
    assert min(abs(told - attention - found), abs(told + attention - found)) == 0


def test_the_loss_counts_what_torch_counts():
    size = SimpleNamespace(positions=8, student=16, teacher=32, vocabulary=64)
    student = torch.randn(size.positions, size.student, requires_grad=True)
    head = torch.randn(size.vocabulary, size.student, requires_grad=True)
    teacher = torch.randn(size.positions, size.teacher)

    def work():
        target = (teacher @ torch.randn(size.teacher, size.vocabulary)).softmax(-1)
        ((student @ head.T).softmax(-1) * target).sum().backward()

    told = limits.loss(
        student_head=size.student * size.vocabulary,
        teacher_head=size.teacher * size.vocabulary,
        positions=size.positions,
    )
    assert counted(work) == told


def test_a_step_is_a_sampling_a_teachers_and_a_training_pass():
    teacher = Shape(128, 2, 4, 4, 256, 256)
    one, other = (limits.forward(s, batch=BATCH, tokens=64.0) for s in (SHAPE, teacher))
    assert limits.step(Pair(SHAPE, teacher), batch=BATCH, tokens=64.0) == pytest.approx(
        4 * one + other
    )
