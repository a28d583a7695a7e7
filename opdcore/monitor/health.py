"""The monitor of one stage: takes each step in, and says its verdict when that changes.

A signature must be seen at several steps in a row before its verdict is given, and be away for
several before it is taken back, so that a noisy run does not flicker. Its state is JSON and lies in
each checkpoint, so that a run that goes on is judged as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opdcore.calibration import laboratory
from opdcore.contract.calibration import Thresholds
from opdcore.contract.distill import DistillStage
from opdcore.contract.positions import Positions
from opdcore.contract.verdicts import DURING, Evidence, Verdict
from opdcore.monitor import failures, risks
from opdcore.monitor.signs import Setting, Sign, told
from opdcore.monitor.windows import LEVEL_STEPS, Accuracy, Windows

Detector = Callable[[Windows, Setting], Sign | None]

# What explains more comes first: a cause before its consequences, a failure before a risk.
DETECTORS: dict[str, Detector] = {
    "BIASED_TOPK": failures.biased_topk,
    "MODE_HACKING": failures.mode_hacking,
    "STALLED_MISMATCH": failures.stalled_mismatch,
    "REPETITION_COLLAPSE": failures.repetition_collapse,
    "DEPTH_COLLAPSE": failures.depth_collapse,
    "OVERWRITE": failures.overwrite,
    "STALLED_NO_SIGNAL": failures.stalled_no_signal,
    "TOP1_INSTABILITY": risks.top1_instability,
    "HEAVY_TAIL_REWARD": risks.heavy_tail,
    "ENTROPY_COLLAPSE_RISK": risks.entropy_collapse,
    "AGREEMENT_TRAP": risks.agreement_trap,
}

# Steps in a row at which a signature must be seen to start, and be away to end.
START_STEPS = 4
END_STEPS = 8

_IMPROVING = ("effective_overlap", "top1_agreement", "reverse_kl", "entropy_gap")


def is_failing(verdict: Verdict) -> bool:
    """Whether a run with this health should not go on as it is."""
    return verdict.go == "no_go"


class Monitor:
    """Watches the steps of one distill stage."""

    def __init__(self, stage: DistillStage, *, limits: Thresholds | None = None) -> None:
        """`limits` are the laboratory's unless given."""
        self.setting = Setting(stage, limits or laboratory().thresholds)
        self.windows = Windows.of(stage.steps)
        self.verdict: Verdict | None = None
        # By code: steps in a row at which it was seen or, negative, away; and where it was first seen.
        self._run: dict[str, int] = {}
        self._onset: dict[str, int] = {}
        self._active: list[str] = []

    def observe(
        self, step: int, values: Mapping[str, float | None], positions: Positions | None = None
    ) -> Verdict | None:
        """Takes a step in; returns the verdict where it is another than before."""
        self.windows.add(step, values, positions)
        if self.windows.seen < 2 * LEVEL_STEPS:
            return None
        return self._changed(self._look())

    def accuracy(
        self, step: int, value: float | None, low: float | None, high: float | None
    ) -> Verdict | None:
        """Takes an evaluation of the student in; step 0 is before the first."""
        if value is None:
            return None
        low, high = value if low is None else low, value if high is None else high
        self.windows.evaluated(Accuracy(step, value, low, high))
        sign = failures.overwrite(self.windows, self.setting) if self.windows.seen else None
        if sign is None or sign.metrics[0] != "accuracy":
            return None
        # Intervals that do not meet are no flicker: it needs no further steps to be sure.
        self._run["OVERWRITE"] = max(START_STEPS, self._run.get("OVERWRITE", 0))
        self._onset.setdefault("OVERWRITE", step)
        return self._changed(self._look(again=False))

    def state(self) -> dict[str, Any]:
        """All that is needed to go on from here, as JSON."""
        return {
            "windows": self.windows.state(), "run": self._run, "onset": self._onset,
            "active": self._active,
            "verdict": self.verdict.model_dump(mode="json") if self.verdict else None,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`, as if nothing had happened since."""
        self.windows.restore(state["windows"])
        self._run, self._onset = dict(state["run"]), dict(state["onset"])
        self._active = list(state["active"])
        told_last = state["verdict"]
        self.verdict = Verdict.model_validate(told_last) if told_last else None

    def _look(self, *, again: bool = True) -> dict[str, Sign]:
        """Signs seen at this step; counts them unless this step was counted already."""
        signs = {
            code: sign
            for code, detect in DETECTORS.items()
            if (sign := detect(self.windows, self.setting)) is not None
        }
        for code in DETECTORS if again else ():
            self._count(code, seen=code in signs)
        self._active = [code for code in DETECTORS if self._holds(code)]
        return signs

    def _count(self, code: str, *, seen: bool) -> None:
        count = self._run.get(code, 0)
        self._run[code] = max(count, 0) + 1 if seen else min(count, 0) - 1
        if self._run[code] == 1 and code not in self._active:
            self._onset[code] = self.windows.step

    def _holds(self, code: str) -> bool:
        count = self._run.get(code, 0)
        return count >= START_STEPS or (code in self._active and count > -END_STEPS)

    def _changed(self, signs: Mapping[str, Sign]) -> Verdict | None:
        code = next(iter(self._active), "HEALTHY")
        if code == "HEALTHY" and self.windows.seen < self.windows.size:
            return None
        if (self.verdict is not None and code == self.verdict.code) or (
            code != "HEALTHY" and code not in signs
        ):
            return None
        self.verdict = self._verdict(code, signs[code]) if code in signs else self._healthy()
        return self.verdict

    def _verdict(self, code: str, sign: Sign) -> Verdict:
        return Verdict(
            code=code,
            go=DURING[code].go,
            confidence=sign.confidence,
            evidence=self._evidence(sign.metrics, self._onset.get(code, self.windows.step)),
            explanation=f"{sign.said} {sign.remedy}",
        )

    def _healthy(self) -> Verdict:
        better = [
            key
            for key in _IMPROVING
            if self.windows.rose(key, 0) or (key in _IMPROVING[2:] and self.windows.fell(key, 0))
        ]
        divergence = self.windows.start("reverse_kl"), self.windows.now("reverse_kl")
        return Verdict(
            code="HEALTHY",
            go="go",
            confidence="high" if len(better) >= 3 else "medium" if better else "low",
            evidence=self._evidence((*_IMPROVING, "grad_norm"), self.windows.step),
            explanation=f"The divergence went from {told(divergence[0])} to {told(divergence[1])} "
            f"nats, and {len(better) or 'none'} of four measures of alignment improved beyond noise. "
            "No signature of a failure is seen.",
        )

    def _evidence(self, metrics: tuple[str, ...], step: int) -> tuple[Evidence, ...]:
        """Each level beside that of the stage's start; an evaluation beside the best one."""
        return tuple(
            self._evaluated()
            if metric == "accuracy"
            else Evidence(
                metric=metric,
                value=self.windows.now(metric),
                reference=self.windows.start(metric),
                step=step,
            )
            for metric in metrics
        )

    def _evaluated(self) -> Evidence:
        best, last = self.windows.best, self.windows.latest
        if last is None:
            return Evidence(metric="accuracy", value=None)
        return Evidence(
            metric="accuracy", value=last.value, reference=best.value if best else None,
            low=last.low, high=last.high, step=last.step,
        )  # fmt: skip
