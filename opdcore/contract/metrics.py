"""The table of metrics: the one place that says what a named scalar means.

Keys here are the keys of events, series, charts and files. It knows no tensor.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Better = Literal["up", "down", "neither"]
Group = Literal[
    "alignment", "reward", "entropy", "loss", "evaluation", "rollouts", "optimizer", "throughput"
]


class Metric(NamedTuple):
    """A named scalar per step: `label` for people, `unit` or None for a pure number."""

    label: str
    group: Group
    better: Better
    unit: str | None
    help: str
    by_position: bool = False


def _alignment(label: str, better: Better, help: str, unit: str | None = None) -> Metric:
    return Metric(label, "alignment", better, unit, help, by_position=True)


METRICS: dict[str, Metric] = {
    "loss": Metric(
        "Loss",
        "loss",
        "down",
        "nat",
        "Mean of the objective over the generated tokens that are trained on, with all that is "
        "added to it. With form sampled it is the surrogate whose gradient is followed, and its "
        "value says little: look at the token reward, or in a reinforce stage at the mean reward.",
    ),
    "initial_kl": Metric(
        "KL to the start",
        "loss",
        "neither",
        "nat",
        "KL(student || student at the stage's start), full vocabulary; null where the recipe does not "
        "compare with it.",
    ),
    "gold_nll": Metric(
        "Demonstrations",
        "loss",
        "down",
        "nat",
        "Negative log-likelihood of the step's demonstrations, mean over their tokens; null where "
        "the recipe learns from none.",
    ),
    "held_out_nll": Metric(
        "Held-out responses",
        "loss",
        "down",
        "nat",
        "Negative log-likelihood of the responses that a cold start never learns, mean over their "
        "tokens; told before its first update and after its last.",
    ),
    "trained_share": Metric(
        "Tokens trained on",
        "loss",
        "neither",
        None,
        "Share of generated tokens that are neither masked nor passed over by a selection; in a "
        "reinforce stage, those of rollouts whose prompt has a signal.",
    ),
    "reward_mean": Metric(
        "Mean reward",
        "reward",
        "up",
        None,
        "Mean over the step's rollouts of what the verifier's verdict is worth to a reinforce stage: 1 "
        "if right, 0 if wrong; null where every rollout is left out.",
    ),
    "zero_variance_groups": Metric(
        "Prompts without a signal",
        "reward",
        "down",
        None,
        "Share of prompts whose rollouts were all right or all wrong, so that a reinforce stage learns "
        "nothing from them.",
    ),
    "response_cap_tokens": Metric(
        "Response cap",
        "rollouts",
        "neither",
        "tokens",
        "Length at which rollouts are cut at this step; told under a length curriculum.",
    ),
    "trained_up_to_tokens": Metric(
        "Trained up to",
        "rollouts",
        "neither",
        "tokens",
        "First position that is masked because overlap does not hold there; told where late chunks "
        "are masked.",
    ),
    "overlap_ratio": _alignment(
        "Overlap ratio",
        "up",
        "Share of the top-k tokens that student and teacher have in common (2604.13016, Eq. 6).",
    ),
    "overlap_mass_student": _alignment(
        "Overlap mass, student",
        "up",
        "Probability that the student puts on the common tokens (Eq. 9). Reference: 97-99 %.",
    ),
    "overlap_mass_teacher": _alignment(
        "Overlap mass, teacher",
        "up",
        "Probability that the teacher puts on the common tokens (Eq. 10). Reference: 97-99 %.",
    ),
    "overlap_token_advantage": _alignment(
        "Overlap-token advantage",
        "up",
        "Mean over common tokens of p (log q - log p), both renormalised on them (Eq. 7). At most "
        "0; 0 is full agreement; null where no token is common.",
        "nat",
    ),
    "overlap_kl": _alignment(
        "KL on the overlap",
        "down",
        "KL of student to teacher, both renormalised on the common tokens, not divided by their "
        "number.",
        "nat",
    ),
    "empty_overlap_share": _alignment(
        "Empty overlaps", "down", "Share of positions without any common top-k token."
    ),
    "effective_overlap": _alignment(
        "Effective overlap",
        "up",
        "Jaccard overlap of the top-k tokens that have a probability above 0.001.",
    ),
    "overlap_at_uncertain": _alignment(
        "Overlap where uncertain",
        "up",
        "Overlap ratio at positions where both entropies add up to more than 0.5 nat: rises in "
        "success even where the plain ratio is saturated.",
    ),
    "top1_agreement": _alignment(
        "Top-1 agreement", "up", "Share of positions at which both prefer the same token."
    ),
    "token_reward": Metric(
        "Token reward",
        "reward",
        "up",
        "nat",
        "Mean of log teacher - log student at the sampled token; 0 is agreement.",
        True,
    ),
    "reward_largest": Metric(
        "Largest reward",
        "reward",
        "neither",
        "nat",
        "Largest size of a single token's reward, up or down; tens of nats are a sign of tokens that "
        "one side never writes.",
    ),
    "reward_tail_share": Metric(
        "Reward's heavy tail",
        "reward",
        "down",
        None,
        "Share of the summed size of all token rewards that lies on the largest of a thousand.",
    ),
    "incorrect_reverse_kl": Metric(
        "KL of wrong rollouts",
        "reward",
        "neither",
        "nat",
        "Reverse KL on rollouts that the verifier calls wrong, mean over their tokens; null where "
        "there are none. Low there means that the teacher agrees with the mistakes.",
    ),
    "reverse_kl": Metric(
        "Reverse KL", "reward", "down", "nat", "KL(student || teacher), full vocabulary.", True
    ),
    "forward_kl": Metric(
        "Forward KL", "reward", "down", "nat", "KL(teacher || student), full vocabulary.", True
    ),
    "student_entropy": Metric(
        "Student entropy", "entropy", "neither", "nat", "Entropy of the student.", True
    ),
    "teacher_entropy": Metric(
        "Teacher entropy",
        "entropy",
        "neither",
        "nat",
        "Entropy of the teacher on the student's text.",
        True,
    ),
    "entropy_gap": Metric(
        "Entropy gap",
        "entropy",
        "down",
        "nat",
        "Mean absolute difference of both entropies (Eq. 8).",
        True,
    ),
    "student_logprob": Metric(
        "Student logprob",
        "reward",
        "neither",
        "nat",
        "Mean log-probability of the sampled token under the student.",
        True,
    ),
    "teacher_logprob": Metric(
        "Teacher logprob",
        "reward",
        "up",
        "nat",
        "Mean log-probability of the sampled token under the teacher.",
        True,
    ),
    "sampler_logprob_difference": Metric(
        "Sampler difference",
        "rollouts",
        "down",
        "nat",
        "Mean absolute difference between the log-probability at which a token was sampled and "
        "the one it is trained with.",
    ),
    "rollout_accuracy": Metric(
        "Rollout accuracy",
        "rollouts",
        "up",
        None,
        "Share of graded rollouts that the verifier calls correct, on training prompts.",
    ),
    "rollout_abstained_share": Metric(
        "Abstained",
        "rollouts",
        "down",
        None,
        "Share of rollouts that the verifier could not grade.",
    ),
    "response_tokens_mean": Metric(
        "Response length", "rollouts", "neither", "tokens", "Mean length, stop token included."
    ),
    "response_tokens_max": Metric(
        "Longest response", "rollouts", "neither", "tokens", "Longest rollout of the step."
    ),
    "truncation_rate": Metric(
        "Truncation rate",
        "rollouts",
        "down",
        None,
        "Share of rollouts that end without a stop token.",
    ),
    "collapsed_rate": Metric(
        "Collapsed rollouts",
        "rollouts",
        "down",
        None,
        "Share of rollouts that were cut because their end repeated itself too often.",
    ),
    "repetition_rate": Metric(
        "Repetition rate",
        "rollouts",
        "down",
        None,
        "Share of rollouts whose text compresses at least tenfold (2604.08527; tail of at most "
        "10,000 characters).",
    ),
    "control_token_share": Metric(
        "Control tokens",
        "rollouts",
        "neither",
        None,
        "Share of generated tokens that the tokenizer adds to its vocabulary, such as those of "
        "templates and thinking modes; stop tokens are left out.",
    ),
    "generated_tokens": Metric(
        "Generated tokens", "throughput", "neither", "tokens", "Tokens sampled in this step."
    ),
    "grad_norm": Metric(
        "Gradient norm", "optimizer", "neither", None, "Norm of the gradient before it is clipped."
    ),
    "learning_rate": Metric(
        "Learning rate", "optimizer", "neither", None, "Learning rate of this step."
    ),
    "weights_changed_share": Metric(
        "Weights changed",
        "optimizer",
        "neither",
        None,
        "Share of weights that this step changed at all; near 0 means that updates round away.",
    ),
    "step_seconds": Metric("Step time", "throughput", "down", "s", "Seconds of the whole step."),
    "sample_seconds": Metric("Sampling time", "throughput", "down", "s", "Seconds of sampling."),
    "train_seconds": Metric(
        "Training time",
        "throughput",
        "down",
        "s",
        "Seconds of teacher scoring, loss and gradient, which share one pass.",
    ),
    "update_seconds": Metric(
        "Update time", "throughput", "down", "s", "Seconds of clipping and the optimizer."
    ),
    "grade_seconds": Metric("Grading time", "throughput", "down", "s", "Seconds of the verifier."),
    "tokens_per_second": Metric(
        "Throughput", "throughput", "up", "tokens/s", "Generated tokens per second of the step."
    ),
    "peak_memory_bytes": Metric(
        "Peak memory", "throughput", "down", "bytes", "Highest memory of the process so far."
    ),
    "accuracy": Metric("Accuracy, student", "evaluation", "up", None, "avg@n on held-out prompts."),
    "accuracy_low": Metric(
        "Accuracy, lower bound", "evaluation", "up", None, "95 % bootstrap bound by prompt."
    ),
    "accuracy_high": Metric(
        "Accuracy, upper bound", "evaluation", "up", None, "95 % bootstrap bound by prompt."
    ),
    "pass_at_n": Metric(
        "pass@n, student", "evaluation", "up", None, "Held-out prompts solved at least once."
    ),
    "teacher_accuracy": Metric(
        "Accuracy, teacher", "evaluation", "up", None, "avg@n of the teacher on the same prompts."
    ),
    "gap_recovery": Metric(
        "Gap recovery",
        "evaluation",
        "up",
        None,
        "Share of the gap between student and teacher that is closed; null where the gap is "
        "within noise.",
    ),
    "evaluation_truncation_rate": Metric(
        "Truncation, held out", "evaluation", "down", None, "Share of held-out responses cut."
    ),
    "evaluation_abstained_share": Metric(
        "Abstained, held out",
        "evaluation",
        "down",
        None,
        "Share of held-out responses that the verifier could not grade.",
    ),
    "evaluation_response_tokens": Metric(
        "Response length, held out", "evaluation", "neither", "tokens", "Mean length, held out."
    ),
}

POSITION_METRICS = tuple(key for key, metric in METRICS.items() if metric.by_position)
