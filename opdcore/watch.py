"""The watch over a distill stage: feeds the monitor, tells its verdicts, and halts where asked to.

A run halts once for each code: whoever resumes it has decided that it goes on in spite of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opdcore import checkpoints
from opdcore.checkpoints import Saved
from opdcore.contract.distill import DistillStage
from opdcore.contract.errors import EngineFailure, Paused, StillroomError
from opdcore.contract.events import Evaluated, Health, Payload
from opdcore.contract.positions import Positions
from opdcore.contract.verdicts import Verdict
from opdcore.monitor import CALLED_WITHIN, Monitor, is_failing
from opdcore.workspace import Line, Workspace


class Watch:
    """Watches one stage, from its first step or from a checkpoint on."""

    def __init__(
        self, stage: DistillStage, work: Workspace, *, stage_index: int, resume: Saved | None
    ) -> None:
        self.stage = stage
        own = work.job.calibration
        self.monitor = Monitor(stage, limits=own.thresholds if own else None)
        self._halted: list[str] = []
        self._failing_since: int | None = None
        state = checkpoints.followed(resume) if resume else None
        if state is not None:
            self.monitor.restore(state["monitor"])
            self._halted = list(state["halted"])
            self._failing_since = state["failing_since"]
        elif work.evaluator is not None and (before := work.evaluator.before(stage_index)):
            self.monitor.accuracy(0, before.value, before.low, before.high)

    def restored(self, step: int) -> Iterator[Line]:
        """The verdict that held at the checkpoint, since later ones are no more."""
        if self.monitor.verdict is not None:
            yield Line(Health(verdict=self.monitor.verdict), step)

    def observe(
        self, step: int, values: Mapping[str, float | None], positions: Positions
    ) -> Iterator[Line]:
        """Takes a step's numbers in; a line where the verdict changes."""
        yield from self._told(self.monitor.observe(step, values, positions), step)

    def evaluated(self, payload: Payload, step: int) -> Iterator[Line]:
        """Takes an evaluation of the student in; other payloads say nothing about its health."""
        if isinstance(payload, Evaluated) and payload.role == "student":
            value, low, high = (
                payload.values[key] for key in ("accuracy", "accuracy_low", "accuracy_high")
            )
            yield from self._told(self.monitor.accuracy(step, value, low, high), step)

    @property
    def sound_until(self) -> int | None:
        """The last step that was surely sound, where the run is failing; None where it is not."""
        if self._failing_since is None:
            return None
        return max(0, self._failing_since - CALLED_WITHIN)

    def halts(self, step: int) -> bool:
        """Whether the run ends after this step because it is failing; says yes once for a code."""
        verdict = self.monitor.verdict
        if verdict is None or not is_failing(verdict) or verdict.code in self._halted:
            return False
        if self.stage.on_failing == "continue" or step >= self.stage.steps:
            return False
        self._halted.append(verdict.code)
        return True

    def ending(self, step: int) -> StillroomError:
        """The error with which a run that halts ends."""
        verdict = self.monitor.verdict
        code, why = (verdict.code, verdict.explanation) if verdict else ("", "")
        if self.stage.on_failing == "pause":
            return Paused(
                "run.paused",
                f"Paused after step {step}, since the run is failing: {code}. {why}",
                remedy="Resume it to go on in spite of that, or cancel it and change the recipe.",
            )
        return EngineFailure(
            "run.failing",
            f"Stopped after step {step}, since the run is failing: {code}. {why}",
            remedy="Rescue it, or change the recipe as its health says; resume this run to go on in "
            "spite of it.",
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "monitor": self.monitor.state(),
            "halted": self._halted,
            "failing_since": self._failing_since,
        }

    def _told(self, verdict: Verdict | None, step: int) -> Iterator[Line]:
        if verdict is None:
            return
        if not is_failing(verdict):
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = step
        yield Line(Health(verdict=verdict), step)
