"""Proofs: whether a rescue worked, from what its arms measured on the same held-out prompts.

The arms are the parent, the rescue and, where one was asked for, the control arm. What counts as
rescued, `opdcore.rescue` decides; a proof is kept with the rescue's row, so that rates are read quickly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from django.core.files.storage import storages

from opdcore.contract.metrics import METRICS
from opdcore.contract.outcome import Outcome
from opdcore.lab.record import accuracy_of
from opdcore.rescue import Proof, prove
from webapp.models import Artifact, Project, Run
from webapp.services import histories, run_report, series
from webapp.services.run_report import Measured

WORKED = "rescued"
# The error with which a recipe's own wish ends a run that is failing.
FAILING = "run.failing"
BASELINE = "evaluations/student-00-0000000.json"
TEACHER = "evaluations/teacher.json"
Scores = list[float | None]


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of the comparison, with its newest figures; `shift` moves its steps onto the shared axis.

    `began` is what the first student of all arms was measured at.
    """

    name: str
    label: str
    run: Run
    shift: int
    began: Measured | None
    before: Measured | None
    last: Measured | None
    teacher: Measured | None

    @property
    def newest(self) -> Measured | None:
        return self.last or self.before

    @property
    def recovery(self) -> float | None:
        """Share of the gap to the teacher closed since all arms began; None where it is not known."""
        if self.began is None or self.last is None or self.teacher is None:
            return None
        gap = self.teacher.value - self.began.value
        return (self.last.value - self.began.value) / gap if gap > 0 else None


@dataclass(frozen=True, slots=True)
class Rate:
    """Of so many rescues of a cause, so many worked; the interval is Wilson's, at 95 %."""

    code: str
    worked: int
    rescues: int
    low: float
    high: float


def arms(child: Run) -> list[Arm]:
    """Parent, control arm where there is one, and rescue."""
    found = [("parent", "Parent", child.parent), ("control", "Control", control_of(child))]
    found.append(("rescue", "Rescue", child))
    began = run_report.evaluations(_origin(child)).before
    return [_arm(name, label, run, began) for name, label, run in found if run is not None]


def control_of(child: Run) -> Run | None:
    """The arm that goes on with the parent's recipe for as many steps."""
    arms = Run.objects.filter(parent=child.parent_id, relation=Run.Relation.CONTROL)
    return arms.filter(snapshot__lineage__control_of=child.public_id).first()


def update(run_id: int) -> Proof | None:
    """Judges the rescue that this run is, or is an arm of, once it has ended; None where it is none."""
    run = Run.objects.select_related("parent").get(pk=run_id)
    child = _rescue_of(run)
    if child is None or not child.has_ended:
        return None
    proof = judged(child)
    Run.objects.filter(pk=child.pk).update(proof=proof.model_dump(mode="json") if proof else None)
    return proof


def judged(child: Run) -> Proof | None:
    """The proof as it stands now; None for a rescue that an error or a person ended before an outcome."""
    if child.outcome is None:
        return _failed_too() if (child.error or {}).get("code") == FAILING else None
    if child.parent is None:
        return prove(Outcome.model_validate(child.outcome))
    control = control_of(child)
    return prove(
        Outcome.model_validate(child.outcome),
        before_scores=_compared(_origin(child), child, BASELINE),
        child_scores=_compared(child, child),
        parent_scores=_compared(child.parent, child),
        control_scores=_compared(control, child) if control and control.has_ended else [],
        teacher_scores=_compared(child, child, TEACHER) or None,
    )


def _failed_too() -> Proof:
    """Of a rescue that its own monitor stopped."""
    why = "The rescue was called failing too, and stopped as its recipe asks."
    return Proof(
        code="not_rescued", explanation=why, outcome=Outcome(code="unmeasured", explanation=why)
    )


def rate(project: Project, code: str) -> Rate | None:
    """How often rescues of this cause worked in the project; None before the first."""
    rescues = Run.objects.filter(project=project, relation=Run.Relation.RESCUE)
    of_code = rescues.filter(snapshot__lineage__plan__verdict__code=code, proof__isnull=False)
    codes = of_code.values_list("proof__code", flat=True)
    told = [one == WORKED for one in codes if one not in ("inconclusive", "unmeasured")]
    if not told:
        return None
    share = accuracy_of(told)
    return Rate(code, sum(told), len(told), share.low, share.high)


def overlay(found: Sequence[Arm], keys: Iterable[str], *, points: int) -> bytes:
    """Series of all arms, keyed such as `parent:loss`; x is the step of distillation, from 0."""
    wanted = [key for key in keys if key in METRICS]
    told = {}
    for arm in found:
        page = series.read(arm.run, wanted, points=points)
        for key, buckets in page.series.items():
            told[f"{arm.name}:{key}"] = series.document(buckets, shift=arm.shift)
    document = {"seq": 0, "series": told, "stages": []}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _arm(name: str, label: str, run: Run, began: Measured | None) -> Arm:
    found = run_report.evaluations(run)
    return Arm(name, label, run, _shift(run), began, found.before, found.last, found.teacher)


def _shift(run: Run) -> int:
    """From a run's own axis to steps of distillation since its lineage began: a cold start lies below 0."""
    spans = series.stages(run)
    first = next((span.offset for span in spans if span.kind == "distill"), 0)
    return _begun(run) - first


def _begun(run: Run) -> int:
    """Where on the shared axis the run starts: 0, or the step of the checkpoint that it goes on from."""
    start = run.snapshot.get("start")
    if start is None:
        return 0
    step = int(start["step"])
    other = Run.objects.filter(public_id=start["run"]).first()
    if other is not None:
        step += _shift(other) + series.stages(other)[start["stage_index"]].offset
    return step


def _rescue_of(run: Run) -> Run | None:
    if run.relation == Run.Relation.RESCUE:
        return run
    named = (run.snapshot.get("lineage") or {}).get("control_of")
    return Run.objects.select_related("parent").filter(public_id=named or "").first()


def _origin(child: Run) -> Run:
    """The run whose first evaluation is of the student as it was before all of this."""
    run = child
    while (start := run.snapshot.get("start")) is not None:
        before = Run.objects.filter(public_id=start["run"]).first()
        if before is None:
            break
        run = before
    return run


def _compared(run: Run, child: Run, key: str | None = None) -> Scores:
    """Scores by prompt of an evaluation, the last one unless named; none where others were asked."""
    if _measure(run) != _measure(child):
        return []
    files = Artifact.objects.kept().filter(run=run, kind="evaluation").exclude(storage_key="")
    named = files.filter(key=key) if key else files.filter(key__startswith="evaluations/student-")
    file = named.order_by("key").last()
    if file is None:
        return []
    with storages["artifacts"].open(file.storage_key) as stored:
        said: dict[str, Any] = orjson.loads(stored.read())
    metric = histories.recipe_of(child).goal.target_metric
    if metric == "accuracy":
        return list(said["accuracy"])
    # A proof takes more for better, and fewer tokens are.
    return [None if tokens is None else -tokens for tokens in said["response_tokens"]]


def _measure(run: Run) -> tuple[object, ...]:
    """What decides which prompts are answered, and how."""
    recipe, held_out = histories.recipe_of(run), run.snapshot["prompt_sets"]["held_out"]
    return recipe.evaluation, recipe.seed, recipe.goal, held_out and held_out["sha256"]
