"""What a run came to, read from its rows: the verdict on it, and the history that a plan is made from.

It reads events, artifacts and positions; what a plan does with them it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import orjson

from opdcore.contract.recipe import Recipe
from opdcore.contract.rescue import History, Spot
from opdcore.contract.verdicts import Verdict
from opdcore.rescue import FIRST_STEPS, parted_tokens, sound_tokens
from webapp.models import Event, PairDiagnosis, PromptSet, Run
from webapp.services import cuts, launch_preview, positions, run_report, series, starts

# What is read of the first steps of the failing stage.
START = ("effective_overlap", "student_entropy", "teacher_entropy")


@dataclass(frozen=True, slots=True)
class Found:
    """A verdict that can be answered; `failing` is where the monitor first said so in one breath."""

    verdict: Verdict
    failing: Spot | None


def recipe_of(run: Run) -> Recipe:
    """The recipe that the run took, as it was when it was launched."""
    return Recipe.model_validate(run.snapshot["recipe"]["document"])


def found(run: Run) -> Found | None:
    """The verdict against the run: its monitor's, else its diagnosis', else its pair's; None without.

    A diagnosis speaks only of a run that did not succeed.
    """
    monitored = _monitored(run)
    if monitored is not None:
        return monitored
    for verdict in (_diagnosed(run), _of_pair(run)):
        if verdict is not None and verdict.go != "go":
            return Found(verdict, None)
    return None


def of(run: Run, failing: Spot | None) -> History:
    """All that a plan knows of the run besides its recipe and verdict."""
    checkpoints = tuple(starts.kept(run))
    measured = list(_accuracies(run))
    return History(
        failing=failing,
        checkpoints=checkpoints,
        best=_best(measured, checkpoints),
        best_accuracy=max((value for _, value in measured), default=None),
        teacher_accuracy=_teacher_accuracy(run),
        **_depth(run, failing),
        prompts=run.train_set.rows,
        demonstrations=_demonstrated(run.train_set),
        verifier=recipe_of(run).evaluation.verifier != "none",
        same_rendering=_same_rendering(run),
    )


def _monitored(run: Run) -> Found | None:
    """The cause that was called first of the newest bad verdicts, as it was said last.

    What is called after a first no-go may only follow from it. Where none is no-go, the latest.
    """
    stale = cuts.of(run.pk)
    rows = Event.objects.filter(run=run, kind="health").order_by("-seq")
    bad: list[tuple[Verdict, Spot]] = []
    for seq, stage, step, payload in rows.values_list("seq", "stage_index", "step", "payload"):
        if stale.drop(seq, stage, step):
            continue
        verdict = Verdict.model_validate(orjson.loads(payload)["verdict"])
        if verdict.go == "go":
            break
        bad.append((verdict, Spot(stage_index=stage or 0, step=step or 0)))
    if not bad:
        return None
    certain = [one for one in reversed(bad) if one[0].go == "no_go"]
    cause = certain[0][0].code if certain else bad[0][0].code
    _, since = certain[0] if certain else bad[-1]
    return Found(next(one for one, _ in bad if one.code == cause), since)


def _diagnosed(run: Run) -> Verdict | None:
    event = Event.objects.filter(run=run, kind="diagnosis").order_by("-seq").first()
    if event is None:
        return None
    return Verdict.model_validate(orjson.loads(event.payload)["verdict"])


def _of_pair(run: Run) -> Verdict | None:
    rows = PairDiagnosis.objects.filter(pair=run.pair, prompt_set=run.train_set)
    row = rows.filter(goal=recipe_of(run).goal.kind).first()
    return row.contract if row else None


def _best(measured: list[tuple[Spot, float]], checkpoints: tuple[Spot, ...]) -> Spot | None:
    """The newest checkpoint at or before the highest accuracy, where any was measured."""
    if not measured:
        return None
    peak = max(measured, key=lambda one: one[1])[0]
    before = [one for one in checkpoints if _place(one) <= _place(peak)]
    return max(before, key=_place, default=None)


def _accuracies(run: Run) -> Iterator[tuple[Spot, float]]:
    """What the student was measured at, and where."""
    stale = cuts.of(run.pk)
    rows = Event.objects.filter(run=run, kind="evaluation").order_by("seq")
    for seq, stage, step, payload in rows.values_list("seq", "stage_index", "step", "payload"):
        value = orjson.loads(payload)["values"].get("accuracy")
        if value is not None and not stale.drop(seq, stage, step):
            yield Spot(stage_index=stage or 0, step=step or 0), value


def _teacher_accuracy(run: Run) -> float | None:
    measured = run_report.evaluations(run).teacher
    return measured.value if measured else None


def _depth(run: Run, failing: Spot | None) -> dict[str, Any]:
    """How far the two agreed in the failing stage: at its start, and how deep when it was called failing."""
    if failing is None:
        return {}
    stage = failing.stage_index
    overlap, student, teacher = (_start(run, key, stage) for key in START)
    ends = positions.ends(run, stage, until=failing.step)
    return {
        "start_overlap": overlap,
        "start_entropy_excess": student - teacher
        if student is not None and teacher is not None
        else None,
        "sound_tokens": sound_tokens(*ends) if ends else None,
        "parted_tokens": parted_tokens(ends[0]) if ends else None,
    }


def _start(run: Run, key: str, stage_index: int) -> float | None:
    """A metric's mean over the stage's first steps; None where it was not measured."""
    values = series.head(run, key, stage_index=stage_index, points=FIRST_STEPS)
    return fmean(values) if values else None


def _demonstrated(prompts: PromptSet) -> bool:
    """Whether every prompt comes with a response, as learning from them asks for."""
    some = "response" in prompts.stats.get("columns", {})
    return some and launch_preview.prompts_with(prompts, "response") == prompts.rows


def _same_rendering(run: Run) -> bool:
    """Equal choices on both sides and one template where the models' own are used."""
    sides = [run.snapshot["student"], *run.snapshot["teachers"]]
    told = [(side["participant"]["rendering"], _template(side)) for side in sides]
    return all(one == told[0] for one in told)


def _template(side: dict[str, dict[str, str] | None]) -> str | None:
    """The hash of the model's own template; None where it has none or was never inspected."""
    return (side["card"] or {}).get("chat_template_sha256")


def _place(spot: Spot) -> tuple[int, int]:
    return spot.stage_index, spot.step
