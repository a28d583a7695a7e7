"""What a diagnosis measures of a triple (student, teacher, prompts) before anything is trained.

It knows names and numbers; verdicts are drawn from them elsewhere. Keys of alignment metrics are
those of the metric table.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from opdcore.contract.document import Document, knob
from opdcore.contract.metrics import METRICS, Better
from opdcore.contract.positions import Positions
from opdcore.contract.verdicts import Verdict

Tier = Literal["static", "scored", "hand_off"]
Relation = Literal["unknown", "descendant", "same_pipeline", "ancestor", "identical", "unrelated"]
Severity = Literal["refusal", "warning", "note"]


class ProbeMetric(NamedTuple):
    """A measure of a probe: `label` for people, `unit` or None for a pure number."""

    label: str
    better: Better
    unit: str | None
    help: str


# Alignment metrics that a probe takes over as they are, measured on the student's rollouts.
_SCORED = (
    "overlap_ratio",
    "effective_overlap",
    "overlap_at_uncertain",
    "top1_agreement",
    "overlap_mass_student",
    "overlap_mass_teacher",
    "overlap_kl",
    "overlap_token_advantage",
    "empty_overlap_share",
    "reverse_kl",
    "forward_kl",
    "token_reward",
    "student_entropy",
    "teacher_entropy",
    "entropy_gap",
    "truncation_rate",
    "repetition_rate",
    "response_tokens_mean",
    "grad_norm",
)

PROBE_METRICS: dict[str, ProbeMetric] = {
    **{
        key: ProbeMetric(metric.label, metric.better, metric.unit, metric.help)
        for key, metric in METRICS.items()
        if key in _SCORED
    },
    "first_loss": ProbeMetric(
        "First loss", "neither", "nat", "The recipe's objective on the probe's rollouts."
    ),
    "special_reward_share": ProbeMetric(
        "Reward on special tokens",
        "down",
        None,
        "Share of the summed absolute token reward that lies on special and stop tokens.",
    ),
    "student_accuracy": ProbeMetric(
        "Accuracy, student", "up", None, "avg@n of the student on the probe's prompts."
    ),
    "teacher_accuracy": ProbeMetric(
        "Accuracy, teacher", "up", None, "avg@n of the teacher on the same prompts."
    ),
    "accuracy_gap": ProbeMetric(
        "Benchmark gap",
        "neither",
        None,
        "Teacher's accuracy minus the student's. A high gap alone says nothing about success.",
    ),
    "student_pass_at_n": ProbeMetric(
        "pass@n, student", "up", None, "Prompts that the student solves at least once."
    ),
    "teacher_pass_at_n": ProbeMetric(
        "pass@n, teacher", "up", None, "Prompts that the teacher solves at least once."
    ),
    "teacher_on_failed": ProbeMetric(
        "Teacher where the student fails",
        "up",
        None,
        "Teacher's accuracy on the prompts that the student failed every time.",
    ),
    "student_nll_on_teacher": ProbeMetric(
        "NLL of teacher's text",
        "down",
        "nat",
        "Student's negative log-likelihood of the teacher's rollouts, mean over their tokens.",
    ),
    "style_mass": ProbeMetric(
        "Mass on the teacher's style",
        "up",
        None,
        "Student's probability of the tokens that the teacher begins with, the fewest that hold 95 % "
        "of its own: how often the student would begin as the teacher does.",
    ),
    "reward_auroc": ProbeMetric(
        "Reward against correctness",
        "neither",
        None,
        "Chance that a correct rollout has a higher mean token reward than an incorrect one. It "
        "does not tell success from failure (2604.13016, section 6.2).",
    ),
    "hand_off_25": ProbeMetric(
        "Hand-off at 25 %",
        "up",
        None,
        "Accuracy when the teacher goes on from a quarter of the student's rollout, minus the "
        "accuracy when the student itself does.",
    ),
    "hand_off_50": ProbeMetric("Hand-off at 50 %", "up", None, "The same from half of it."),
    "hand_off_75": ProbeMetric("Hand-off at 75 %", "up", None, "The same from three quarters."),
    "hand_off_min": ProbeMetric(
        "Least hand-off", "up", None, "The smallest of the hand-offs by share."
    ),
}


class Measure(Document):
    """A mean over prompts with its 95 % bootstrap interval by prompt."""

    value: float | None = Field(description="The mean; null where nothing defines it.")
    low: float | None = Field(default=None, description="Lower 95 % bound.")
    high: float | None = Field(default=None, description="Upper 95 % bound.")
    prompts: int = Field(ge=0, description="Prompts that it rests on.")


class Depth(Document):
    """Who goes on better from the student's own words: gain is teacher minus student."""

    share: float | None = Field(default=None, gt=0, lt=1, description="Part of each rollout kept.")
    tokens: int | None = Field(default=None, ge=1, description="Or its length in tokens.")
    student: Measure = Field(description="Accuracy when the student goes on.")
    teacher: Measure = Field(description="Accuracy when the teacher goes on.")
    gain: Measure = Field(description="Their difference, by prompt.")


class Finding(Document):
    """Something that is so before anything is sampled."""

    code: str = Field(description="Stable code, such as setup.stop_ids_differ.")
    severity: Severity = Field(description="refusal: the run cannot work.")
    message: str = Field(description="What is so, with the values.")
    remedy: str = Field(description="What to do about it.")


class Provenance(Document):
    """How the teacher came to be, as far as it is known."""

    relation: Relation = Field(default="unknown", description="Of the teacher to the student.")
    stated: bool = Field(default=False, description="Said by a person, not read from lineage.")


class Probe(Document):
    """Everything that was measured, and what it cost."""

    tiers: tuple[Tier, ...] = Field(description="What was done.")
    prompts: int = Field(ge=0, description="Prompts probed.")
    rollouts_per_prompt: int = Field(ge=0, description="Student's rollouts of each.")
    k: int = Field(ge=1, description="Size of the top-k support.")
    looks: int = Field(default=1, ge=1, le=3, description="Preset looks that were taken.")
    verifier: str = Field(description="What graded the rollouts; none: nothing did.")
    measures: dict[str, Measure] = Field(default_factory=dict, description="By probe metric.")
    chunks: Positions | None = Field(default=None, description="Alignment by position.")
    hand_off: tuple[Depth, ...] = Field(default=(), description="By depth, shallowest first.")
    findings: tuple[Finding, ...] = Field(default=(), description="Of the static tier.")
    provenance: Provenance = Field(default_factory=Provenance, description="Of the teacher.")
    student_tokens: int = Field(default=0, ge=0, description="Tokens that the student wrote.")
    teacher_tokens: int = Field(default=0, ge=0, description="Tokens that the teacher wrote.")
    seconds: float = Field(ge=0, description="Wall time.")


class Diagnosis(Document):
    """A probe and the verdict drawn from it."""

    probe: Probe = Field(description="What was measured.")
    verdict: Verdict = Field(description="What it means for the recipe's goal.")
    calibration: str = Field(description="Name of the calibration that the verdict rests on.")


class DiagnoseStage(Document):
    """Probes student, teacher and prompts, and says whether and why a run of them will fail."""

    kind: Literal["diagnose"] = "diagnose"
    tiers: tuple[Tier, ...] = knob(
        ("static", "scored", "hand_off"),
        group="probe",
        help="static reads the folders, scored samples rollouts and scores them, hand_off lets the "
        "teacher go on from the student's words and needs a verifier.",
    )
    prompts: int = knob(
        128, group="probe", ge=8, le=65_536, unit="prompts", help="At most this many are probed."
    )
    rollouts_per_prompt: int = knob(
        4, group="probe", ge=1, le=64, unit="rollouts", help="Student's rollouts of each prompt."
    )
    k: int = knob(
        16, group="probe", ge=1, le=4096, unit="tokens", help="Size of the top-k support."
    )
    hand_off_tokens: tuple[int, ...] = knob(
        (),
        group="probe",
        level="advanced",
        help="Fixed depths in tokens at which the teacher takes over, besides 25, 50 and 75 % of "
        "each rollout.",
    )
    budget_share: float | None = knob(
        0.03,
        group="probe",
        gt=0,
        le=1,
        level="advanced",
        help="The probe generates at most this share of the tokens that the recipe's distillation "
        "would; fewer prompts are probed where it must. Empty: no limit.",
    )
    temperature: float = knob(
        1.0, group="sampling", gt=0, le=2, help="Temperature of all rollouts of the probe."
    )
    max_prompt_tokens: int = knob(
        1024,
        group="sampling",
        ge=1,
        le=131_072,
        unit="tokens",
        level="advanced",
        help="A longer prompt is refused before the probe starts.",
    )
    max_response_tokens: int = knob(
        7168, group="sampling", ge=1, le=131_072, unit="tokens", help="A longer response is cut."
    )
    relation: Relation = knob(
        "unknown",
        group="provenance",
        help="What the teacher is to the student: a descendant that was trained further with new "
        "reward or data, same_pipeline (same data and recipe, perhaps larger), an ancestor, "
        "unrelated, or unknown. Lineage that is known to the application fills it in.",
    )
