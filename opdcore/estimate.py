"""What a run will take before it starts: peak memory, disk, and seconds per step.

Plain arithmetic on the shapes of a student and its teachers and on a few numbers of the plan. It
knows no recipe, no device library and no file; a page shows its rows as they are.

Simplifications: every layer attends to the whole sequence (a sliding window needs less cache); a GPU's
pool hands memory out again but for one share; embeddings train with everything else.

A CPU's figure is of the whole process: the program itself is a row, and so is what one phase leaves to
the other, since the C library keeps freed tensors for later ones of up to 32 MiB and returns larger ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opdcore.inspection import ModelCard

_FLOAT32_BYTES = 4
_ADAM_BYTES = 8  # two float32 moments for each trained parameter
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_UNPOOLED = 0.05  # share of live memory that a GPU's pool cannot hand out again
_HOLES = 0.2  # share of a phase's memory that a heap cannot use again, as measured (docs/results/needs.json)
_KEPT_TENSOR_BYTES = 32 << 20  # glibc's largest allocation that its heap serves and keeps
# A decoder up to this size is copied for sampling: weights that read the same input joined, and all of
# them transposed, since a product with few rows takes half the time then. A larger one would pay more
# for the copy, at every call, than it gains.
COPIED_BYTES = 256 << 20
CACHE_BYTES = 4 << 30  # of keys and values that are held at once


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
    scored_by: float | None = None  # teachers that read a rollout, in the mean; None: all
    weights_dtype: str = "float32"
    teacher_dtype: str = "float32"
    fp32_master: bool = False  # float32 copy of half-precision weights
    lora_rank: int | None = None  # None: every weight is trained
    gradient_checkpointing: bool = False
    resume_states_kept: int = 1
    states_written: int | None = None  # None: more than are kept
    weights_kept: int = 2  # best and last
    trace_bytes: int = 0
    program_bytes: int | None = None  # of a process on a CPU, without a model; None: a GPU
    processes: int = 1  # that train, each on a device of its own
    sampler_here: bool = True  # and not behind a server
    teachers_here: bool = True  # on the devices that train

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
    """One line of a breakdown: a label, and bytes or seconds; of memory also its largest tensor."""

    label: str
    amount: float
    largest: float | None = None  # None: as large as the whole

    @property
    def kept(self) -> float:
        """Bytes that a C library keeps once they are freed."""
        largest = self.amount if self.largest is None else self.largest
        return self.amount if largest <= _KEPT_TENSOR_BYTES else 0.0


@dataclass(frozen=True, slots=True)
class Apart:
    """What a role takes on devices of its own."""

    role: str
    rows: tuple[Row, ...]

    @property
    def peak_memory_bytes(self) -> int:
        return round(sum(row.amount for row in self.rows))


@dataclass(frozen=True, slots=True)
class Estimate:
    """Totals with the rows that add up to them; memory is of each device that trains."""

    peak_memory_bytes: int
    memory: tuple[Row, ...]
    apart: tuple[Apart, ...]
    disk_bytes: int
    disk: tuple[Row, ...]
    seconds_per_step: float
    seconds: float
    time: tuple[Row, ...]
    measured: bool


def estimate(
    student: ModelCard, teachers: Sequence[ModelCard], *, plan: Plan, throughput: Throughput
) -> Estimate:
    """Estimate a run; of several processes that train, the one that takes most."""
    memory = _memory(student, teachers, plan)
    disk = _disk(student, plan)
    time = _time(len(teachers), plan, throughput)
    seconds_per_step = sum(row.amount for row in time)
    return Estimate(
        peak_memory_bytes=round(sum(row.amount for row in memory)),
        memory=memory,
        apart=_apart(student, teachers, plan),
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
    always = _always(student, teachers, plan)
    sampling, training = _sampling(student, plan), _training(student, teachers, plan)
    if plan.program_bytes is None:
        rows = [*always, *max(sampling, training, key=_total)]
        rows.append(Row("allocator", _UNPOOLED * _total(rows)))
    else:
        phases = [
            [
                *one,
                Row("left by the other phase", _left(one, other)),
                Row("holes in the heap", _HOLES * max(_kept(one), _kept(other))),
            ]
            for one, other in ((sampling, training), (training, sampling))
        ]
        program = Row("the program itself", plan.program_bytes)
        rows = [program, *always, *max(phases, key=_total)]
    return tuple(row for row in rows if row.amount)


def _always(student: ModelCard, teachers: Sequence[ModelCard], plan: Plan) -> list[Row]:
    """The whole student, and this process' share of what is cut among those that train."""
    trained, count = _trained(student, plan), plan.processes
    weights = _weights(student, plan.weights_dtype)
    held = teachers if plan.teachers_here else ()
    return [
        Row("student weights", weights),
        Row("share of the weights in training", weights / count if count > 1 else 0),
        Row("float32 master weights", trained * _FLOAT32_BYTES / count if plan.fp32_master else 0),
        Row("optimizer", trained * _ADAM_BYTES / count),
        Row("teacher weights", sum(_weights(one, plan.teacher_dtype) for one in held)),
    ]


def _sampling(student: ModelCard, plan: Plan) -> list[Row]:
    """Nothing where a server samples, or nothing is sampled."""
    if not (plan.sampled and plan.sampler_here):
        return []
    cache = _cache_bytes(student, plan)
    return [
        Row("KV cache", cache, cache / 2),
        Row("weights joined for sampling", _joined(student, plan), _table_bytes(student, plan)),
        Row("sampling logits", 2 * _sampled_at_once(plan) * _logits_row(student)),
    ]


def _training(student: ModelCard, teachers: Sequence[ModelCard], plan: Plan) -> list[Row]:
    width, count = _DTYPE_BYTES[plan.weights_dtype], plan.processes
    trained = _trained(student, plan)
    gradients = trained * (_FLOAT32_BYTES if plan.fp32_master else width) / count
    inner = _tokens_at_once(plan) * student.intermediate_size * width
    tables = _table_bytes(student, plan) * (1 if student.tied_embeddings else 2)
    return [
        Row("gradients", gradients, gradients if plan.lora_rank is None else 0),
        Row("weights gathered for a pass", tables if count > 1 else 0),
        Row("activations", _activation_bytes(student, plan), inner),
        _passing(student, teachers, plan),
        Row("logits chunk", _logits_chunk_bytes(student, teachers, plan)),
    ]


def _passing(student: ModelCard, teachers: Sequence[ModelCard], plan: Plan) -> Row:
    """One layer's tensors that live beside the activations: of a teacher's pass, or of the way back.

    A teacher's layer holds three feed-forward tensors and five of the residual stream (3 F + 5 H); the
    way back through a student's layer four and two (4 F + 2 H).
    """
    tokens, width = _tokens_at_once(plan), _DTYPE_BYTES[plan.weights_dtype]
    back = 4 * student.intermediate_size + 2 * student.hidden_size
    held = teachers if plan.teachers_here else ()
    forth = [3 * one.intermediate_size + 5 * one.hidden_size for one in held]
    inner = max(one.intermediate_size for one in (student, *held))
    return Row("one layer's pass", tokens * max(back, *forth, 0) * width, tokens * inner * width)


def _apart(student: ModelCard, teachers: Sequence[ModelCard], plan: Plan) -> tuple[Apart, ...]:
    """What roles take on devices of their own: weights, and the texts of a step where a server reads them."""
    found = []
    if not plan.sampler_here and plan.sampled:
        rows = (
            Row("student weights", _weights(student, plan.weights_dtype)),
            Row("KV cache", _cache_bytes(student, plan)),
        )
        found.append(Apart("sample", rows))
    if not plan.teachers_here:
        weights = sum(_weights(one, plan.teacher_dtype) for one in teachers)
        found.append(Apart("teacher", (Row("teacher weights", weights),)))
    return tuple(found)


def _left(phase: Sequence[Row], other: Sequence[Row]) -> float:
    """What a C library keeps of the other phase beyond what this one takes from it."""
    return max(0.0, _kept(other) - _kept(phase))


def _kept(rows: Sequence[Row]) -> float:
    return sum(row.kept for row in rows)


def _joined(student: ModelCard, plan: Plan) -> int:
    """A small decoder is copied for sampling, so that its products take less time."""
    size = _weights(student, plan.weights_dtype)
    return size if size <= COPIED_BYTES else 0


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
    most, mine = plan.sample_rollouts_at_once, -(-plan.rollouts // plan.processes)
    return mine if most is None else min(mine, most)


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
    return (
        _tokens_at_once(plan) * (saved + 2 * student.hidden_size) * _DTYPE_BYTES[plan.weights_dtype]
    )


def _table_bytes(student: ModelCard, plan: Plan) -> int:
    """The embedding, which is the largest weight of most models."""
    return student.padded_vocabulary * student.hidden_size * _DTYPE_BYTES[plan.weights_dtype]


def _tokens_at_once(plan: Plan) -> int:
    """Tokens of one pass."""
    return plan.train_rollouts_at_once * (plan.prompt_tokens + plan.response_tokens)


def _disk(student: ModelCard, plan: Plan) -> tuple[Row, ...]:
    """What is kept, and what is written last: a state aside before an old one goes, or the output.

    States hold every weight, adapters beside them, since an earlier stage may have trained them all.
    """
    trained = _trained(student, plan)
    adapters = 0 if plan.lora_rank is None else trained
    weights = (student.parameters + adapters) * _DTYPE_BYTES[plan.weights_dtype]
    masters = trained * _FLOAT32_BYTES if plan.fp32_master else 0
    state = weights + masters + trained * _ADAM_BYTES
    kept = plan.resume_states_kept
    written = kept + 1 if plan.states_written is None else plan.states_written
    rows = (
        Row("resume states", min(kept, written) * state),
        Row("the state written aside", state)
        if written > kept
        else Row("output", _weights(student, plan.weights_dtype)),
        Row("kept weights", plan.weights_kept * weights),
        Row("weights for the sampler's server", 0 if plan.sampler_here else weights),
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
