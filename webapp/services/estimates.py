"""What a launch will take, before it is made: the recipe in the plain numbers of the estimate.

Times rest on an earlier run of the same pair where there is one, else on what such a device
usually sustains. Collecting a cold start's responses is taken to need less memory than learning them.
It knows no form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.contract.recipe import TrainingStage
from opdcore.estimate import Estimate, Plan, Throughput, assumed_throughput, estimate
from opdcore.inspection import ModelCard
from opdcore.logits_chunks import rows_per_chunk
from webapp.models import Device, Pair, Run

# What a device sustains in float32 training, in operations and bytes a second; of a whole host's
# processor, and of a data-centre GPU without tensor cores' short formats.
SUSTAINED: dict[str, tuple[float, float]] = {"cpu": (4e10, 1e10), "cuda": (2e13, 1e12)}
BYTES_PER_TRACED_TOKEN = 130
# Least time of one layer at one position, whatever its size: starting its kernels.
SECONDS_PER_LAYER = 0.0005
# Without an earlier run, a response is taken to be half as long as it may be.
EXPECTED_LENGTH_SHARE = 0.5
# Prompts that a cold start asks its teacher at once.
ASKED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Needs:
    """An estimate beside what it is compared with; `basis` says where its times come from."""

    memory: Estimate
    seconds: float
    disk_bytes: int
    device: str
    device_memory_bytes: int | None
    basis: str

    @property
    def fits(self) -> bool | None:
        """Whether the memory suffices; None where the device's is not known."""
        if self.device_memory_bytes is None:
            return None
        return self.memory.peak_memory_bytes <= self.device_memory_bytes


@dataclass(frozen=True, slots=True)
class Pace:
    """What an earlier run of the pair showed."""

    run: Run
    seconds_per_token: float


def of(pair: Pair, recipe: RecipeDocument, *, longest_prompt: int | None = None) -> Needs | None:
    """The needs of a run; None where the models' shapes are not known before the launch."""
    cards = _cards(pair)
    stages = _training(recipe)
    if cards is None or not stages:
        return None
    device = Device.objects.order_by("-memory_bytes").first()
    kind = device.kind if device else "cpu"
    found, speeds = zip(
        *(
            _of_stage(cards, stage, pair, longest_prompt=longest_prompt, kind=kind)
            for stage in stages
        ),
        strict=True,
    )
    pace = _pace(pair)
    return Needs(
        memory=max(found, key=lambda one: one.peak_memory_bytes),
        seconds=_answered_tokens(recipe) * pace.seconds_per_token
        if pace
        else sum(one.seconds for one in found)
        + sum(_collecting_seconds(*cards, stage, kind=kind) for stage in stages)
        + _selection_tokens(recipe) / speeds[0].sampled
        + _evaluation_seconds(recipe, speeds[0]),
        disk_bytes=max(one.disk_bytes for one in found),
        device=device.name if device else "a processor",
        device_memory_bytes=device.memory_bytes if device else None,
        basis=f"at the pace of {pace.run.name}" if pace else "from the models' sizes; rough",
    )


def _cards(pair: Pair) -> tuple[ModelCard, list[ModelCard]] | None:
    cards = [pair.student.card, *(teacher.model.card for teacher in pair.teachers.all())]
    if None in cards:
        return None
    student, *teachers = (ModelCard.model_validate(card) for card in cards)
    return student, teachers


def _training(recipe: RecipeDocument) -> list[TrainingStage]:
    return [stage for stage in recipe.stages if isinstance(stage, TrainingStage)]


def _of_stage(
    cards: tuple[ModelCard, list[ModelCard]],
    stage: TrainingStage,
    pair: Pair,
    *,
    longest_prompt: int | None,
    kind: str,
) -> tuple[Estimate, Throughput]:
    student, teachers = cards
    scored_by = len(teachers) if stage.kind == "distill" else 0
    if stage.kind != "cold_start" and stage.needs_initial:
        teachers, scored_by = [*teachers, student], scored_by + 1
    plan = _plan(student, stage, pair, longest_prompt=longest_prompt, kind=kind)
    plan = replace(plan, scored_by=scored_by)
    throughput = _throughput((student, teachers), plan, kind)
    return estimate(student, teachers, plan=plan, throughput=throughput), throughput


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


def _evaluation_seconds(recipe: RecipeDocument, throughput: Throughput) -> float:
    """Answers to the held-out prompts before, during and after, and the teacher's."""
    asked = recipe.evaluation
    during = sum(_evaluations(stage) for stage in _training(recipe))
    times = 1 + max(1, during) + asked.teacher
    responses = times * asked.prompts * asked.samples_per_prompt
    tokens = responses * asked.max_response_tokens * EXPECTED_LENGTH_SHARE
    return tokens / throughput.sampled


def _evaluations(stage: TrainingStage) -> int:
    """How often a stage has the student evaluated."""
    if stage.kind == "cold_start":
        return 1
    return -(-stage.steps // stage.evaluate_steps) if stage.evaluate_steps else 0


def _collecting_seconds(
    student: ModelCard, teachers: list[ModelCard], stage: TrainingStage, *, kind: str
) -> float:
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
    throughput = _throughput((teachers[0], [student]), plan, kind)
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


def _selection_tokens(recipe: RecipeDocument) -> float:
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


def _answered_tokens(recipe: RecipeDocument) -> float:
    """Expected tokens of all that is written or learned, and of the answers to candidates."""
    return sum(_tokens(stage) for stage in _training(recipe)) + _selection_tokens(recipe)


def _plan(
    student: ModelCard, stage: TrainingStage, pair: Pair, *, longest_prompt: int | None, kind: str
) -> Plan:
    prompt = min(stage.max_prompt_tokens, longest_prompt or stage.max_prompt_tokens)
    report = pair.token_map_report
    shared = report["shared_vocabulary"] if report else student.vocabulary
    prompts, rollouts = _size(stage)
    sequence = prompt + stage.max_response_tokens
    return Plan(
        prompts_per_step=prompts,
        rollouts_per_prompt=rollouts,
        prompt_tokens=prompt,
        response_tokens=stage.max_response_tokens,
        expected_response_tokens=_expected_tokens(stage),
        steps=stage.steps,
        train_rollouts_at_once=max(1, stage.micro_batch_tokens // sequence),
        logits_rows_at_once=rows_per_chunk(shared, kind),
        lora_rank=stage.lora_rank if stage.tuning == "lora" else None,
        gradient_checkpointing=stage.recomputes(sequence),
        resume_states_kept=stage.keep_checkpoints,
        weights_kept=0,
        trace_bytes=_trace_bytes(stage),
        sampled=stage.kind != "cold_start",
    )


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


def _pace(pair: Pair) -> Pace | None:
    """Seconds per expected token of the pair's last finished run, evaluations included."""
    run = (
        Run.objects.filter(pair=pair, status="succeeded", seconds__gt=0)
        .select_related("recipe")
        .order_by("-finished_at")
        .first()
    )
    if run is None:
        return None
    tokens = _answered_tokens(run.recipe.contract)
    return Pace(run, run.seconds / tokens) if tokens else None


def queue_length() -> int:
    """How many runs wait for a device before a new one."""
    return Run.objects.filter(status=Run.Status.QUEUED).count()
