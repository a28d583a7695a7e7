"""Which objectives are sound: the reasons for which a recipe is refused.

One function for the table of form, divergence, support and normalisation, which the documentation
shows as it is, and one for the knobs that change a loss. It knows values, no recipe and no tensor.
"""

from __future__ import annotations

# Names that other engines or papers use for what cannot work, by knob; the reason is the answer to
# whoever writes them.
REFUSED_NAMES: dict[str, dict[str, str]] = {
    "form": {
        "scalar_top_k": "a top-k divergence summed to one advantage of the sampled token does not "
        "depend on that token, so that its expected gradient is 0; choose top_k",
    },
    "normalisation": {
        "scalar": "a top-k divergence summed to one advantage of the sampled token does not depend "
        "on that token, so that its expected gradient is 0; choose stop_gradient, renormalised or "
        "tail_bucket",
    },
    "sampled_loss": {
        "k1": "log p - log q back-propagated directly has a gradient without the teacher in it; "
        "choose policy_gradient",
    },
}


def named_refusal(knob: str, value: object) -> str | None:
    """Why a value that the knob does not offer, but that people know, is refused."""
    reason = REFUSED_NAMES.get(knob, {}).get(value) if isinstance(value, str) else None
    return f"{knob}: {value} is not offered, since {reason}" if reason else None


def cell_refusal(*, form: str, divergence: str, normalisation: str, k: int) -> str | None:
    """Why an objective is refused; None where it is sound. Every support is sound with the others."""
    if form == "sampled" and divergence != "reverse":
        return (
            f"form: sampled has no {divergence} divergence, since the token is drawn from the "
            "student; choose reverse, or form top_k or full"
        )
    if form != "top_k":
        return None
    if normalisation == "renormalised" and k == 1:
        return (
            "k: 1 with normalisation renormalised gives a loss that is 0 wherever one token is left; "
            "raise k to at least 4, or choose stop_gradient"
        )
    if normalisation == "unnormalised" and divergence == "jsd":
        return (
            "normalisation: unnormalised is a name for a biased gradient, and the truncated jsd has "
            "none; choose stop_gradient, which is the same sum"
        )
    return None


def reward_refusal(
    *,
    form: str,
    divergence: str,
    normalisation: str,
    sampled_loss: str,
    reward_clamp: float | None,
    reward_power: float,
) -> str | None:
    """Why a change of the token reward is refused: it must be a constant of the loss to be one."""
    gradient = form == "sampled" and sampled_loss == "policy_gradient"
    if sampled_loss != "policy_gradient" and form != "sampled":
        return f"sampled_loss: {sampled_loss} is a loss of the sampled token; choose form sampled"
    if reward_power and not gradient:
        return (
            "reward_power: the reward of a policy gradient is what it bounds; choose form sampled "
            "with sampled_loss policy_gradient, or set it to 0"
        )
    if reward_power and reward_clamp is not None:
        return (
            f"reward_clamp: reward_power {reward_power:g} bounds the reward to "
            f"{1 / reward_power:g} already; leave one of them out"
        )
    constant = (form, normalisation, divergence) == ("top_k", "stop_gradient", "reverse")
    if reward_clamp is not None and not (gradient or constant):
        return (
            "reward_clamp: only a log-ratio that is held constant can be bounded without a bias: "
            "form sampled with policy_gradient, or top_k with stop_gradient and reverse; leave it "
            "empty"
        )
    return None


def addition_refusal(
    *, divergence: str, extrapolation: float, high_entropy_forward_weight: float
) -> str | None:
    """Why something added to the loss is refused."""
    if high_entropy_forward_weight and divergence == "forward":
        return (
            "high_entropy_forward_weight: divergence forward is what it would add; choose reverse "
            "or jsd, or set it to 0"
        )
    if extrapolation != 1 and divergence != "reverse":
        return (
            "extrapolation: moving the teacher on is derived for the reverse divergence; choose "
            "reverse, or set it to 1"
        )
    return None


def served_refusal(
    *,
    form: str,
    support: str,
    temperature: float,
    extrapolation: float,
    token_selection: str,
    high_entropy_forward_weight: float,
    student_top_k: bool,
) -> str | None:
    """Why an objective cannot be trained on a teacher that tells a few tokens alone.

    Those are its own top k, and with `student_top_k` the student's: of one behind a server, or of one whose
    scores are kept or replayed.
    """
    whole = "needs the teacher's whole distribution, of which a few tokens are told"
    reasons = {
        f"form: full {whole}; choose top_k with support teacher": form == "full",
        f"support: {support} needs the teacher's logprobs of tokens that it does not tell; choose teacher "
        "or intersection, form sampled, or a server that tells the student's top k": form == "top_k"
        and support not in {"teacher", "intersection"}
        and not student_top_k,
        f"temperature: {temperature:g} {whole}, at 1; set it to 1": temperature != 1,
        f"extrapolation: {extrapolation:g} {whole}; set it to 1": extrapolation != 1,
        f"token_selection: {token_selection} {whole}; choose all or entropy": token_selection
        in {"divergence", "either"},
        f"high_entropy_forward_weight: {high_entropy_forward_weight:g} {whole}; set it to 0": bool(
            high_entropy_forward_weight
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
