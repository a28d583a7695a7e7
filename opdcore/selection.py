"""Which prompts distillation draws from: candidates by seed, and the choice among them by numbers alone.

The same function chooses at the stage and at every refresh during training; what models did with the
prompts is measured elsewhere. It needs no torch, and the same numbers give the same choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opdcore import duplicates
from opdcore.contract.errors import EngineFailure
from opdcore.contract.select_prompts import SelectPromptsStage
from opdcore.contract.selection import REASONS, Choice, Reason, Selection
from opdcore.order import probed
from opdcore.pool import Pool

SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class Measured:
    """What the models did with some prompts, by row; None where nothing says it."""

    student_accuracy: Mapping[int, float | None]
    teacher_accuracy: Mapping[int, float | None]
    reverse_kl: Mapping[int, float | None]
    student_tokens: int = 0
    teacher_tokens: int = 0


UNMEASURED = Measured({}, {}, {})


@dataclass(frozen=True)
class _Verdict:
    reason: Reason
    measure: float | None = None
    like_row: int | None = None


def candidates(
    pool: Pool, stage: SelectPromptsStage, *, seed: int, stage_index: int
) -> tuple[int, ...]:
    """Rows that the stage looks at, in an order in which every prefix is a random sample.

    With teacher_content its own rows come before the others, so that these give way to duplicates.
    """

    def sampled(rows: range, most: int) -> list[int]:
        order = probed(len(rows), at_most=most, seed=seed, stage_index=stage_index)
        return [rows[place] for place in order]

    if not stage.reads_own_sets:
        return tuple(sampled(pool.rows("train"), stage.candidates))
    other = round(stage.candidates * stage.outside_share)
    mixed_in = pool.rows("outside") or pool.rows("train")
    content = sampled(pool.rows("teacher_content"), max(1, stage.candidates - other))
    return (*content, *sampled(mixed_in, other))


def select(
    stage: SelectPromptsStage,
    pool: Pool,
    rows: Sequence[int],
    measured: Measured = UNMEASURED,
    *,
    steps: int = 0,
) -> Selection:
    """Choose among the candidates' rows, after so many steps of distillation.

    Ties go to whoever comes first among `rows`, whose order is the seed's. Raises EngineFailure where
    nothing is left.
    """
    verdicts = _judge(stage, pool, rows, measured, most=_most(stage, len(rows), steps))
    order = {row: place for place, row in enumerate(rows)}
    ranked = sorted(verdicts, key=lambda row: _rank(stage, verdicts[row], order[row]))
    selection = Selection(
        strategy=stage.strategy,
        steps=steps,
        choices=tuple(_choice(pool, row, verdicts[row], measured) for row in ranked),
        student_tokens=measured.student_tokens,
        teacher_tokens=measured.teacher_tokens,
    )
    if not selection.kept:
        raise _nothing_left(stage, selection)
    return selection


def _most(stage: SelectPromptsStage, count: int, steps: int) -> int:
    """How many may be kept: the share, and what each refresh so far has added to it."""
    refreshes = steps // stage.refresh_steps if stage.refresh_steps else 0
    return max(1, round(count * min(1.0, stage.share + stage.expand * refreshes)))


def _judge(
    stage: SelectPromptsStage, pool: Pool, rows: Sequence[int], measured: Measured, *, most: int
) -> dict[int, _Verdict]:
    match stage.strategy:
        case "gap":
            return _by_gap(rows, measured, most)
        case "low_kl":
            return _by_kl(rows, measured, most)
        case "random":
            left_out = dict.fromkeys(rows[most:], _Verdict("not_drawn"))
            return dict.fromkeys(rows[:most], _Verdict("kept")) | left_out
        case "teacher_content":
            return _mixture(stage, pool, rows)
        case "teacher_template":
            return dict.fromkeys(rows, _Verdict("kept"))


def _by_gap(rows: Sequence[int], measured: Measured, most: int) -> dict[int, _Verdict]:
    """g(x) = the teacher's accuracy minus the student's; g > 0 is kept, the largest first."""
    gaps = {
        row: _minus(measured.teacher_accuracy[row], measured.student_accuracy[row]) for row in rows
    }
    wanted = [row for row, gap in gaps.items() if gap is not None and gap > 0]
    kept = set(sorted(wanted, key=lambda row: -(gaps[row] or 0.0))[:most])
    found: dict[int, _Verdict] = {}
    for row, gap in gaps.items():
        if gap is None:
            found[row] = _Verdict("ungraded")
        elif row in kept:
            found[row] = _Verdict("kept", gap)
        else:
            found[row] = _Verdict("smaller_gap" if gap > 0 else "no_gap", gap)
    return found


def _by_kl(rows: Sequence[int], measured: Measured, most: int) -> dict[int, _Verdict]:
    """The lowest mean reverse KL on the student's own rollouts first."""
    known = {row: kl for row in rows if (kl := measured.reverse_kl[row]) is not None}
    kept = set(sorted(known, key=lambda row: known[row])[:most])
    found = dict.fromkeys(rows, _Verdict("unmeasured"))
    return found | {
        row: _Verdict("kept" if row in kept else "higher_kl", kl) for row, kl in known.items()
    }


def _mixture(stage: SelectPromptsStage, pool: Pool, rows: Sequence[int]) -> dict[int, _Verdict]:
    """Teacher content with as many others as the share asks for, none of them twice."""
    texts = [pool[row].question for row in rows]
    again = duplicates.repeats(texts, similarity=stage.near_duplicate)
    found = {
        rows[place]: _Verdict("duplicate" if one.exact else "near_duplicate", like_row=rows[one.of])
        for place, one in again.items()
    }
    single = [row for row in rows if row not in found]
    own = [row for row in single if pool.place(row).source == "teacher_content"]
    others = [row for row in single if pool.place(row).source != "teacher_content"]
    wanted = round(len(own) * stage.outside_share / (1 - stage.outside_share))
    found |= dict.fromkeys((*own, *others[:wanted]), _Verdict("kept"))
    return found | dict.fromkeys(others[wanted:], _Verdict("beyond_outside_share"))


def _rank(stage: SelectPromptsStage, verdict: _Verdict, place: int) -> tuple[int, float, int]:
    """Kept ones first, then by what they were ranked by, best first."""
    worst = verdict.measure is None
    size = math.inf if verdict.measure is None else verdict.measure
    signed = -size if stage.strategy == "gap" and not worst else size
    return (verdict.reason != "kept", signed, place)


def _choice(pool: Pool, row: int, verdict: _Verdict, measured: Measured) -> Choice:
    source, source_row = pool.place(row)
    return Choice(
        row=row,
        source=source,
        source_row=source_row,
        text=pool[row].question[:SHOWN_CHARACTERS],
        reason=verdict.reason,
        measure=verdict.measure,
        student_accuracy=measured.student_accuracy.get(row),
        teacher_accuracy=measured.teacher_accuracy.get(row),
        like_row=verdict.like_row,
    )


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def told(selection: Selection) -> str:
    """How many were kept, and why others were not, for people."""
    kept, every = len(selection.kept), len(selection.choices)
    lost = {reason: n for reason, n in selection.counts.items() if reason != "kept"}
    reasons = ", ".join(f"{n} ({REASONS[reason].lower()})" for reason, n in lost.items())
    return f"{kept} of {every} candidates are kept{f'; dropped: {reasons}' if lost else ''}."


_REMEDIES = {
    "gap": "Ask more candidates or take more samples_per_prompt, choose prompts that the teacher solves "
    "and the student does not, or another strategy: without a gap there is nothing new to learn.",
    "low_kl": "Look at both models' answers, or choose another strategy.",
    "teacher_content": "Give prompts in the set teacher_content, or a higher near_duplicate.",
}


def _nothing_left(stage: SelectPromptsStage, selection: Selection) -> EngineFailure:
    return EngineFailure(
        "select_prompts.nothing_left",
        f"No prompt is left to distil on: {told(selection)}",
        remedy=_REMEDIES.get(stage.strategy, "Choose other prompts."),
    )
