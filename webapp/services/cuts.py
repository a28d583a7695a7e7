"""Cuts: where a later attempt of a run took over, so that what an earlier one said after it is stale.

An attempt resumes at the step of a checkpoint and writes the steps after it anew. It knows seq,
stage and step of an event, nothing of what the event says.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from webapp.models import Event


@dataclass(frozen=True, slots=True)
class Cut:
    """Events before `seq` that lie after `step` of `stage_index` are stale."""

    seq: int
    stage_index: int
    step: int

    def drops(self, seq: int, stage_index: int, step: int) -> bool:
        later = (stage_index, step) > (self.stage_index, self.step)
        return seq < self.seq and later


@dataclass(frozen=True, slots=True)
class Cuts:
    """All cuts of one run."""

    found: tuple[Cut, ...]

    def drop(self, seq: int, stage_index: int | None, step: int | None) -> bool:
        """Whether what was said there is stale; outside any stage counts as the first one's start."""
        return any(cut.drops(seq, stage_index or 0, step or 0) for cut in self.found)


def of(run_id: int) -> Cuts:
    """The cuts of a run; none where it ran in one attempt."""
    starts = Event.objects.filter(run_id=run_id, kind="stage_started", attempt__gt=1)
    rows = starts.values_list("seq", "stage_index", "payload")
    return Cuts(
        tuple(
            Cut(seq, stage or 0, orjson.loads(payload).get("resumed_from_step") or 0)
            for seq, stage, payload in rows
        )
    )
