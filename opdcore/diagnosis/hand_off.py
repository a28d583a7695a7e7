"""The prefix hand-off: who goes on better from the student's own words, the teacher or the student?

Each rollout of the student is cut at a depth, and both sides continue from there with the same random
draws; a pair whose teacher is lost in the student's text shows it here. It knows no objective.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from opdcore.contract.probe import Depth, DiagnoseStage, Measure
from opdcore.diagnosis import intervals
from opdcore.diagnosis.answers import STUDENT, TEACHER, Answers, PerPrompt, draw, graded
from opdcore.rollouts import Rollout
from opdcore.workspace import Workspace

SHARES = (0.25, 0.5, 0.75)
# Accuracies lie in the first, their differences in the second.
RATE, GAIN = (0.0, 1.0), (-1.0, 1.0)


@dataclass(frozen=True)
class Place:
    """Where a rollout is cut: at a share of its text, or at a number of tokens."""

    share: float | None = None
    tokens: int | None = None

    @property
    def metric(self) -> str | None:
        """The probe metric of its gain; a fixed depth has none."""
        return None if self.share is None else f"hand_off_{self.share * 100:.0f}"

    def cut(self, rollout: Rollout) -> int | None:
        """Tokens that are kept; None where nothing would be left to write."""
        length = len(rollout.text_ids)
        kept = self.tokens if self.share is None else max(1, int(self.share * length))
        return kept if kept is not None and kept < length else None


@dataclass(frozen=True)
class _Cut:
    """The student's words to a prompt, as far as they are kept."""

    place: Place
    row: int
    prefix: tuple[int, ...]


@dataclass(frozen=True)
class HandOff:
    """Accuracies by prompt at one place, and the tokens that were written for them."""

    place: Place
    student: PerPrompt
    teacher: PerPrompt
    student_tokens: int
    teacher_tokens: int


def places(stage: DiagnoseStage) -> tuple[Place, ...]:
    """Shares and then fixed depths, each shallowest first."""
    shares = (Place(share=share) for share in SHARES)
    return (*shares, *(Place(tokens=depth) for depth in sorted(set(stage.hand_off_tokens))))


def hand_off(
    stage: DiagnoseStage, work: Workspace, answers: Answers, *, seed: int
) -> Iterator[HandOff]:
    """Both sides go on from the student's rollouts, one continuation of each at each place."""
    cuts = [
        _Cut(place, row, rollout.ids[:kept])
        for place in places(stage)
        for row, rollout in zip(answers.rows, answers.rollouts, strict=True)
        if (kept := place.cut(rollout)) is not None
    ]
    student, teacher = (
        _continued(stage, work, cuts, side=side, seed=seed) for side in (STUDENT, TEACHER)
    )
    for place in places(stage):
        mine = [index for index, one in enumerate(cuts) if one.place == place]
        kept_tokens = sum(len(cuts[index].prefix) for index in mine)
        ours, theirs = student.some(mine), teacher.some(mine)
        written = [side.tokens - kept_tokens for side in (ours, theirs)]
        yield HandOff(place, ours.accuracy(), theirs.accuracy(), *written)


def depth(place: Place, found: Sequence[HandOff], *, level: float) -> Depth:
    """All that was found at one place; its prompts are those that both sides could be graded on."""
    student = {row: value for one in found for row, value in one.student.items()}
    teacher = {row: value for one in found for row, value in one.teacher.items()}
    pairs = [
        (ours, theirs)
        for row, ours in student.items()
        if ours is not None and (theirs := teacher[row]) is not None
    ]
    return Depth(
        share=place.share,
        tokens=place.tokens,
        student=intervals.mean([ours for ours, _ in pairs], level=level, span=RATE),
        teacher=intervals.mean([theirs for _, theirs in pairs], level=level, span=RATE),
        gain=intervals.mean([theirs - ours for ours, theirs in pairs], level=level, span=GAIN),
    )


def measures(depths: Sequence[Depth]) -> dict[str, Measure]:
    """Gains by share as probe metrics, and the least of them with its own interval."""
    found = {
        metric: one.gain
        for one in depths
        if (metric := Place(one.share, one.tokens).metric) is not None and one.gain.prompts
    }
    if found:
        found["hand_off_min"] = min(found.values(), key=lambda gain: gain.value or 0.0)
    return found


def _continued(
    stage: DiagnoseStage,
    work: Workspace,
    cuts: Sequence[_Cut],
    *,
    side: int,
    seed: int,
) -> Answers:
    """Whole responses: the student's words and what the side made of them."""
    if not cuts:
        return Answers([], [], [])
    prompts = [(*work.prompt_ids[one.row][side], *one.prefix) for one in cuts]
    room = stage.max_response_tokens - min(len(one.prefix) for one in cuts)
    written = draw(stage, work, prompts, side=side, seed=seed, tokens=max(1, room))
    whole = [
        _whole(one.prefix, rollout, longest=stage.max_response_tokens)
        for one, rollout in zip(cuts, written, strict=True)
    ]
    return graded(work, [one.row for one in cuts], whole, side=side)


def _whole(prefix: tuple[int, ...], rollout: Rollout, *, longest: int) -> Rollout:
    """Rows share one limit of new tokens, so what a longer prefix wrote beyond its own is cut."""
    ids = (*prefix, *rollout.ids)
    return Rollout(
        prompt_index=rollout.prompt_index,
        ids=ids[:longest],
        logprobs=(0.0,) * min(len(ids), longest),
        stopped=rollout.stopped and len(ids) <= longest,
    )
