"""The charts of a run's page: which metrics stand together, and what to watch in each group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from opdcore.contract.metrics import METRICS, POSITION_METRICS
from webapp.services.run_report import Measured

# Curves by position: what the student gains, where the two agree, how sure both are.
CURVE_KEYS = ("token_reward", "overlap_ratio", "student_entropy", "teacher_entropy")
# What the heat map offers, the first one chosen: those of the curves, then all others.
HEAT_KEYS = (
    "overlap_ratio",
    "token_reward",
    *(key for key in POSITION_METRICS if key not in ("overlap_ratio", "token_reward")),
)


class Chart(NamedTuple):
    """One chart: `names` of its lines, `fixed` borders of its axis, `bounds` the first line's band."""

    label: str
    keys: str
    names: str
    unit: str = ""
    fixed: str = ""
    bounds: str = ""
    reference: str = ""


class Group(NamedTuple):
    """Charts that answer one question."""

    title: str
    watch: str
    charts: tuple[Chart, ...]


ACCURACY = Chart(
    "Accuracy on held-out prompts",
    "accuracy",
    "student",
    fixed="0,1",
    bounds="accuracy_low,accuracy_high",
    reference="teacher_accuracy",
)
GAP_RECOVERY = Chart("Gap recovery", "gap_recovery", "closed share of the gap")
ROLLOUT_ACCURACY = Chart("Rollout accuracy", "rollout_accuracy", "on training prompts", fixed="0,1")
UPDATES = (
    Chart("Loss", "loss", "mean", unit="nat"),
    Chart("Gradient norm", "grad_norm", "before clipping"),
    Chart("Weights changed", "weights_changed_share", "share of a step", fixed="0,1"),
)
GROUPS = (
    Group(
        "Alignment and reward",
        "In a run that works, overlap climbs within the first tens of steps and token reward rises "
        "towards 0. Judge it by its accuracy: a gain counts once the lower bound of the band, which "
        "holds 95 %, passes where the student began.",
        (
            Chart(
                "Top-k overlap",
                "overlap_ratio,overlap_mass_student,overlap_mass_teacher",
                "ratio,student mass,teacher mass",
                fixed="0,1",
            ),
            Chart("Token reward", "token_reward", "mean", unit="nat"),
            ACCURACY,
        ),
    ),
    Group(
        "Agreement",
        "Flat and low means that the two think in different ways. The advantage on shared tokens "
        "rises towards 0 as their probabilities meet.",
        (
            Chart(
                "Agreement where it matters",
                "effective_overlap,top1_agreement,overlap_at_uncertain",
                "effective,top-1,where uncertain",
                fixed="0,1",
            ),
            Chart("Overlap-token advantage", "overlap_token_advantage", "mean", unit="nat"),
            Chart("Divergence", "reverse_kl,forward_kl", "reverse KL,forward KL", unit="nat"),
        ),
    ),
    Group(
        "Learning",
        "Gap recovery is the share of the way from the student's first accuracy to the teacher's. "
        "Training prompts are drawn anew each step, so their accuracy is noisy.",
        (GAP_RECOVERY, ROLLOUT_ACCURACY),
    ),
    Group(
        "Entropy",
        "Both entropies should come together. A student that falls far below its teacher grows "
        "too certain too soon.",
        (
            Chart("Entropy", "student_entropy,teacher_entropy", "student,teacher", unit="nat"),
            Chart("Entropy gap", "entropy_gap", "mean difference", unit="nat"),
        ),
    ),
    Group(
        "Loss",
        "The loss falls, the gradient stays calm. Both near 0 from the first step mean that there "
        "is nothing to learn from this teacher.",
        UPDATES,
    ),
    Group(
        "Rollouts",
        "A length that runs off while truncation and repetition climb is the start of a collapse.",
        (
            Chart(
                "Response length",
                "response_tokens_mean,response_tokens_max",
                "mean,longest",
                unit="tokens",
            ),
            Chart(
                "Truncated and repeating",
                "truncation_rate,repetition_rate",
                "truncated,repeating",
                fixed="0,1",
            ),
        ),
    ),
    Group(
        "Throughput",
        "Where the time of a step goes; training includes the teacher's scoring.",
        (
            Chart("Generated tokens", "tokens_per_second", "of the step", unit="tokens/s"),
            Chart(
                "Seconds by phase",
                "sample_seconds,train_seconds,update_seconds,grade_seconds",
                "sampling,training,update,grading",
                unit="s",
            ),
            Chart("Peak memory", "peak_memory_bytes", "of the process", unit="bytes"),
        ),
    ),
)
COLD_START = Group(
    "Cold start",
    "Responses that are never learned become likelier to the student: it takes on the manner of who "
    "wrote them, not their words by heart.",
    (Chart("Held-out responses", "held_out_nll", "before and after", unit="nat"),),
)
REINFORCE = Group(
    "Reinforce",
    "The mean reward climbs while the entropy stays above 0. Prompts whose responses are all right, or "
    "all wrong, teach nothing: where they are most of them, other prompts would teach more.",
    (
        Chart("Reward", "reward_mean,zero_variance_groups", "mean,prompts without a signal",
              fixed="0,1"),
        Chart("The student's entropy", "student_entropy", "mean", unit="nat"),
        Chart("KL to the start", "initial_kl", "mean", unit="nat"),
    ),
)  # fmt: skip
# In place of what compares a student with its teacher, where no stage does.
WITHOUT_TEACHER = (
    Group(
        "Learning",
        "A gain counts once the lower bound of the band, which holds 95 %, passes where the student "
        "began.",
        (ACCURACY, GAP_RECOVERY),
    ),
    Group(
        "Loss",
        "A cold start's loss falls; that of rewards stays near 0. The gradient stays calm.",
        UPDATES,
    ),
    *(group for group in GROUPS if group.title in ("Rollouts", "Throughput")),
)
# Charts that only runs with such a stage have.
OF_STAGE = {"cold_start": COLD_START, "reinforce": REINFORCE}
_CHARTED = {key for group in GROUPS for chart in group.charts for key in chart.keys.split(",")}


def groups_of(stage_kinds: Iterable[str]) -> tuple[Group, ...]:
    """The charts of a run with such stages: after what a distillation is judged by, what only some have."""
    kinds = set(stage_kinds)
    own = [group for kind, group in OF_STAGE.items() if kind in kinds]
    if "distill" not in kinds:
        return (*own, *WITHOUT_TEACHER)
    first, *others = GROUPS
    return (first, *own, *others)


def uncharted(keys: Iterable[str]) -> list[Chart]:
    """A chart for each of these metrics that no group shows."""
    wanted = dict.fromkeys(key for key in keys if key in METRICS and key not in _CHARTED)
    return [Chart(METRICS[key].label, key, "mean", unit=METRICS[key].unit or "") for key in wanted]


def rung(name: str, measured: Measured) -> dict[str, Any]:
    """An accuracy on the ladder's scale from 0 to 100."""
    return {
        "name": name,
        "value": measured.value,
        "low": measured.low,
        "high": measured.high,
        "at": round(100 * measured.value, 2),
        "from": None if measured.low is None else round(100 * measured.low, 2),
        "to": None if measured.high is None else round(100 * measured.high, 2),
    }
