"""The least that a machine must do for a row: multiplications of matrices that no engine can leave out.

Counts floating-point operations of the layers, the heads and causal attention; a multiply-add is two. Left
out: everything by element (norms, softmax, sampling), the optimizer and all traffic with memory, so that a
limit is a bound, not an aim. Every response counts with the mean length, which is the least for attention.
"""

from __future__ import annotations

from benchmarks.pairs import PROMPT_TOKENS, Pair, Shape

# A backward pass multiplies each matrix twice more: for its input and for its weights.
FORWARD_BACKWARD = 3


def step(pair: Pair, *, batch: int, tokens: float) -> float:
    """Operations of one step with `tokens` generated tokens: sampling, teacher, student and gradient."""
    student = forward(pair.student, batch=batch, tokens=tokens)
    teacher = forward(pair.teacher, batch=batch, tokens=tokens)
    return (1 + FORWARD_BACKWARD) * student + teacher


def forward(shape: Shape, *, batch: int, tokens: float) -> float:
    """Operations of one pass over prompts and responses, whether at once or token by token."""
    length = PROMPT_TOKENS + tokens / batch
    layers = 2 * shape.backbone_parameters * batch * length
    attention = 2 * shape.heads * shape.head_dim * shape.layers * batch * length**2
    return layers + attention + 2 * shape.head_parameters * tokens


def loss(*, student_head: int, teacher_head: int, positions: int) -> float:
    """Operations of the divergence at `positions`, gradients of hidden states and student's head included."""
    return 2 * positions * (FORWARD_BACKWARD * student_head + teacher_head)
