"""Answers held-out prompts and grades them, the same way before, during and after a run.

Scores by prompt are kept as files in the run's folder, since the outcome pairs them and a resumed
run must not measure its beginning again. It knows no objective and no optimizer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol

import torch

from opdcore.contract.errors import BadInput
from opdcore.contract.evaluation import Evaluation, Goal, TargetMetric
from opdcore.contract.events import ArtifactWritten, Evaluated, ModelRole, Payload, Progress
from opdcore.contract.outcome import Interval, Outcome, Scores, judge, mean_interval
from opdcore.contract.prompt import Prompt
from opdcore.files import write_bytes
from opdcore.inspection import ModelCard
from opdcore.models import LoadedModel
from opdcore.rendering import Renderer
from opdcore.rollouts import Responder, Rollout, Sampling, sample
from opdcore.verifiers.grading import Attempt, Grade, Verifier

FOLDER = "evaluations"
TEACHER_FILE = "teacher.json"
BASELINE_FILE = "student-00-0000000.json"
# Prompts answered between two steps of the progress bar.
PROMPTS_AT_ONCE = 256


@dataclass(frozen=True)
class Scored:
    """Scores of one evaluation by prompt; accuracy is None where every sample was abstained."""

    accuracy: list[float | None]
    response_tokens: list[float | None]
    solved_once: list[float | None]
    truncated: float
    abstained: float

    def of(self, metric: TargetMetric) -> Scores:
        """The scores of a target metric."""
        return self.accuracy if metric == "accuracy" else self.response_tokens


class Answerer(Protocol):
    """Whoever answers held-out prompts: the student, or the teacher of a prompt."""

    @property
    def model(self) -> LoadedModel | Responder: ...
    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]: ...


@dataclass(frozen=True)
class _Plain:
    """A model that reads prompts as they are."""

    model: LoadedModel

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        return [rendered.ids for rendered in self.model.renderer.render_many(prompts)]


def _alone(model: LoadedModel) -> Callable[[Prompt], Answerer]:
    plain = _Plain(model)
    return lambda _: plain


class Answering(Protocol):
    """Several of them, one for each prompt."""

    def answerer(self, prompt: Prompt) -> Answerer: ...


class Evaluator:
    """Grades the student, and once the teacher, on a fixed list of held-out prompts."""

    def __init__(
        self,
        evaluation: Evaluation,
        prompts: Sequence[Prompt],
        *,
        verifier: Verifier | None,
        vocabulary: int,
        seed: int,
        run_dir: Path,
        resumed: bool,
        sample: Callable[..., list[Rollout]] = sample,
    ) -> None:
        """`resumed`: an earlier attempt has already told what it measured before its checkpoint.

        `sample` is called as `rollouts.sample` is.
        """
        self.evaluation = evaluation
        self.prompts = prompts[: evaluation.prompts]
        self.verifier = verifier
        self.vocabulary = vocabulary
        self.seed = seed
        self.folder = run_dir / FOLDER
        self.resumed = resumed
        self._sample = sample
        self._teacher_told = resumed and (self.folder / TEACHER_FILE).exists()

    def student(self, model: LoadedModel, *, stage_index: int, step: int) -> Iterator[Payload]:
        """Evaluates the student after `step` of a stage."""
        yield from self._evaluate(_alone(model), "student", _name(stage_index, step))

    def baseline(self, model: LoadedModel) -> Iterator[Payload]:
        """Evaluates the student before the first step, once in a run."""
        if not (self.resumed and (self.folder / BASELINE_FILE).exists()):
            yield from self._evaluate(_alone(model), "student", BASELINE_FILE)

    def teacher(self, teachers: Answering) -> Iterator[Payload]:
        """Evaluates the teachers, once in a run: each prompt is answered by the one who leads it."""
        if self.evaluation.teacher and not self._teacher_told:
            self._teacher_told = True
            yield from self._evaluate(teachers.answerer, "teacher", TEACHER_FILE)

    def before(self, stage_index: int) -> Interval | None:
        """The student's accuracy as it was last measured before a stage; None where nothing did."""
        first = _name(stage_index, 0)
        earlier = [file.name for file in self.folder.glob("student-*.json") if file.name <= first]
        return mean_interval(self._read(max(earlier)).accuracy) if earlier else None

    def outcome(self, goal: Goal) -> Outcome:
        """Judges the run on its first and last evaluation of the student."""
        last = max(self.folder.glob("student-*.json"))
        before, after = self._read(BASELINE_FILE), self._read(last.name)
        teacher = self._teacher()
        metric = goal.target_metric
        return judge(
            before.of(metric),
            after.of(metric),
            teacher.of(metric) if teacher else None,
            better="up" if metric == "accuracy" else "down",
            guards={guard: _signed(guard, before, after) for guard in goal.guard_metrics},
        )

    def _evaluate(
        self, who: Callable[[Prompt], Answerer], role: ModelRole, name: str
    ) -> Iterator[Payload]:
        rollouts: list[Rollout] = []
        grades: list[Grade] = []
        for start in range(0, len(self.prompts), PROMPTS_AT_ONCE):
            what = f"evaluating the {role}"
            yield Progress(what=what, done=start, total=len(self.prompts), unit="prompts")
            chunk = self.prompts[start : start + PROMPTS_AT_ONCE]
            for rollout, graded in self._answered(who, role, chunk, start):
                rollouts.append(rollout)
                grades.append(graded)
        scored = _scored(rollouts, grades, self.evaluation.samples_per_prompt)
        yield self._write(name, scored)
        yield self._evaluated(role, scored, Counter(_abstentions(grades)))

    def _answered(
        self,
        who: Callable[[Prompt], Answerer],
        role: ModelRole,
        prompts: Sequence[Prompt],
        start: int,
    ) -> list[tuple[Rollout, Grade]]:
        """Responses to the prompts in order, each by whoever answers it, with their grades."""
        found: dict[int, list[tuple[Rollout, Grade]]] = {}
        answerers = [who(prompt) for prompt in prompts]
        n = self.evaluation.samples_per_prompt
        for one in {id(one): one for one in answerers}.values():
            places = [place for place, other in enumerate(answerers) if other is one]
            ids = one.prompt_ids([prompts[place] for place in places])
            rollouts = self._answer(one.model, role, ids, start)
            owners = [place for place in places for _ in range(n)]
            asked = [prompts[place] for place in owners]
            grades = grade(self.verifier, one.model.renderer, rollouts, asked)
            for place, rollout, graded in zip(owners, rollouts, grades, strict=True):
                found.setdefault(place, []).append((rollout, graded))
        return [pair for place in sorted(found) for pair in found[place]]

    def _answer(
        self,
        model: LoadedModel | Responder,
        role: ModelRole,
        prompts: Sequence[tuple[int, ...]],
        start: int,
    ) -> list[Rollout]:
        ids = [one for one in prompts for _ in range(self.evaluation.samples_per_prompt)]
        # One seed for every evaluation: the same draws before and after narrow their difference.
        generator = torch.Generator().manual_seed(self.seed + start)
        sampling = Sampling(
            max_tokens=self.evaluation.max_response_tokens,
            temperature=self.evaluation.temperature,
            top_p=self.evaluation.sampling_top_p,
            # The student never learns to write what the pair does not share; the teacher may end by it.
            vocabulary=self.vocabulary if role == "student" else model.card.vocabulary,
            stop_ids=frozenset(model.renderer.stop_ids),
        )
        return self._sample(model, ids, sampling=sampling, generator=generator)

    def _evaluated(self, role: ModelRole, scored: Scored, abstentions: dict[str, int]) -> Evaluated:
        interval = mean_interval(scored.accuracy)
        value, low, high = interval or (None, None, None)
        if role == "teacher":
            values = {"teacher_accuracy": value}
        else:
            values = {
                "accuracy": value,
                "accuracy_low": low,
                "accuracy_high": high,
                "pass_at_n": _mean(scored.solved_once),
                "gap_recovery": self._recovery(scored),
                "evaluation_truncation_rate": scored.truncated,
                "evaluation_abstained_share": scored.abstained,
                "evaluation_response_tokens": _mean(scored.response_tokens),
            }
        return Evaluated(
            role=role,
            prompts=len(self.prompts),
            samples_per_prompt=self.evaluation.samples_per_prompt,
            verifier="none" if self.verifier is None else self.verifier.name,
            abstentions=abstentions,
            values=values,
        )

    def _recovery(self, scored: Scored) -> float | None:
        teacher = self._teacher()
        if teacher is None or not (self.folder / BASELINE_FILE).exists():
            return None
        before = self._read(BASELINE_FILE)
        return judge(before.accuracy, scored.accuracy, teacher.accuracy).recovery

    def _teacher(self) -> Scored | None:
        return self._read(TEACHER_FILE) if (self.folder / TEACHER_FILE).exists() else None

    def _read(self, name: str) -> Scored:
        return Scored(**json.loads((self.folder / name).read_bytes()))

    def _write(self, name: str, scored: Scored) -> ArtifactWritten:
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".{name}.part"
        written = write_bytes(aside, json.dumps(scored.__dict__).encode())
        aside.rename(self.folder / name)
        return ArtifactWritten(
            artifact_kind="evaluation",
            key=f"{FOLDER}/{name}",
            sha256=written.sha256,
            size_bytes=written.size_bytes,
        )


def _name(stage_index: int, step: int) -> str:
    """The file of a student's evaluation; names sort as the evaluations were made."""
    return f"student-{stage_index:02d}-{step:07d}.json"


def grade(
    verifier: Verifier | None,
    renderer: Renderer,
    rollouts: Sequence[Rollout],
    prompts: Sequence[Prompt],
) -> list[Grade]:
    """Grades each rollout, in the renderer's ids, against its prompt; without a verifier each is an abstention."""
    if verifier is None:
        return [Grade(None, "the recipe has no verifier")] * len(rollouts)
    decode = renderer.decode
    return verifier.grade(
        [
            Attempt(decode(rollout.text_ids), prompt.answer, prompt.tests, prompt.question)
            for rollout, prompt in zip(rollouts, prompts, strict=True)
        ]
    )


class Reader(Protocol):
    """Whoever reads prompts: a model, loaded or not."""

    @property
    def card(self) -> ModelCard: ...
    @property
    def folder(self) -> Path: ...


def check_context(
    lengths: Mapping[int, int], model: Reader, *, longest: int, response: int, field: str
) -> None:
    """Raises BadInput where a rendered prompt is empty, or too long for the knob or the context.

    `lengths` gives the tokens of each row counted from 0.
    """
    context = model.card.context_length
    for row, length in lengths.items():
        if length == 0:
            raise BadInput(
                "prompt_set.renders_empty",
                f"The prompt becomes no token at all for {model.folder}, so nothing can follow it.",
                remedy="Repair that side's chat template, or change the prompt.",
                field=f"{field}, row {row + 1}",
            )
        if length > longest or (context is not None and length + response > context):
            limit = f"max_prompt_tokens {longest}, max_response_tokens {response}"
            raise BadInput(
                "prompt_set.too_long",
                f"The prompt has {length} tokens; {limit}, context {context}.",
                remedy="Shorten the prompt, or lower max_response_tokens.",
                field=f"{field}, row {row + 1}",
            )


def _scored(rollouts: list[Rollout], grades: list[Grade], n: int) -> Scored:
    accuracy: list[float | None] = []
    solved: list[float | None] = []
    tokens: list[float | None] = []
    for start in range(0, len(rollouts), n):
        verdicts = [g.correct for g in grades[start : start + n] if g.correct is not None]
        accuracy.append(fmean(verdicts) if verdicts else None)
        solved.append(float(any(verdicts)) if verdicts else None)
        tokens.append(fmean(len(r.ids) for r in rollouts[start : start + n]))
    return Scored(
        accuracy=accuracy,
        response_tokens=tokens,
        solved_once=solved,
        truncated=fmean(not r.stopped for r in rollouts),
        abstained=fmean(g.correct is None for g in grades),
    )


def _abstentions(grades: Sequence[Grade]) -> Iterator[str]:
    return (g.reason or "unknown" for g in grades if g.correct is None)


def _signed(metric: TargetMetric, before: Scored, after: Scored) -> tuple[Scores, Scores]:
    """A guard's scores, signed so that more is better."""
    if metric == "accuracy":
        return before.accuracy, after.accuracy
    negative = [[-v for v in side.response_tokens if v is not None] for side in (before, after)]
    return negative[0], negative[1]


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None
