"""What the stages of one run share: models, prompts, verifier, folder, and when to stop.

Building it answers every question that can be answered before the first token is sampled: bad input
ends here, before anything is written. It knows no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from opdcore import (
    checkpoints,
    demonstrations,
    prompt_ids,
    refusals,
    teachers,
    token_maps,
    verifiers,
)
from opdcore import prompts as prompt_sets
from opdcore import writer as writers
from opdcore.batches import Batch
from opdcore.contract import needs
from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.distill import DistillStage
from opdcore.contract.errors import BadInput, Cancelled
from opdcore.contract.events import Payload, Progress
from opdcore.contract.job import Job, PromptFile
from opdcore.contract.probe import DiagnoseStage
from opdcore.contract.prompt import Prompt
from opdcore.contract.recipe import EvaluateStage, Recipe, Stage, TrainingStage
from opdcore.contract.reinforce import ReinforceStage
from opdcore.contract.select_prompts import SelectPromptsStage
from opdcore.demonstrations import Demonstrations
from opdcore.device import named
from opdcore.evaluation import Evaluator, Reader, check_context
from opdcore.models import LoadedModel, adapters, load
from opdcore.models.network import Network
from opdcore.pool import Pool
from opdcore.processes import Alone, Processes, launched
from opdcore.prompt_ids import PromptIds
from opdcore.rollouts import Rollout
from opdcore.serving.needs import longest_text
from opdcore.serving.sampler import ServedSampler
from opdcore.serving.server import Serving
from opdcore.serving.servers import Servers
from opdcore.teachers import AnyModel, Panel, Teachers
from opdcore.verifiers.grading import Verifier
from opdcore.writer import Writer

Stop = Callable[[], bool]
# Stages that read prompts and have them answered.
ReadingStage = TrainingStage | DiagnoseStage | SelectPromptsStage


class Line(NamedTuple):
    """A payload on its way to becoming an event, with the step that it belongs to."""

    payload: Payload
    step: int | None = None


@dataclass(frozen=True)
class Workspace:
    """Everything that a stage works with; `evaluator` is None where nothing can be graded.

    `initial` is the student as it was at the stage's start, frozen; None where no stage needs it.
    `prompt_text` is what the student reads of a prompt.
    """

    job: Job
    run_dir: Path
    student: LoadedModel
    teachers: Teachers
    initial: LoadedModel | None
    pool: Pool
    prompt_ids: PromptIds
    prompt_text: Callable[[Prompt], str]
    demonstrations: Demonstrations
    writer: Writer | None
    vocabulary: int
    servers: Servers
    sampler: ServedSampler | None
    verifier: Verifier | None
    evaluator: Evaluator | None
    stop: Stop
    processes: Processes

    @property
    def teacher(self) -> LoadedModel:
        """The teacher, where there is one alone."""
        return self.teachers.only

    @property
    def models(self) -> tuple[AnyModel, ...]:
        """The student, then the teachers."""
        return (self.student, *(one.model for one in self.teachers.members))

    @property
    def trained(self) -> LoadedModel:
        """The student for passes that train it: itself, or in pieces among several processes."""
        tuning = self.processes.tuning
        pieces = None if tuning is None else tuning.pieces
        return self.student if pieces is None else replace(self.student, network=pieces)

    def side(self, number: int) -> AnyModel:
        """The student as side 0, then the teachers."""
        return self.teachers.members[number - 1].model if number else self.student

    def batches(
        self, rows: Sequence[int], rollouts: Sequence[Rollout], *, tokens: int
    ) -> list[tuple[Panel, Batch]]:
        """Rollouts of the rows in batches, each with the teachers who score it."""
        return self.teachers.batches(
            self.pool, self.prompt_ids, rows, rollouts, tokens=tokens, parts=self.processes.count
        )

    @property
    def train(self) -> tuple[Prompt, ...]:
        """The train set, whose rows are the pool's first."""
        return self.pool.train

    def cancelled(self) -> Cancelled:
        """The error with which a stopped run ends."""
        return Cancelled(
            "run.cancelled", "The run was asked to stop.", remedy="Resume it to go on."
        )

    def heeding_stop(self, payloads: Iterator[Payload]) -> Iterator[Payload]:
        """The payloads of an evaluation; a wish to stop ends it as cancelled where it tells progress.

        Only where nothing was trained since the last checkpoint, so that nothing is lost.
        """
        for payload in payloads:
            if isinstance(payload, Progress) and self.stop():
                raise self.cancelled()
            yield payload


def prepare(
    job: Job, run_dir: Path, *, stop: Stop, stack: ExitStack, resumed: bool
) -> Iterator[Payload | Workspace]:
    """Yields progress and, last, the workspace; `stack` closes what it opened, other processes too."""
    refusals.refuse(job)
    device = pick_device(job)
    processes = _processes(job, run_dir, device, stack)
    pool = Pool(
        train=_read(job.prompt_sets.train, "train"),
        teacher_content=_read(job.prompt_sets.teacher_content, "teacher_content"),
        outside=_read(job.prompt_sets.outside, "outside"),
    )
    _refuse_ungradable(job, pool.train)
    held_out = _read(job.prompt_sets.held_out, "held_out")
    total = 1 + len(job.teachers)
    yield Progress(what="loading the student", done=0, total=total, unit="models")
    student = _student(job, device)
    yield Progress(what="loading the teacher", done=1, total=total, unit="models")
    servers = Servers(run_dir, stack=stack, stop=stop)
    sampler = _sampler(job, student, servers)
    taught = teachers.load(job, student, servers, device=device)
    _refuse_untaught(taught, pool, held_out if job.recipe.evaluation.teacher else ())
    yield Progress(what="loading models", done=total, total=total, unit="models")
    vocabulary = _shared_vocabulary(job, student, taught)
    ids = yield from _render(job, pool, student, taught, vocabulary)
    demonstrated = _demonstrations(job, pool, student)
    writer = writers.prepare(job, pool)
    initial = _initial_student(job, device)
    verifier = stack.enter_context(verifiers.open(job.recipe.evaluation, judge=job.judge))
    evaluator = None
    gradable = verifier is not None or job.recipe.goal.target_metric != "accuracy"
    if held_out and gradable and not only_diagnoses(job.recipe):
        evaluator = Evaluator(
            job.recipe.evaluation,
            held_out,
            verifier=verifier,
            vocabulary=vocabulary,
            seed=job.recipe.seed,
            run_dir=run_dir,
            resumed=resumed,
            sample=processes.sample,
        )
        _check_held_out(job, evaluator, taught, student)
    yield from servers.ready()
    yield Workspace(
        job=job,
        run_dir=run_dir,
        student=student,
        teachers=taught,
        initial=initial,
        pool=pool,
        prompt_ids=ids,
        prompt_text=student.renderer.text,
        demonstrations=demonstrated,
        writer=writer,
        vocabulary=vocabulary,
        servers=servers,
        sampler=sampler,
        verifier=verifier,
        evaluator=evaluator,
        stop=stop,
        processes=processes,
    )


def join(
    job: Job, run_dir: Path, processes: Processes, *, stack: ExitStack, device: torch.device
) -> Workspace:
    """The workspace of a process that is not the run's first: models, and nothing else.

    What is divided travels as token ids, so only the first one renders, grades and evaluates.
    """
    student, servers = _student(job, device), Servers(run_dir, stack=stack, stop=lambda: False)
    taught = teachers.load(job, student, servers, device=device)
    return Workspace(
        job=job,
        run_dir=run_dir,
        student=student,
        teachers=taught,
        initial=_initial_student(job, device),
        pool=Pool(train=(), teacher_content=(), outside=()),
        prompt_ids={},
        prompt_text=student.renderer.text,
        demonstrations={},
        writer=None,
        vocabulary=_shared_vocabulary(job, student, taught),
        servers=servers,
        sampler=None,
        verifier=None,
        evaluator=None,
        stop=lambda: False,
        processes=processes,
    )


def _processes(job: Job, run_dir: Path, device: torch.device, stack: ExitStack) -> Processes:
    """One process a device; the others are started here, and end with `stack`."""
    names, field = train_devices(job), "resources.train.devices"
    if launched.count() not in (1, len(names)):
        raise BadInput(
            "resources.launched",
            f"{launched.count()} processes were launched for {', '.join(names)}.",
            remedy="Launch as many processes as devices are named, or none but the job itself.",
            field=field,
        )
    if len(names) == 1:
        return Alone()
    kinds = {named(name, field=field).type for name in names}
    if len(kinds) > 1 or ("cuda" in kinds and len(set(names)) < len(names)):
        raise BadInput(
            "resources.unequal",
            f"{', '.join(names)} cannot train together.",
            remedy="Name different devices of one kind, such as cuda:0 and cuda:1.",
            field=field,
        )
    from opdcore.processes.several import lead

    return stack.enter_context(lead(job, run_dir, device=device, count=len(names)))


def _read(file: PromptFile | None, role: str) -> tuple[Prompt, ...]:
    return prompt_sets.read(file, field=f"prompt_sets.{role}") if file is not None else ()


def _refuse_untaught(taught: Teachers, pool: Pool, held_out: Sequence[Prompt]) -> None:
    for role in ("train", *needs.PROMPT_ROLES):
        taught.refuse_unusable(getattr(pool, role), field=f"prompt_sets.{role}")
    taught.refuse_unusable(held_out, field="prompt_sets.held_out")


def _refuse_ungradable(job: Job, train: tuple[Prompt, ...]) -> None:
    """Prompts of which none says what is right teach a reinforce stage nothing."""
    by_tests = job.recipe.evaluation.verifier == "unit_tests"
    told = any(prompt.tests if by_tests else prompt.answer for prompt in train)
    if not told and any(isinstance(stage, ReinforceStage) for stage in job.recipe.stages):
        lacking = "tests" if by_tests else "answer"
        raise BadInput(
            "prompt_set.ungradable",
            f"None of the {len(train)} train prompts has {lacking}, by which the verifier "
            f"{job.recipe.evaluation.verifier} grades what a reinforce stage learns from.",
            remedy=f"Give the prompts their `{lacking}`, or choose another verifier.",
            field="prompt_sets.train",
        )


def train_devices(job: Job) -> tuple[str, ...]:
    """Names of the devices that train, a process each; without any word of it CUDA if there is any."""
    resource = job.resources.get("train")
    if resource is None:
        return ("cuda" if torch.cuda.is_available() else "cpu",)
    return resource.devices or ("cpu",)


def pick_device(job: Job, rank: int = 0) -> torch.device:
    """The device of a process; its CPU threads are its share of the job's."""
    names, resource = train_devices(job), job.resources.get("train")
    if resource is not None and resource.threads:
        torch.set_num_threads(max(1, resource.threads // len(names)))
    elif len(names) > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // len(names)))
    return named(names[rank], field="resources.train.devices")


def only_diagnoses(recipe: Recipe) -> bool:
    """Whether nothing is trained or evaluated, so that bad news is a finding and no error."""
    return all(isinstance(stage, DiagnoseStage) for stage in recipe.stages)


def _shared_vocabulary(job: Job, student: LoadedModel, taught: Teachers) -> int:
    """The ids that all sides mean alike; raises BadInput where the recipe cannot work with them."""
    models = [one.model for one in taught.members]
    reports = [token_maps.compare(student.folder, one.folder, teacher=one.card) for one in models]
    if not only_diagnoses(job.recipe):
        for report in reports:
            report.refuse_if_different()
    vocabulary = min(report.shared_vocabulary for report in reports)
    if all(report.verdict != "different" for report in reports):
        _check_recipe(job, vocabulary, student.network)
    return vocabulary


def _check_recipe(job: Job, vocabulary: int, network: Network) -> None:
    for index, stage in enumerate(job.recipe.stages):
        if isinstance(stage, DistillStage | DiagnoseStage):
            _check_k(stage.k, vocabulary, field=f"recipe.stages.{index}.k")
        if isinstance(stage, DistillStage):
            _check_support(stage, vocabulary, field=f"recipe.stages.{index}.k")
        if isinstance(stage, TrainingStage) and stage.tuning == "lora":
            adapters.targets(network, field=f"recipe.stages.{index}.tuning")
        if isinstance(stage, DistillStage | ReinforceStage):
            _check_precision(stage, network, field=f"recipe.stages.{index}.sampling_precision")


def _check_k(k: int, vocabulary: int, *, field: str) -> None:
    if k > vocabulary:
        raise BadInput(
            "recipe.k_above_vocabulary",
            f"k is {k}, but the pair shares only {vocabulary} tokens.",
            remedy=f"Lower k to at most {vocabulary}; 16 is usual.",
            field=field,
        )


def _check_support(stage: DistillStage, vocabulary: int, *, field: str) -> None:
    if stage.form == "top_k" and stage.support == "symmetric_difference" and stage.k == vocabulary:
        raise BadInput(
            "recipe.k_leaves_nothing",
            f"With k {stage.k}, the whole vocabulary, the symmetric difference is always empty.",
            remedy="Lower k; 16 is usual.",
            field=field,
        )


def _check_precision(stage: DistillStage | ReinforceStage, network: Network, *, field: str) -> None:
    if getattr(torch, stage.sampling_precision) not in network.decodable:
        raise BadInput(
            "recipe.sampling_precision",
            f"{type(network.module).__name__} cannot be sampled in {stage.sampling_precision}.",
            remedy="Choose float32; Llama, Qwen2 and Qwen3 can do otherwise.",
            field=field,
        )


def _render(
    job: Job, pool: Pool, student: LoadedModel, taught: Teachers, vocabulary: int
) -> Generator[Payload, None, PromptIds]:
    """The ids of all that the recipe may draw; raises BadInput where a stage cannot use a prompt."""
    recipe = job.recipe
    drawn = [prompt_ids.drawn(pool, recipe, index) for index in range(len(recipe.stages))]
    ids = yield from prompt_ids.render(
        sorted(set().union(*drawn)), pool, student=student.renderer, teachers=taught.members
    )
    for index, stage in enumerate(recipe.stages):
        if isinstance(stage, EvaluateStage):
            continue
        if isinstance(stage, SelectPromptsStage) and stage.strategy == "teacher_template":
            field = f"recipe.stages.{index}.strategy"
            prompt_ids.refuse_useless_template(
                ids, drawn[index], vocabulary=vocabulary, field=field
            )
        if not prompt_ids.in_teachers_rendering(recipe, index):
            _check_lengths(pool, {row: len(ids[row][0]) for row in drawn[index]}, stage, student)
        for side, one in enumerate(taught.members, start=1):
            rows = [row for row in drawn[index] if one.scores(pool[row])]
            _check_lengths(pool, {row: len(ids[row][side]) for row in rows}, stage, one.model)
            if prompt_ids.in_teachers_rendering(recipe, index):
                _check_lengths(pool, {row: len(ids[row][side]) for row in rows}, stage, student)
    return ids


def _check_lengths(
    pool: Pool, lengths: Mapping[int, int], stage: ReadingStage, model: Reader
) -> None:
    """Names the first prompt that a side cannot use, by its own set and row."""
    places = {pool.place(row): length for row, length in sorted(lengths.items())}
    for source in dict.fromkeys(place.source for place in places):
        check_context(
            {place.row: length for place, length in places.items() if place.source == source},
            model,
            longest=stage.max_prompt_tokens,
            response=stage.max_response_tokens,
            field=f"prompt_sets.{source}",
        )


def _demonstrations(job: Job, pool: Pool, student: LoadedModel) -> Demonstrations:
    """Those of all rows that a stage learns from."""
    encoded: Demonstrations = {}
    for index, stage in enumerate(job.recipe.stages):
        knob = _demonstrated_by(stage)
        if knob is not None:
            encoded |= demonstrations.encode(
                prompt_ids.drawn(pool, job.recipe, index),
                pool,
                student.renderer,
                field=f"recipe.stages.{index}.{knob}",
            )
    return encoded


def _demonstrated_by(stage: Stage) -> str | None:
    """The knob by which a stage asks for demonstrations; None where it does not."""
    if isinstance(stage, ColdStartStage):
        return "source" if stage.source == "demonstrations" else None
    asks = isinstance(stage, DistillStage) and stage.gold_sft_weight
    return "gold_sft_weight" if asks else None


def _sampler(job: Job, student: LoadedModel, servers: Servers) -> ServedSampler | None:
    """The server that samples in training; None where this process does."""
    if job.sampler is None or not any(job.recipe.steps_by_stage):
        return None
    serving = Serving(
        student.folder,
        longest=longest_text(job.recipe, student.card),
        devices=tuple(job.resources["sample"].devices) if "sample" in job.resources else (),
        takes_weights=True,
        beside=job.trains_on("sample"),
        memory_share=job.sampler.memory_share,
    )
    return servers.sampler(job.sampler, serving, student)


def _student(job: Job, device: torch.device) -> LoadedModel:
    """The student as the job names it, with the weights that it starts from."""
    student = load(job.student, device=device, field="student")
    if job.start is not None:
        checkpoints.start_from(job.start, student.model)
    return student


def _initial_student(job: Job, device: torch.device) -> LoadedModel | None:
    """The student once more, as it is before any step; None where no stage compares with it."""
    writing = [s for s in job.recipe.stages if isinstance(s, DistillStage | ReinforceStage)]
    if not any(stage.needs_initial for stage in writing):
        return None
    initial = _student(job, device)
    initial.model.requires_grad_(requires_grad=False)
    return initial


def _check_held_out(job: Job, evaluator: Evaluator, taught: Teachers, student: LoadedModel) -> None:
    rendered = student.renderer.render_many(evaluator.prompts)
    _check_answers(job, {row: len(one.ids) for row, one in enumerate(rendered)}, student, "student")
    for member in taught.members if job.recipe.evaluation.teacher else ():
        asked = enumerate(evaluator.prompts)
        its = {row: prompt for row, prompt in asked if taught.answerer(prompt) is member}
        ids = member.prompt_ids(list(its.values()))
        lengths = {row: len(one) for row, one in zip(its, ids, strict=True)}
        _check_answers(job, lengths, member.model, "teacher")


def _check_answers(job: Job, lengths: Mapping[int, int], side: Reader, field: str) -> None:
    training = [s for s in job.recipe.stages if isinstance(s, TrainingStage)]
    knobs = [stage.max_prompt_tokens for stage in training]
    check_context(
        lengths,
        side,
        longest=max(knobs, default=max(lengths.values(), default=0)),
        response=job.recipe.evaluation.max_response_tokens,
        field=f"prompt_sets.held_out ({field})",
    )
