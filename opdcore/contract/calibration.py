"""Calibrations: what a family of pairs looks like where its outcome is known, and the cut-offs from it.

Plain data: it knows no model, draws no verdict, and does not say where a calibration comes from.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from opdcore.contract.document import Document
from opdcore.contract.probe import Measure

ControlName = Literal["identical", "descendant", "same_pipeline", "reverse", "other_pattern"]


class Control(Document):
    """Measures of pairs whose outcome is known; an interval is the range over its runs."""

    runs: int = Field(ge=0, description="Runs that it rests on.")
    outcome: str = Field(description="What became of them, in plain words.")
    measures: dict[str, Measure] = Field(description="By probe metric.")


class Thresholds(Document):
    """Cut-offs of the verdicts; a default is the laboratory's unless it names another source."""

    compatible_overlap: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Effective overlap and top-1 agreement of a compatible pair, both at least. "
        "Laboratory: .93-.96 and .98 in success, .64-.70 and .65-.77 in a mild mismatch that "
        "learned.",
    )
    incompatible_overlap: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Below it in either of the two, patterns differ; between the two cut-offs runs "
        "went either way. Laboratory: .09-.43 and .10-.43 where patterns differed.",
    )
    overlap_mass: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Probability on the common tokens from which on patterns are not called "
        "different. Laboratory: .27-.64 where they were, .97-.99 in success; 2604.13016, B.1: "
        ".97-.99 in success.",
    )
    compatible_hand_off: float = Field(
        default=-0.15,
        ge=-1,
        le=1,
        description="Least hand-off above which a pair is compatible. Laboratory: -.18 to +.02 "
        "after a cold start, all of which learned.",
    )
    incompatible_hand_off: float = Field(
        default=-0.3,
        ge=-1,
        le=1,
        description="Least hand-off below which the teacher is lost in the student's words. "
        "Laboratory: -.39 to -.56 where patterns differed.",
    )
    style_mass_healing: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Student's mass on the teacher's style from which on a mismatch may heal by "
        "itself. Laboratory: one seed of .074 did, at a hand-off of -.50.",
    )
    style_mass_absent: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Mass below which it did not. Laboratory: .003 and below on the other seeds.",
    )
    new_on_failed: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Teacher's accuracy where the student failed every time, above which it brings "
        "something new. Laboratory: .96-1.0 against .24-.28 where nothing was new.",
    )
    nothing_on_failed: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="Accuracy there below which it brings nothing; between the two is open. "
        "Halfway between the laboratory's .28 and the cut-off above.",
    )
    small_gap: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="An accuracy gap that includes 0 and stays below this is none. Our choice; "
        "laboratory: .01-.045 where nothing was new, .42-.50 in success.",
    )
    tiny_kl: float = Field(
        default=0.028,
        ge=0,
        description="Reverse KL in nats below which the teacher has nothing to say. A quarter of the "
        "laboratory's known-good .11, as small_signal_share has it; below .004 where nothing was new.",
    )
    small_signal_share: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="First loss or gradient norm is small below this share of the known-good "
        "descendant's. Our choice; 2604.13016, B.2 says small, and gives no figure.",
    )
    no_hand_off: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="A hand-off that includes 0 and is nearer to it than this is none. Laboratory: "
        "-.05 to 0 where nothing was new.",
    )
    horizon_share: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="The signal has faded where the deepest hand-off keeps at most this share of "
        "the shallowest. 2604.13016, Fig. 11b: .37 at 1K tokens and .02 at 16K, a share of .06.",
    )
    horizon_top1_fall: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="Fall of top-1 agreement from the first to the last chunk that counts as fading. "
        "Laboratory: .30 beyond the trained length.",
    )
    horizon_entropy_ratio: float = Field(
        default=2.0,
        ge=1,
        description="And the teacher's entropy grows at least so many times. Our choice.",
    )
    horizon_kl: float = Field(
        default=1.0,
        ge=0,
        description="Reverse KL in nats of a later chunk above which teacher and student have parted "
        "there. Laboratory: 2.4 beyond the trained length.",
    )
    horizon_kl_ratio: float = Field(
        default=4.0,
        ge=1,
        description="And it is so many times that of the first chunk. Laboratory: a pair whose "
        "responses were twice as long as any it was trained on had 2.1, and learned.",
    )
    malformed_truncation: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Truncation rate above which rollouts are broken. Reports on 2604.13016's code: "
        ".98 is abnormal, .6 is usual for a student that thinks at length.",
    )
    malformed_repetition: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Repetition rate from which on rollouts are broken. 2604.08527: 0 before and "
        ".3-.6 after a collapse; .05 is an engineering choice.",
    )
    special_reward: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the reward on special tokens from which on it is doubted. Our choice, "
        "after single tokens of -19 and -59 nats in 2603.25562.",
    )
    fewest_prompts: int = Field(
        default=24,
        ge=1,
        description="Prompts below which confidence is low. Our choice: at 24 the interval of a "
        "rate is .4 wide.",
    )


class Calibration(Document):
    """Controls of one model family and the thresholds that go with them."""

    version: Literal[1] = Field(default=1, description="Version of this format.")
    name: str = Field(min_length=1, max_length=120, description="What people call it.")
    family: str = Field(
        min_length=1, max_length=120, description="Pairs that it holds for, as people call them."
    )
    runs: int = Field(ge=0, description="Finished runs that it rests on, controls included.")
    controls: dict[ControlName, Control] = Field(
        default_factory=dict,
        description="identical: teacher is the student. descendant: the student, trained further, "
        "known to be a good teacher. same_pipeline: same data and recipe, perhaps larger. reverse: "
        "the student is the better one. other_pattern: a teacher that thinks in another way.",
    )
    thresholds: Thresholds = Field(default_factory=Thresholds, description="Cut-offs of verdicts.")

    def reference(self, control: ControlName, metric: str) -> float | None:
        """A control's value of a metric; None where it was not measured."""
        measure = self._measure(control, metric)
        return measure.value if measure else None

    def bounds(self, control: ControlName, metric: str) -> tuple[float, float] | None:
        """A control's range of a metric; None where it was not measured."""
        measure = self._measure(control, metric)
        if measure is None or measure.value is None:
            return None
        low = measure.value if measure.low is None else measure.low
        return low, measure.value if measure.high is None else measure.high

    def _measure(self, control: ControlName, metric: str) -> Measure | None:
        found = self.controls.get(control)
        return found.measures.get(metric) if found else None
