"""A recipe in the plain numbers of the estimate: each of its stages as a plan, on a pair's shapes.

It knows recipes and model cards; no device library, no file and no earlier run. Collecting a cold start's
responses is taken to need less memory than learning them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.recipe import Recipe, TrainingStage
from opdcore.estimate import (
    CACHE_BYTES,
    Estimate,
    Plan,
    Throughput,
    assumed_throughput,
    estimate,
    kv_cache_bytes_per_token,
)
from opdcore.inspection import ModelCard
from opdcore.logits_chunks import rows_per_chunk

# What a device sustains in float32 training, in operations and bytes a second; of a whole host's
# processor, and of a data-centre GPU without tensor cores' short formats.
SUSTAINED: dict[str, tuple[float, float]] = {"cpu": (4e10, 1e10), "cuda": (2e13, 1e12)}
BYTES_PER_TRACED_TOKEN = 130
# A job's process on a CPU after its first pass, without a model, as measured; and what the library of
# adapters adds to it.
PROGRAM_BYTES, ADAPTERS_BYTES = 334_000_000, 82_000_000
# Least time of one layer at one position, whatever its size: starting its kernels.
SECONDS_PER_LAYER = 0.0005
# Without an earlier run, a response is taken to be half as long as it may be.
EXPECTED_LENGTH_SHARE = 0.5
# Prompts that a cold start asks its teacher at once.
ASKED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Setting:
    """What a recipe meets: both sides' shapes, the ids they share, the longest prompt, the kind of device."""

    student: ModelCard
    teachers: Sequence[ModelCard]
    shared_vocabulary: int
    kind: str = "cpu"
    longest_prompt: int | None = None  # None: as long as the recipe lets it be
    scored_by: float | None = None  # teachers of a prompt, in the mean; None: all
    processes: int = 1  # that train
    sampler_here: bool = True  # and not behind a server
    teachers_here: bool = True  # on the devices that train


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a recipe takes: the largest stage's memory and disk, and the seconds of all."""

    memory: Estimate
    disk: Estimate
    seconds: float


def forecast(recipe: Recipe, setting: Setting) -> Forecast | None:
    """What the recipe takes at assumed speeds; None where it trains nothing."""
    stages = training_stages(recipe)
    if not stages:
        return None
    written = sum(-(-stage.steps // stage.checkpoint_steps) for stage in stages)
    found = [_of_stage(stage, setting, written) for stage in stages]
    estimates, first = [one for one, _ in found], found[0][1]
    return Forecast(
        memory=max(estimates, key=lambda one: one.peak_memory_bytes),
        disk=max(estimates, key=lambda one: one.disk_bytes),
        seconds=sum(one.seconds for one in estimates)
        + sum(_collecting_seconds(stage, setting) for stage in stages)
        + _selection_tokens(recipe) / first.sampled
        + _evaluation_seconds(recipe, first),
    )


def training_stages(recipe: Recipe) -> list[TrainingStage]:
    return [stage for stage in recipe.stages if isinstance(stage, TrainingStage)]


def answered_tokens(recipe: Recipe) -> float:
    """Expected tokens of all that is written or learned, and of the answers to candidates."""
    return sum(_tokens(stage) for stage in training_stages(recipe)) + _selection_tokens(recipe)


def _of_stage(stage: TrainingStage, setting: Setting, written: int) -> tuple[Estimate, Throughput]:
    """`written` is how many states the whole recipe writes."""
    teachers = list(setting.teachers)
    every = len(teachers) if setting.scored_by is None else setting.scored_by
    scored_by = every if stage.kind == "distill" else 0
    if stage.kind != "cold_start" and stage.needs_initial:
        teachers, scored_by = [*teachers, setting.student], scored_by + 1
    plan = replace(_plan(stage, setting), scored_by=scored_by, states_written=written)
    throughput = _throughput((setting.student, teachers), plan, setting.kind)
    return estimate(setting.student, teachers, plan=plan, throughput=throughput), throughput


def _throughput(cards: tuple[ModelCard, list[ModelCard]], plan: Plan, kind: str) -> Throughput:
    """Assumed speeds, where no position is sampled faster than its kernels can be started."""
    student, teachers = cards
    operations, memory_speed = SUSTAINED.get(kind, SUSTAINED["cpu"])
    assumed = assumed_throughput(
        student,
        teachers,
        plan=plan,
        flops_per_second=operations,
        memory_bytes_per_second=memory_speed,
    )
    fastest = plan.rollouts / (SECONDS_PER_LAYER * student.layers)
    return replace(assumed, sampled=min(assumed.sampled, fastest))


def _evaluation_seconds(recipe: Recipe, throughput: Throughput) -> float:
    """Answers to the held-out prompts before, during and after, and the teacher's."""
    asked = recipe.evaluation
    during = sum(_evaluations(stage) for stage in training_stages(recipe))
    times = 1 + max(1, during) + asked.teacher
    responses = times * asked.prompts * asked.samples_per_prompt
    tokens = responses * asked.max_response_tokens * EXPECTED_LENGTH_SHARE
    return tokens / throughput.sampled


def _evaluations(stage: TrainingStage) -> int:
    """How often a stage has the student evaluated."""
    if stage.kind == "cold_start":
        return 1
    return -(-stage.steps // stage.evaluate_steps) if stage.evaluate_steps else 0


def _collecting_seconds(stage: TrainingStage, setting: Setting) -> float:
    """How long the teacher writes what a cold start learns."""
    if stage.kind != "cold_start" or stage.source != "teacher":
        return 0.0
    plan = Plan(
        prompts_per_step=min(ASKED_AT_ONCE, stage.prompts),
        rollouts_per_prompt=1,
        prompt_tokens=stage.max_prompt_tokens,
        response_tokens=stage.max_response_tokens,
        expected_response_tokens=_expected_tokens(stage),
        steps=1,
        train_rollouts_at_once=1,
        logits_rows_at_once=1,
    )
    cards = (setting.teachers[0], [setting.student])
    throughput = _throughput(cards, plan, setting.kind)
    return _collected(stage) * _expected_tokens(stage) / throughput.sampled


def _size(stage: TrainingStage) -> tuple[int, int]:
    """Prompts of a step, and responses to each."""
    if stage.kind == "cold_start":
        return stage.responses_per_step, 1
    return stage.prompts_per_step, stage.rollouts_per_prompt


def _collected(stage: ColdStartStage) -> int:
    return stage.prompts + stage.held_out_prompts if stage.source == "teacher" else 0


def _expected_tokens(stage: TrainingStage) -> float:
    return stage.max_response_tokens * EXPECTED_LENGTH_SHARE


def _selection_tokens(recipe: Recipe) -> float:
    """Answers to the candidates: both sides' for a gap at the stage, the student's at each refresh."""
    tokens = 0.0
    for index, stage in enumerate(recipe.stages):
        if stage.kind != "select_prompts" or not stage.measures:
            continue
        steps = sum(
            recipe.steps_by_stage[later]
            for later in range(index, len(recipe.stages))
            if recipe.selection_of(later) == index
        )
        refreshes = (steps - 1) // stage.refresh_steps if stage.refresh_steps else 0
        asked = (2 if stage.strategy == "gap" else 1) + refreshes
        responses = asked * stage.candidates * stage.samples_per_prompt
        tokens += responses * stage.max_response_tokens * EXPECTED_LENGTH_SHARE
    return tokens


def _plan(stage: TrainingStage, setting: Setting) -> Plan:
    prompt = min(stage.max_prompt_tokens, setting.longest_prompt or stage.max_prompt_tokens)
    prompts, rollouts = _size(stage)
    sequence = prompt + stage.max_response_tokens
    mine = -(-prompts * rollouts // setting.processes)
    cached = kv_cache_bytes_per_token(setting.student, "float32") * sequence
    return Plan(
        prompts_per_step=prompts,
        rollouts_per_prompt=rollouts,
        prompt_tokens=prompt,
        response_tokens=stage.max_response_tokens,
        expected_response_tokens=_expected_tokens(stage),
        steps=stage.steps,
        train_rollouts_at_once=min(mine, max(1, stage.micro_batch_tokens // sequence)),
        sample_rollouts_at_once=max(1, CACHE_BYTES // cached),
        logits_rows_at_once=rows_per_chunk(setting.shared_vocabulary, setting.kind),
        lora_rank=stage.lora_rank if stage.tuning == "lora" else None,
        gradient_checkpointing=stage.recomputes(sequence),
        resume_states_kept=stage.keep_checkpoints,
        weights_kept=0,
        trace_bytes=_trace_bytes(stage),
        sampled=stage.kind != "cold_start",
        program_bytes=_program_bytes(stage) if setting.kind == "cpu" else None,
        processes=setting.processes,
        sampler_here=setting.sampler_here,
        teachers_here=setting.teachers_here,
    )


def _program_bytes(stage: TrainingStage) -> int:
    return PROGRAM_BYTES + (ADAPTERS_BYTES if stage.tuning == "lora" else 0)


def _trace_bytes(stage: TrainingStage) -> int:
    if stage.kind != "distill":
        return 0
    traced_steps = stage.steps // stage.trace_steps + 2
    tokens = traced_steps * stage.trace_rollouts * stage.max_response_tokens
    return tokens * BYTES_PER_TRACED_TOKEN


def _tokens(stage: TrainingStage) -> float:
    """Response tokens that a stage writes or learns."""
    prompts, rollouts = _size(stage)
    responses = stage.steps * prompts * rollouts
    if stage.kind == "cold_start":
        responses += _collected(stage)
    return responses * _expected_tokens(stage)
