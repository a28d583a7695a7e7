"""On-policy distillation: the student writes, the teacher scores every token, the student learns.

A step samples rollouts from the student, runs both models over them once, back-propagates the
objective at every response position, and updates the weights. Simplifications, on purpose:

- strictly on-policy: one update for each batch of rollouts, so no importance weights and no clipping;
- one student and one teacher on one device, in float32, without dropout;
- every generated token weighs the same: the loss is a sum over positions divided by their number in
  the whole step, so how a step is cut into micro-batches changes nothing;
- everything random is seeded by (seed, stage, step), so a resumed run needs no generator's state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor

from opdcore import alignment as alignments
from opdcore import checkpoints, traces
from opdcore.alignment import Alignment
from opdcore.batches import Batch, cut, response_hidden
from opdcore.checkpoints import Saved
from opdcore.contract.errors import EngineFailure
from opdcore.contract.events import (
    ArtifactDropped,
    ArtifactWritten,
    Positions,
    Progress,
    TraceWritten,
    metrics,
)
from opdcore.contract.metrics import POSITION_METRICS
from opdcore.contract.recipe import DistillStage
from opdcore.device import peak_memory_bytes, synchronise
from opdcore.evaluation import check_context, grade
from opdcore.files import hash_file
from opdcore.losses import Objective
from opdcore.order import draw, seed_of
from opdcore.rollouts import Rollout, Sampling, sample
from opdcore.rollouts.rollout import repeats
from opdcore.scoring import score
from opdcore.verifiers.grading import Grade
from opdcore.workspace import Line, Workspace

POSITION_CHUNKS = 4
# Weights watched for `weights_changed_share`: enough for three digits, cheap to copy.
WATCHED_WEIGHTS = 1_000_000


@dataclass(frozen=True)
class Scored:
    """What the training pass over one step's rollouts saw; `order` gives the batches' rollouts."""

    loss: float
    alignment: Alignment
    batches: tuple[Batch, ...]


def distill(
    stage: DistillStage, work: Workspace, *, stage_index: int, resume: Saved | None
) -> Iterator[Line]:
    """Trains the workspace's student for the stage's steps, from `resume` where there is one."""
    student = work.student.model
    optimizer = torch.optim.AdamW(
        student.parameters(),
        lr=stage.learning_rate,
        betas=(stage.beta1, stage.beta2),
        weight_decay=stage.weight_decay,
        fused=True,
    )
    first = 1
    if resume is not None:
        checkpoints.restore(resume, student, optimizer)
        first = resume.step + 1
    prompt_ids = yield from _render(stage, work, stage_index, first)
    watched = _Watched(student)

    for step in range(first, stage.steps + 1):
        try:
            work.check_stop()
        except BaseException:
            yield from _checkpoint(stage, work, optimizer, stage_index, step - 1)
            raise
        clock = _Clock(work.student.device)
        rows = draw(
            len(work.train), stage, seed=work.job.recipe.seed, stage_index=stage_index, step=step
        )
        rollouts = _sample(
            stage, work, prompt_ids, rows, seed_of(work.job.recipe.seed, stage_index, step)
        )
        clock.lap("sample_seconds")
        grades = grade(work.verifier, work.student, rollouts, [work.train[row] for row in rows])
        clock.lap("grade_seconds")

        optimizer.zero_grad(set_to_none=True)
        scored = _score(stage, work, prompt_ids, rows, rollouts)
        clock.lap("train_seconds")
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), stage.max_grad_norm).item()
        finite = math.isfinite(scored.loss) and math.isfinite(norm)
        rate = learning_rate(stage, step)
        if finite:
            watched.remember()
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        clock.lap("update_seconds")

        seconds = clock.seconds | {"step_seconds": clock.total()}
        yield Line(
            metrics(
                {"loss": scored.loss, "grad_norm": norm, "learning_rate": rate}
                | {"weights_changed_share": watched.changed_share() if finite else None}
                | alignments.summarise(scored.alignment)
                | _rollout_metrics(rollouts, grades, scored, work)
                | seconds
                | {"tokens_per_second": _tokens(rollouts) / seconds["step_seconds"]}
                | {"peak_memory_bytes": float(peak_memory_bytes(work.student.device))}
            ),
            step,
        )
        yield Line(_positions(stage, scored), step)
        if not finite:
            raise _nonfinite(stage, scored.loss, norm, step)
        if step % stage.trace_steps == 0 or step in (1, stage.steps):
            yield from _trace(stage, work, rows, rollouts, grades, scored, stage_index, step)
        yield from _evaluate(stage, work, stage_index, step)
        if step % stage.checkpoint_steps == 0 or step == stage.steps:
            yield from _checkpoint(stage, work, optimizer, stage_index, step)


def learning_rate(stage: DistillStage, step: int) -> float:
    """Learning rate of a step counted from 1: linear warm-up, then the schedule down to 0."""
    if step <= stage.warmup_steps:
        return stage.learning_rate * step / stage.warmup_steps
    done = (step - stage.warmup_steps - 1) / max(1, stage.steps - stage.warmup_steps)
    factors = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return stage.learning_rate * factors[stage.schedule]


def objective_of(stage: DistillStage) -> Objective:
    """The knobs that the losses know."""
    return Objective(
        form=stage.form,
        divergence=stage.divergence,
        support=stage.support,
        normalisation=stage.normalisation,
        k=stage.k,
    )


PromptIds = dict[int, tuple[tuple[int, ...], tuple[int, ...]]]


def _render(stage: DistillStage, work: Workspace, stage_index: int, first: int) -> Iterator[Line]:
    """Renders, by each side's template, every prompt that the steps will draw; returns the ids."""
    seed = work.job.recipe.seed
    steps = range(first, stage.steps + 1)
    drawn = sorted(
        {
            r
            for s in steps
            for r in draw(len(work.train), stage, seed=seed, stage_index=stage_index, step=s)
        }
    )
    ids: PromptIds = {}
    for start in range(0, len(drawn), RENDERED_AT_ONCE):
        if start:
            yield Line(
                Progress(what="rendering prompts", done=start, total=len(drawn), unit="prompts")
            )
        rows = drawn[start : start + RENDERED_AT_ONCE]
        prompts = [work.train[row] for row in rows]
        sides = [
            [r.ids for r in m.renderer.render_many(prompts)] for m in (work.student, work.teacher)
        ]
        ids |= dict(zip(rows, zip(*sides, strict=True), strict=True))
    for side, model in enumerate((work.student, work.teacher)):
        check_context(
            {row: len(both[side]) for row, both in ids.items()},
            model,
            longest=stage.max_prompt_tokens,
            response=stage.max_response_tokens,
            field="prompt_sets.train",
        )
    return ids


RENDERED_AT_ONCE = 10_000


def _sample(
    stage: DistillStage, work: Workspace, prompt_ids: PromptIds, rows: Sequence[int], seed: int
) -> list[Rollout]:
    device = work.student.device
    return sample(
        work.student,
        [prompt_ids[row][0] for row in rows],
        sampling=Sampling(
            max_tokens=stage.max_response_tokens,
            temperature=stage.temperature,
            top_p=stage.sampling_top_p,
            vocabulary=work.vocabulary,
            stop_ids=frozenset(work.student.renderer.stop_ids),
        ),
        generator=torch.Generator(device).manual_seed(seed),
    )


def _score(
    stage: DistillStage, work: Workspace, prompt_ids: PromptIds, rows: Sequence[int],
    rollouts: Sequence[Rollout],
) -> Scored:  # fmt: skip
    """Runs both models over the rollouts in micro-batches and back-propagates the objective."""
    sides = [[prompt_ids[row][side] for row in rows] for side in (0, 1)]
    batches = tuple(cut(rollouts, sides, tokens=stage.micro_batch_tokens))
    total = _tokens(rollouts)
    loss_sum, parts = 0.0, []
    for batch in batches:
        student_hidden = response_hidden(work.student, batch, side=0)
        with torch.no_grad():
            teacher_hidden = response_hidden(work.teacher, batch, side=1)
        part = score(
            student_hidden,
            work.student.project,
            teacher_hidden,
            work.teacher.project,
            batch.sampled_ids.to(work.student.device),
            objective=objective_of(stage),
            k=stage.k,
            vocabulary=work.vocabulary,
            temperature=stage.temperature,
            loss_scale=1 / total,
        )
        loss_sum += part.loss_sum
        parts.append(part.alignment)
    return Scored(loss_sum / total, alignments.concatenate(parts), batches)


def _rollout_metrics(
    rollouts: Sequence[Rollout], grades: Sequence[Grade], scored: Scored, work: Workspace
) -> dict[str, float | None]:
    lengths = [len(rollout.ids) for rollout in rollouts]
    graded = [grade.correct for grade in grades if grade.correct is not None]
    decode = work.student.renderer.decode
    sampled = torch.cat([batch.logprobs for batch in scored.batches])
    trained = scored.alignment.student_logprob.cpu()
    return {
        "rollout_accuracy": fmean(graded) if graded else None,
        "rollout_abstained_share": 1 - len(graded) / len(rollouts),
        "response_tokens_mean": fmean(lengths),
        "response_tokens_max": float(max(lengths)),
        "truncation_rate": fmean(not rollout.stopped for rollout in rollouts),
        "repetition_rate": fmean(repeats(decode(rollout.text_ids)) for rollout in rollouts),
        "generated_tokens": float(sum(lengths)),
        "sampler_logprob_difference": (sampled - trained).abs().mean().item(),
    }


def position_edges(stage: DistillStage) -> tuple[int, ...]:
    """Borders of the position chunks: fixed width, or quarters of the longest response."""
    longest = stage.max_response_tokens
    width = stage.position_chunk_tokens or math.ceil(longest / POSITION_CHUNKS)
    return (*range(0, longest, width), longest)


def _positions(stage: DistillStage, scored: Scored) -> Positions:
    edges = position_edges(stage)
    where = torch.cat([batch.positions for batch in scored.batches])
    device = scored.alignment.overlap_ratio.device
    columns = alignments.by_position(scored.alignment, where.to(device), edges=edges)
    counts = [int(((where >= low) & (where < high)).sum()) for low, high in pairwise(edges)]
    values = {key: tuple(_finite(v) for v in columns[key]) for key in POSITION_METRICS}
    return Positions(edges=edges, positions=tuple(counts), values=values)


def _trace(
    stage: DistillStage, work: Workspace, rows: Sequence[int], rollouts: Sequence[Rollout],
    grades: Sequence[Grade], scored: Scored, stage_index: int, step: int,
) -> Iterator[Line]:  # fmt: skip
    """Writes the first rollouts of the step with the values of each of their tokens."""
    renderer = work.student.renderer
    columns = {name: getattr(scored.alignment, name).cpu() for name in traces.COLUMNS}
    spans = _spans(scored.batches)
    kept = []
    for index in range(min(stage.trace_rollouts, len(rollouts))):
        rollout = rollouts[index]
        kept.append(
            traces.TracedRollout(
                prompt_index=rows[index],
                prompt=renderer.text(work.train[rows[index]]),
                response=renderer.decode(rollout.text_ids),
                ids=rollout.ids,
                tokens=[renderer.token_text(token) for token in rollout.ids],
                stopped=rollout.stopped,
                correct=grades[index].correct,
                columns={name: column[spans[index]].tolist() for name, column in columns.items()},
            )
        )
    key = f"traces/stage-{stage_index:02d}-step-{step:07d}.parquet"
    path = work.run_dir / key
    traces.write(path, kept, step=step)
    written = hash_file(path)
    yield Line(TraceWritten(key=key, rollouts=len(kept)), step)
    yield Line(_artifact("trace", key, written.sha256, written.size_bytes), step)


def _spans(batches: Sequence[Batch]) -> dict[int, slice]:
    """Where each rollout's positions lie in the concatenated columns."""
    spans, start = {}, 0
    for batch in batches:
        for index, length in zip(batch.rollouts, batch.lengths, strict=True):
            spans[index] = slice(start, start + length)
            start += length
    return spans


def _evaluate(stage: DistillStage, work: Workspace, stage_index: int, step: int) -> Iterator[Line]:
    if work.evaluator is None:
        return
    # After the first step, so that the first point is drawn before the teacher is asked.
    for payload in work.evaluator.teacher(work.teacher):
        yield Line(payload, step)
    due = stage.evaluate_steps and step % stage.evaluate_steps == 0
    if due or step == stage.steps:
        for payload in work.evaluator.student(work.student, stage_index=stage_index, step=step):
            yield Line(payload, step)


def _checkpoint(
    stage: DistillStage, work: Workspace, optimizer: torch.optim.Optimizer, stage_index: int,
    step: int,
) -> Iterator[Line]:  # fmt: skip
    root = work.run_dir / checkpoints.FOLDER
    saved, written = checkpoints.save(
        root,
        work.student.model,
        optimizer,
        stage_index=stage_index,
        step=step,
        recipe_sha256=checkpoints.recipe_sha256(work.job.recipe),
    )
    key = f"{checkpoints.FOLDER}/{saved.folder.name}"
    yield Line(_artifact("checkpoint", key, written.sha256, written.size_bytes), step)
    for removed in checkpoints.prune(root, keep=stage.keep_checkpoints):
        yield Line(ArtifactDropped(key=f"{checkpoints.FOLDER}/{removed.name}"), step)


def _artifact(kind: str, key: str, sha256: str, size_bytes: int) -> ArtifactWritten:
    return ArtifactWritten(artifact_kind=kind, key=key, sha256=sha256, size_bytes=size_bytes)


def _nonfinite(stage: DistillStage, loss: float, norm: float, step: int) -> EngineFailure:
    return EngineFailure(
        "run.nonfinite",
        f"At step {step} the loss is {loss} and the gradient norm {norm}; the update was not made.",
        remedy=f"Resume from the last checkpoint with a learning rate below {stage.learning_rate:g}"
        " or a longer warm-up.",
    )


def _tokens(rollouts: Sequence[Rollout]) -> int:
    return sum(len(rollout.ids) for rollout in rollouts)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


class _Clock:
    """Seconds of each phase of a step, measured on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        synchronise(self.device)
        now = time.perf_counter()
        self.seconds[phase], self.last = now - self.last, now

    def total(self) -> float:
        return time.perf_counter() - self.start


class _Watched:
    """A fixed sample of the weights, compared before and after an update."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.parameters = list(model.parameters())
        count = sum(p.numel() for p in self.parameters)
        self.stride = max(1, count // WATCHED_WEIGHTS)
        self.before: list[Tensor] = []

    def remember(self) -> None:
        self.before = self._sample()

    def changed_share(self) -> float:
        after = self._sample()
        changed = sum(int((a != b).sum()) for a, b in zip(after, self.before, strict=True))
        return changed / sum(a.numel() for a in after)

    def _sample(self) -> list[Tensor]:
        return [p.detach().reshape(-1)[:: self.stride].clone() for p in self.parameters]
