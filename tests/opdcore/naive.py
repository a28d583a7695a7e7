"""Losses, gradients and metrics once more, in plain Python loops written from the definitions.

Everything is a list of floats in float64: slow, without tensors, and so an independent witness.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from opdcore.losses import Objective

SUPPORTS = ("student", "teacher", "intersection", "union", "symmetric_difference")
NORMALISATIONS = ("stop_gradient", "renormalised", "tail_bucket")
DIVERGENCES = ("reverse", "forward", "jsd")
BETA = 0.3

Row = list[float]


def make_objective(form="top_k", **overrides) -> Objective:
    plain = {
        "divergence": "reverse",
        "support": "student",
        "normalisation": "stop_gradient",
        "k": 4,
        "jsd_beta": BETA,
        "sampled_loss": "policy_gradient",
        "reward_clamp": None,
        "reward_power": 0.0,
        "extrapolation": 1.0,
        "high_entropy_forward_weight": 0.0,
        "high_entropy_nats": 1.0,
        "initial_kl_weight": 0.0,
        "token_selection": "all",
        "selection_entropy_nats": 0.5,
        "selection_kl_nats": 0.1,
    }
    return Objective(form=form, **(plain | overrides))


def all_objectives(k: int = 4) -> list[Objective]:
    """Every sound cell; the biased ones are `biased_objectives`."""
    top_k = [
        make_objective(divergence=d, support=s, normalisation=n, k=k)
        for d, s, n in product(DIVERGENCES, SUPPORTS, NORMALISATIONS)
    ]
    full = [make_objective("full", divergence=d) for d in DIVERGENCES]
    sampled = [
        make_objective("sampled"),
        make_objective("sampled", reward_clamp=0.7),
        make_objective("sampled", reward_power=0.5),
        make_objective("sampled", sampled_loss="k2"),
        make_objective("sampled", sampled_loss="k3"),
    ]
    clamped = [make_objective(support=s, reward_clamp=0.7, k=k) for s in SUPPORTS]
    return [*sampled, *full, *top_k, *clamped]


def biased_objectives() -> list[Objective]:
    return [
        make_objective(divergence=d, support=s, normalisation="unnormalised")
        for d, s in product(("reverse", "forward"), SUPPORTS)
    ]


def title(objective: Objective) -> str:
    parts = [objective.form, objective.divergence]
    if objective.form == "top_k":
        parts += [objective.support, objective.normalisation]
    if objective.form == "sampled":
        parts += [objective.sampled_loss]
    if objective.reward_clamp is not None:
        parts += ["clamped"]
    if objective.reward_power:
        parts += ["power"]
    return "-".join(parts)


def make_logits(
    rows: int = 6, vocabulary: int = 11, *, seed: int = 0, scale: float = 2.0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * scale


def make_ids(rows: int = 6, vocabulary: int = 11, *, seed: int = 0) -> Tensor:
    return torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(seed))


def log_softmax(logits: Row) -> Row:
    highest = max(logits)
    total = math.log(sum(math.exp(z - highest) for z in logits)) + highest
    return [z - total for z in logits]


def best(logprobs: Row, k: int) -> set[int]:
    return set(sorted(range(len(logprobs)), key=lambda v: -logprobs[v])[:k])


def support_of(name: str, student: Row, teacher: Row, k: int) -> set[int]:
    ours, theirs = best(student, k), best(teacher, k)
    return {
        "student": ours,
        "teacher": theirs,
        "intersection": ours & theirs,
        "union": ours | theirs,
        "symmetric_difference": ours ^ theirs,
    }[name]


def kl(p: Row, q: Row) -> float:
    """KL(p||q) of two lists of probabilities, with 0 log 0 = 0."""
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def divergence_of(p: Row, q: Row, objective: Objective) -> float:
    if objective.divergence == "reverse":
        return kl(p, q)
    if objective.divergence == "forward":
        return kl(q, p)
    beta = objective.jsd_beta
    m = [beta * b + (1 - beta) * a for a, b in zip(p, q, strict=True)]
    return beta * kl(q, m) + (1 - beta) * kl(p, m)


def slopes_of(p: Row, q: Row, objective: Objective) -> Row:
    """The divergence's slope in log p of each of a whole distribution's outcomes, centred."""
    if objective.divergence == "forward":
        return [a - b for a, b in zip(p, q, strict=True)]
    beta = objective.jsd_beta if objective.divergence == "jsd" else 0.0
    scale = 1 - beta if objective.divergence == "jsd" else 1.0
    against = q
    if objective.divergence == "jsd":
        against = [beta * b + (1 - beta) * a for a, b in zip(p, q, strict=True)]
    pairs = list(zip(p, against, strict=True))
    mean = kl(p, against)
    return [scale * a * ((math.log(a) - math.log(b) if a > 0 else 0.0) - mean) for a, b in pairs]


def renormalise(logprobs: Row, chosen: set[int]) -> dict[int, float]:
    mass = sum(math.exp(logprobs[v]) for v in chosen)
    return {v: math.exp(logprobs[v]) / mass for v in chosen}


def tail_mass(logprobs: Row, chosen: set[int]) -> float:
    return sum(math.exp(x) for v, x in enumerate(logprobs) if v not in chosen)


def with_tail(logprobs: Row, chosen: set[int]) -> Row:
    return [math.exp(logprobs[v]) for v in sorted(chosen)] + [tail_mass(logprobs, chosen)]


def reward(student: Row, teacher: Row, token: int, objective: Objective) -> float:
    """What the token is worth: log q - log p, or as the objective changes it."""
    power, clamp = objective.reward_power, objective.reward_clamp
    value = teacher[token] - student[token]
    if power:
        value = (math.exp(teacher[token]) ** power - math.exp(student[token]) ** power) / power
    return value if clamp is None else max(-clamp, min(clamp, value))


def loss(student: Row, teacher: Row, sampled: int, objective: Objective) -> float:
    """The objective's value at one position, from both sides' logprobs."""
    p, q = [math.exp(x) for x in student], [math.exp(x) for x in teacher]
    if objective.form == "sampled":
        advantage = teacher[sampled] - student[sampled]
        return {
            "policy_gradient": -reward(student, teacher, sampled, objective) * student[sampled],
            "k2": advantage**2 / 2,
            "k3": math.exp(advantage) - 1 - advantage,
        }[objective.sampled_loss]
    if objective.form == "full":
        return divergence_of(p, q, objective)
    chosen = support_of(objective.support, student, teacher, objective.k)
    if objective.normalisation in ("stop_gradient", "unnormalised"):
        return sum(_summand(student, teacher, v, objective) for v in chosen)
    if objective.normalisation == "tail_bucket":
        return divergence_of(with_tail(student, chosen), with_tail(teacher, chosen), objective)
    p_bar, q_bar = renormalise(student, chosen), renormalise(teacher, chosen)
    return divergence_of([p_bar[v] for v in chosen], [q_bar[v] for v in chosen], objective)


def _summand(student: Row, teacher: Row, token: int, objective: Objective) -> float:
    p, q = math.exp(student[token]), math.exp(teacher[token])
    if objective.divergence == "forward":
        return q * (teacher[token] - student[token])
    if objective.divergence == "reverse":
        return -p * reward(student, teacher, token, objective)
    beta = objective.jsd_beta
    m = math.log(beta * q + (1 - beta) * p)
    return beta * q * (teacher[token] - m) + (1 - beta) * p * (student[token] - m)


def gradient(student: Row, teacher: Row, sampled: int, objective: Objective) -> Row:
    """The objective's analytic gradient with respect to the student's logits at one position."""
    p, q = [math.exp(x) for x in student], [math.exp(x) for x in teacher]
    tokens = range(len(student))
    if objective.form == "sampled":
        slope = {
            "policy_gradient": -reward(student, teacher, sampled, objective),
            "k2": student[sampled] - teacher[sampled],
            "k3": 1 - q[sampled] / p[sampled],
        }[objective.sampled_loss]
        return [slope * ((v == sampled) - p[v]) for v in tokens]
    if objective.form == "full":
        return slopes_of(p, q, objective)
    chosen = support_of(objective.support, student, teacher, objective.k)
    if objective.normalisation == "renormalised":
        p_bar, q_bar = renormalise(student, chosen), renormalise(teacher, chosen)
        slopes = slopes_of([p_bar[v] for v in chosen], [q_bar[v] for v in chosen], objective)
        inside = dict(zip(chosen, slopes, strict=True))
        return [inside.get(v, 0.0) for v in tokens]
    if objective.normalisation == "tail_bucket":
        return _tail_gradient(student, teacher, chosen, objective)
    # dL/dz_j = g_j [j in S] - p_j sum_S g, g = dL/dlog p.
    g = {v: _slope(student, teacher, v, objective) for v in chosen}
    return [g.get(v, 0.0) - p[v] * sum(g.values()) for v in tokens]


def _slope(student: Row, teacher: Row, token: int, objective: Objective) -> float:
    p, q = math.exp(student[token]), math.exp(teacher[token])
    biased = objective.normalisation == "unnormalised"
    if objective.divergence == "forward":
        return -q if biased else p - q
    if objective.divergence == "reverse":
        return p * (biased - reward(student, teacher, token, objective))
    beta = objective.jsd_beta
    return (1 - beta) * p * (student[token] - math.log(beta * q + (1 - beta) * p))


def _tail_gradient(student: Row, teacher: Row, chosen: set[int], objective: Objective) -> Row:
    slopes = slopes_of(with_tail(student, chosen), with_tail(teacher, chosen), objective)
    inside, outside = dict(zip(sorted(chosen), slopes, strict=False)), slopes[-1]
    mass = tail_mass(student, chosen)
    return [
        inside[v] if v in chosen else outside * math.exp(x) / mass for v, x in enumerate(student)
    ]


def metrics(student: Row, teacher: Row, sampled: int, k: int) -> dict[str, float]:
    """Every alignment metric at one position, NaN where it is not defined."""
    p, q = [math.exp(x) for x in student], [math.exp(x) for x in teacher]
    ours, theirs = best(student, k), best(teacher, k)
    both = ours & theirs
    ratio = len(both) / k
    divergence = math.nan
    if both:
        p_bar, q_bar = renormalise(student, both), renormalise(teacher, both)
        divergence = kl([p_bar[v] for v in both], [q_bar[v] for v in both])
    likely = {v for v in ours if p[v] > 1e-3}, {v for v in theirs if q[v] > 1e-3}
    h_student, h_teacher = -sum(x * math.log(x) for x in p), -sum(x * math.log(x) for x in q)
    return {
        "overlap_ratio": ratio,
        "overlap_mass_student": sum(p[v] for v in both),
        "overlap_mass_teacher": sum(q[v] for v in both),
        "overlap_token_advantage": -divergence / max(1, len(both)),
        "overlap_kl": divergence,
        "empty_overlap_share": float(not both),
        "student_entropy": h_student,
        "teacher_entropy": h_teacher,
        "entropy_gap": abs(h_teacher - h_student),
        "reverse_kl": kl(p, q),
        "forward_kl": kl(q, p),
        "effective_overlap": (
            len(likely[0] & likely[1]) / len(likely[0] | likely[1]) if any(likely) else math.nan
        ),
        "overlap_at_uncertain": ratio if h_student + h_teacher > 0.5 else math.nan,
        "top1_agreement": float(p.index(max(p)) == q.index(max(q))),
        "token_reward": teacher[sampled] - student[sampled],
        "student_logprob": student[sampled],
        "teacher_logprob": teacher[sampled],
    }
