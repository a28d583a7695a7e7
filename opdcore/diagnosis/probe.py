"""The probe: measures a triple of student, teacher and prompts, tier by tier, before any training.

Prompts are worked through in thirds, so that whoever asked can stop at one of three preset looks.
Every measure is a value for each prompt first, and then a mean with its interval by prompt. It draws no
verdict.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from opdcore.contract.distill import DistillStage
from opdcore.contract.events import Logged, Payload, Progress
from opdcore.contract.probe import DiagnoseStage, Finding, Measure, Probe, Tier
from opdcore.diagnosis import intervals, setup
from opdcore.diagnosis.answers import STUDENT, TEACHER, Answers, PerPrompt, answer, graded
from opdcore.diagnosis.budget import Budget, Cost, cost
from opdcore.diagnosis.hand_off import GAIN, RATE, HandOff, depth, hand_off, measures, places
from opdcore.diagnosis.scored import Scores, chunks, likelihood, objective_of, score, style_mass
from opdcore.order import probed, seed_of
from opdcore.rollouts import Rollout
from opdcore.workspace import Workspace

LOOKS = 3
# Rollouts that somebody else sampled, by row of the train set.
Given = Mapping[int, Sequence[Rollout]]
# Says of a probe at a look whether more prompts could change what it means.
Settled = Callable[[Probe], bool]

_RATES = frozenset(
    {
        "student_accuracy", "teacher_accuracy", "student_pass_at_n", "teacher_pass_at_n",
        "teacher_on_failed", "truncation_rate", "repetition_rate",
    }
)  # fmt: skip
_GAINS = frozenset({"accuracy_gap"})


@dataclass
class _Found:
    """What the prompts so far gave."""

    values: dict[str, PerPrompt] = field(default_factory=lambda: defaultdict(dict))
    rewards: dict[int, list[tuple[float, bool]]] = field(default_factory=dict)
    scores: list[Scores] = field(default_factory=list)
    hand_offs: list[HandOff] = field(default_factory=list)
    prompts: int = 0
    rollouts: int = 0
    student_tokens: int = 0
    teacher_tokens: int = 0

    def add(self, values: Mapping[str, PerPrompt]) -> None:
        for key, column in values.items():
            self.values[key] |= column

    @property
    def response_tokens(self) -> float:
        lengths = self.values["response_tokens_mean"].values()
        return fmean(length for length in lengths if length is not None)


@dataclass(frozen=True)
class _Asked:
    """What a probe is asked for, as every part of it needs it."""

    stage: DiagnoseStage
    work: Workspace
    objective: DistillStage
    findings: tuple[Finding, ...]
    given: Given | None
    level: float
    seed: int
    started: float

    @property
    def hands_off(self) -> bool:
        return "hand_off" in self.stage.tiers and self.work.verifier is not None

    @property
    def samples(self) -> bool:
        return "scored" in self.stage.tiers or self.hands_off


def measure(
    stage: DiagnoseStage,
    work: Workspace,
    *,
    stage_index: int = 0,
    planned: Sequence[DistillStage] = (),
    given: Given | None = None,
    settled: Settled | None = None,
    findings: tuple[Finding, ...] | None = None,
) -> Iterator[Payload | Probe]:
    """Yields progress and lines for people, and last the probe of the workspace's triple.

    `planned` are the distillation stages that the probe is for: their first objective gives loss and
    gradient, their tokens the budget. With `settled` the intervals at each look are corrected for
    three looks (Bonferroni), and the probe ends at the first look that it calls settled. Where the
    set-up cannot work, nothing is sampled. `findings` are those of a static tier done before.
    """
    started = time.perf_counter()
    if findings is None:
        yield Logged(level="info", message="Static tier: reads both folders and the prompts.")
        findings = _static(work)
    asked = _Asked(
        stage=stage,
        work=work,
        objective=objective_of(stage, planned),
        findings=findings,
        given=given,
        level=intervals.LEVEL if settled is None else 1 - (1 - intervals.LEVEL) / LOOKS,
        seed=seed_of(work.job.recipe.seed, stage_index),
        started=started,
    )
    if asked.samples and not setup.refuses(findings):
        rows = _rows(stage, work, stage_index, given)
        yield from _sampled(asked, rows, Budget(stage.budget_share, planned), settled)
        return
    seconds = time.perf_counter() - started
    yield setup.probe(stage, findings, verifier=_name(work), seconds=seconds)


def _static(work: Workspace) -> tuple[Finding, ...]:
    sides = [setup.Side(model.folder, model.renderer) for model in (work.student, work.teacher)]
    (member,) = work.teachers.members
    return setup.findings(sides[0], sides[1], work.train, member.said.privileged)


def _rows(
    stage: DiagnoseStage, work: Workspace, stage_index: int, given: Given | None
) -> list[int]:
    seed = work.job.recipe.seed
    if given is None:
        return probed(len(work.train), at_most=stage.prompts, seed=seed, stage_index=stage_index)
    order = probed(len(work.train), at_most=len(work.train), seed=seed, stage_index=stage_index)
    return [row for row in order if row in given][: stage.prompts]


def _sampled(
    asked: _Asked, rows: list[int], budget: Budget, settled: Settled | None
) -> Iterator[Payload | Probe]:
    """The tiers that need rollouts, in thirds of the prompts."""
    graded = asked.work.verifier is not None
    price = cost(asked.stage, graded=graded, given=asked.given is not None)
    longest = float(asked.stage.max_response_tokens)
    most = budget.prompts(response_tokens=longest, tokens_per_prompt=price.responses * longest)
    yield from _told_cut(rows, most)
    rows = rows[:most]
    yield from _told_costs(asked, price, len(rows))

    found = _Found()
    for look in range(1, LOOKS + 1):
        some = rows[found.prompts : math.ceil(len(rows) * look / LOOKS)]
        if not some:
            continue
        yield from _part(asked, found, some, total=len(rows))
        spent = (found.student_tokens + found.teacher_tokens) / found.prompts
        most = budget.prompts(response_tokens=found.response_tokens, tokens_per_prompt=spent)
        if most is not None and found.prompts < len(rows):
            most = max(most, found.prompts)
            yield from _told_cut(rows, most)
            rows = rows[:most]
        over = found.prompts == len(rows)
        if settled is None and not over:
            continue
        probe = _probe(asked, found, looks=1 if settled is None else look)
        if over or (settled is not None and settled(probe)):
            yield probe
            return


def _part(asked: _Asked, found: _Found, rows: Sequence[int], *, total: int) -> Iterator[Payload]:
    """Everything that is measured of some prompts."""
    stage, work, seed = asked.stage, asked.work, seed_of(asked.seed, found.prompts)
    done = found.prompts

    yield _progress(work, "sampling the student", done, total)
    if asked.given is None:
        ours = answer(stage, work, rows, side=STUDENT, seed=seed)
        found.student_tokens += ours.tokens
    else:
        ours = _graded_given(work, asked.given, rows)
    found.add(_of_student(ours, work))
    if "scored" in stage.tiers:
        yield _progress(work, "sampling the teacher", done, total)
        theirs = answer(stage, work, rows, side=TEACHER, seed=seed)
        found.teacher_tokens += theirs.tokens
        found.add(_of_both(ours, theirs))
        yield _progress(work, "scoring rollouts", done, total)
        _score(asked, found, ours, theirs)
    if asked.hands_off:
        yield _progress(work, "handing off to the teacher", done, total)
        for one in hand_off(stage, work, ours, seed=seed):
            found.hand_offs.append(one)
            found.student_tokens += one.student_tokens
            found.teacher_tokens += one.teacher_tokens
    found.prompts += len(rows)
    found.rollouts += len(ours.rollouts)


def _score(asked: _Asked, found: _Found, ours: Answers, theirs: Answers) -> None:
    work, objective = asked.work, asked.objective
    scores = score(asked.stage, work, objective, ours)
    found.scores.append(scores)
    found.add(scores.values)
    found.add(
        {
            "student_nll_on_teacher": likelihood(work, objective, theirs),
            "style_mass": style_mass(work, objective, sorted(set(ours.rows))),
        }
    )
    for row, one, reward in zip(ours.rows, ours.grades, scores.rewards, strict=True):
        if one.correct is not None:
            found.rewards.setdefault(row, []).append((reward, one.correct))


def _graded_given(work: Workspace, given: Given, rows: Sequence[int]) -> Answers:
    pairs = [(row, rollout) for row in rows for rollout in given[row]]
    return graded(work, [row for row, _ in pairs], [one for _, one in pairs], side=STUDENT)


def _of_student(ours: Answers, work: Workspace) -> dict[str, PerPrompt]:
    return {
        "truncation_rate": ours.truncated(),
        "repetition_rate": ours.repeating(work.student),
        "response_tokens_mean": ours.lengths(),
        "student_accuracy": ours.accuracy(),
        "student_pass_at_n": ours.solved_once(),
    }


def _of_both(ours: Answers, theirs: Answers) -> dict[str, PerPrompt]:
    student, teacher, failed = ours.accuracy(), theirs.accuracy(), ours.failed()
    return {
        "teacher_accuracy": teacher,
        "teacher_pass_at_n": theirs.solved_once(),
        "teacher_on_failed": {row: teacher[row] if row in failed else None for row in teacher},
        "accuracy_gap": {row: _minus(teacher[row], student[row]) for row in teacher},
    }


def _probe(asked: _Asked, found: _Found, *, looks: int) -> Probe:
    """The numbers so far, with their intervals."""
    stage, work = asked.stage, asked.work
    depths = tuple(
        depth(place, [one for one in found.hand_offs if one.place == place], level=asked.level)
        for place in places(stage)
        if found.hand_offs
    )
    done: dict[Tier, bool] = {
        "static": True,
        "scored": bool(found.scores),
        "hand_off": bool(depths),
    }
    return Probe(
        tiers=tuple(tier for tier, taken in done.items() if taken),
        prompts=found.prompts,
        rollouts_per_prompt=found.rollouts // found.prompts,
        k=stage.k,
        looks=looks,
        verifier=_name(work),
        measures=_measures(found, asked.level) | measures(depths),
        chunks=chunks(found.scores) if found.scores else None,
        hand_off=depths,
        findings=asked.findings,
        provenance=setup.provenance(stage.relation, asked.findings),
        student_tokens=found.student_tokens,
        teacher_tokens=found.teacher_tokens,
        seconds=time.perf_counter() - asked.started,
    )


def _measures(found: _Found, level: float) -> dict[str, Measure]:
    """Every measure that some prompt has a value for."""
    told = {
        key: intervals.mean(list(column.values()), level=level, span=_span(key))
        for key, column in found.values.items()
        if any(value is not None for value in column.values())
    }
    auroc = intervals.auroc(found.rewards, level=level)
    if auroc.value is not None:
        told["reward_auroc"] = auroc
    if found.scores:
        # That of the first third: a norm shrinks as its batch grows, and has no value by prompt.
        first = found.scores[0]
        prompts = len(first.values["first_loss"])
        told["grad_norm"] = Measure(value=first.grad_norm, prompts=prompts)
    return told


def _name(work: Workspace) -> str:
    return "none" if work.verifier is None else work.verifier.name


def _span(key: str) -> tuple[float, float] | None:
    if key in _RATES:
        return RATE
    return GAIN if key in _GAINS else None


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _progress(work: Workspace, what: str, done: int, total: int) -> Progress:
    """Where a wish to stop is heeded: a probe leaves nothing behind."""
    if work.stop():
        raise work.cancelled()
    return Progress(what=what, done=done, total=total, unit="prompts")


def _told_cut(rows: Sequence[int], most: int | None) -> Iterator[Logged]:
    if most is not None and most < len(rows):
        yield Logged(
            level="warning",
            message=f"The budget pays for {most} of {len(rows)} prompts; raise budget_share, or leave "
            "it empty, to probe more.",
        )


def _told_costs(asked: _Asked, price: Cost, prompts: int) -> Iterator[Logged]:
    """What each tier will take, before it starts."""
    stage, longest = asked.stage, asked.stage.max_response_tokens
    rollouts = prompts * (price.scored_student + price.scored_teacher)
    yield Logged(
        level="info",
        message=f"Scored tier: {rollouts:.0f} rollouts of {prompts} prompts, at most "
        f"{rollouts * longest:.0f} tokens, and one pass of both models over the student's.",
    )
    if asked.hands_off:
        handed = prompts * stage.rollouts_per_prompt * len(places(stage)) * 2
        yield Logged(
            level="info",
            message=f"Hand-off tier: {handed} continuations, at most "
            f"{prompts * 2 * price.hand_off * longest:.0f} tokens.",
        )
    elif "hand_off" in stage.tiers:
        yield Logged(
            level="warning",
            message="There is no verifier, so accuracies and the hand-off are left out; patterns, "
            "rollouts and the objective are measured as always.",
        )
