"""What a run will take before it starts: peak memory, disk, and seconds per step.

Plain arithmetic on the shapes of a student and its teachers and on a few numbers of the plan. It
knows no recipe, no device library and no file; a page shows its rows as they are.

Simplifications: every layer attends to the whole sequence (a sliding window needs less cache);
fragmentation and the library's own memory are one share; embeddings train with everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opdcore.inspection import ModelCard

_FLOAT32_BYTES = 4
_ADAM_BYTES = 8  # two float32 moments for each trained parameter
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_UNPOOLED = 0.05  # share of live memory that an allocator cannot hand out again


@dataclass(frozen=True, slots=True)
class Plan:
    """One optimizer step and what a run keeps, in plain numbers."""

    prompts_per_step: int
    rollouts_per_prompt: int
    prompt_tokens: int  # longest prompt
    response_tokens: int  # longest response
    expected_response_tokens: float  # mean response
    steps: int
    train_rollouts_at_once: int  # rollouts of one forward and backward pass
    logits_rows_at_once: int  # positions whose logits are held at once
    sample_rollouts_at_once: int | None = None  # None: all rollouts of a step
    sampled: bool = True  # whether the student writes what it learns
    scored_by: int | None = None  # teachers that read every rollout; None: all
    weights_dtype: str = "float32"
    teacher_dtype: str = "float32"
    fp32_master: bool = False  # float32 copy of half-precision weights
    lora_rank: int | None = None  # None: every weight is trained
    gradient_checkpointing: bool = False
    resume_states_kept: int = 1
    weights_kept: int = 2  # best and last
    trace_bytes: int = 0

    @property
    def rollouts(self) -> int:
        return self.prompts_per_step * self.rollouts_per_prompt


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens per second of a step's three kinds of work, measured or assumed."""

    sampled: float
    scored: float  # each teacher
    trained: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a breakdown: a label, and bytes or seconds."""

    label: str
    amount: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """Totals with the rows that add up to them."""

    peak_memory_bytes: int
    memory: tuple[Row, ...]
    disk_bytes: int
    disk: tuple[Row, ...]
    seconds_per_step: float
    seconds: float
    time: tuple[Row, ...]
    measured: bool


def estimate(
    student: ModelCard, teachers: Sequence[ModelCard], *, plan: Plan, throughput: Throughput
) -> Estimate:
    """Estimate a run in one process that holds the student and every teacher."""
    memory = _memory(student, teachers, plan)
    disk = _disk(student, plan)
    time = _time(len(teachers), plan, throughput)
    seconds_per_step = sum(row.amount for row in time)
    return Estimate(
        peak_memory_bytes=round(sum(row.amount for row in memory)),
        memory=memory,
        disk_bytes=round(sum(row.amount for row in disk)),
        disk=disk,
        seconds_per_step=seconds_per_step,
        seconds=seconds_per_step * plan.steps,
        time=time,
        measured=throughput.measured,
    )


def assumed_throughput(
    student: ModelCard,
    teachers: Sequence[ModelCard],
    *,
    plan: Plan,
    flops_per_second: float,
    memory_bytes_per_second: float,
) -> Throughput:
    """Tokens per second from a device's sustained arithmetic and memory speed.

    A forward pass takes 2 operations per parameter and token, a training pass 6, and 8 with
    gradient checkpointing. Sampling reads the weights and half the filled cache for each position
    of a batch, and is bound by whichever of the two is slower.
    """
    batch = _sampled_at_once(plan)
    read = student.parameters * _DTYPE_BYTES[plan.weights_dtype] + _cache_bytes(student, plan) / 2
    position = max(
        read / memory_bytes_per_second, 2 * student.parameters * batch / flops_per_second
    )
    largest = max((teacher.parameters for teacher in teachers), default=1)
    passes = 8 if plan.gradient_checkpointing else 6
    return Throughput(
        sampled=batch / position,
        scored=flops_per_second / (2 * largest),
        trained=flops_per_second / (passes * student.parameters),
        measured=False,
    )


def kv_cache_bytes_per_token(card: ModelCard, dtype: str) -> int:
    """Keys and values of one token in every layer."""
    return 2 * card.layers * card.kv_heads * card.head_dim * _DTYPE_BYTES[dtype]


def _memory(student: ModelCard, teachers: Sequence[ModelCard], plan: Plan) -> tuple[Row, ...]:
    """What is always held, then the larger of sampling and training: they never overlap."""
    trained = _trained(student, plan)
    width = _DTYPE_BYTES[plan.weights_dtype]
    always = [
        Row("student weights", student.parameters * width),
        Row("float32 master weights", trained * _FLOAT32_BYTES if plan.fp32_master else 0),
        Row("optimizer", trained * _ADAM_BYTES),
        Row("teacher weights", sum(_weights(one, plan.teacher_dtype) for one in teachers)),
    ]
    sampling = [
        Row("KV cache", plan.sampled * _cache_bytes(student, plan)),
        Row("sampling logits", plan.sampled * 2 * _sampled_at_once(plan) * _logits_row(student)),
    ]
    training = [
        Row("gradients", trained * (_FLOAT32_BYTES if plan.fp32_master else width)),
        Row("activations", _activation_bytes(student, plan)),
        Row("logits chunk", _logits_chunk_bytes(student, teachers, plan)),
    ]
    rows = [*always, *max(sampling, training, key=_total)]
    rows.append(Row("allocator", _UNPOOLED * _total(rows)))
    return tuple(row for row in rows if row.amount)


def _total(rows: Sequence[Row]) -> float:
    return sum(row.amount for row in rows)


def _trained(student: ModelCard, plan: Plan) -> int:
    if plan.lora_rank is None:
        return student.parameters
    width, keys = student.hidden_size, student.kv_heads * student.head_dim
    queries, inner = student.heads * student.head_dim, student.intermediate_size
    sides = 2 * (width + queries) + 2 * (width + keys) + 3 * (width + inner)
    return student.layers * plan.lora_rank * sides


def _weights(card: ModelCard, dtype: str) -> int:
    return card.parameters * _DTYPE_BYTES[dtype]


def _sampled_at_once(plan: Plan) -> int:
    most = plan.sample_rollouts_at_once
    return plan.rollouts if most is None else min(plan.rollouts, most)


def _cache_bytes(student: ModelCard, plan: Plan) -> int:
    tokens = _sampled_at_once(plan) * (plan.prompt_tokens + plan.response_tokens)
    return tokens * kv_cache_bytes_per_token(student, plan.weights_dtype)


def _logits_row(card: ModelCard) -> int:
    return card.padded_vocabulary * _FLOAT32_BYTES


def _logits_chunk_bytes(student: ModelCard, teachers: Sequence[ModelCard], plan: Plan) -> int:
    """Both sides' logits; the student's gradient takes their place."""
    widest = max((one.padded_vocabulary for one in teachers), default=0)
    return plan.logits_rows_at_once * (student.padded_vocabulary + widest) * _FLOAT32_BYTES


def _activation_bytes(student: ModelCard, plan: Plan) -> int:
    """Tensors saved for the backward pass, by token: each layer's, or one layer's and the inputs.

    A layer saves its input, two normalised copies and the residual sum (4 H), queries and the
    attention's output (2 Q), keys and values (2 K), and three feed-forward tensors (3 F).
    """
    queries = student.heads * student.head_dim
    keys = student.kv_heads * student.head_dim
    layer = 4 * student.hidden_size + 2 * queries + 2 * keys + 3 * student.intermediate_size
    if plan.gradient_checkpointing:
        saved = layer + student.layers * student.hidden_size
    else:
        saved = student.layers * layer
    tokens = plan.train_rollouts_at_once * (plan.prompt_tokens + plan.response_tokens)
    return tokens * (saved + 2 * student.hidden_size) * _DTYPE_BYTES[plan.weights_dtype]


def _disk(student: ModelCard, plan: Plan) -> tuple[Row, ...]:
    """What is kept, and the one resume state that is written aside before an old one goes.

    States hold every weight, adapters beside them, since an earlier stage may have trained them all.
    """
    trained = _trained(student, plan)
    adapters = 0 if plan.lora_rank is None else trained
    weights = (student.parameters + adapters) * _DTYPE_BYTES[plan.weights_dtype]
    masters = trained * _FLOAT32_BYTES if plan.fp32_master else 0
    state = weights + masters + trained * _ADAM_BYTES
    rows = (
        Row("resume states", (plan.resume_states_kept + 1) * state),
        Row("kept weights", plan.weights_kept * weights),
        Row("output", _weights(student, plan.weights_dtype)),
        Row("traces", plan.trace_bytes),
    )
    return tuple(row for row in rows if row.amount)


def _time(teachers: int, plan: Plan, throughput: Throughput) -> tuple[Row, ...]:
    responses = plan.rollouts * plan.expected_response_tokens
    sequences = responses + plan.rollouts * plan.prompt_tokens
    scored_by = teachers if plan.scored_by is None else plan.scored_by
    return (
        Row("sampling", plan.sampled * responses / throughput.sampled),
        Row("teacher scoring", scored_by * sequences / throughput.scored),
        Row("training", sequences / throughput.trained),
    )
