"""Losses, gradients and metrics once more, in plain Python loops written from the definitions.

Everything is a list of floats in float64: slow, without tensors, and so an independent witness.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from opdcore.losses import Objective

SUPPORTS = ("student", "teacher", "intersection", "union")
NORMALISATIONS = ("stop_gradient", "renormalised", "tail_bucket")
DIVERGENCES = ("reverse", "forward")

Row = list[float]


def make_objective(form="top_k", **overrides) -> Objective:
    plain = {
        "divergence": "reverse",
        "support": "student",
        "normalisation": "stop_gradient",
        "k": 4,
    }
    return Objective(form=form, **(plain | overrides))


def all_objectives(k: int = 4) -> list[Objective]:
    top_k = [
        make_objective(divergence=d, support=s, normalisation=n, k=k)
        for d, s, n in product(DIVERGENCES, SUPPORTS, NORMALISATIONS)
    ]
    return [
        make_objective("sampled"),
        make_objective("full"),
        make_objective("full", divergence="forward"),
        *top_k,
    ]


def title(objective: Objective) -> str:
    if objective.form != "top_k":
        return f"{objective.form}-{objective.divergence}"
    return f"{objective.divergence}-{objective.support}-{objective.normalisation}"


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
    }[name]


def kl(p: Row, q: Row) -> float:
    """KL(p||q) of two lists of probabilities, with 0 log 0 = 0."""
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def renormalise(logprobs: Row, chosen: set[int]) -> dict[int, float]:
    mass = sum(math.exp(logprobs[v]) for v in chosen)
    return {v: math.exp(logprobs[v]) / mass for v in chosen}


def tail_mass(logprobs: Row, chosen: set[int]) -> float:
    return sum(math.exp(x) for v, x in enumerate(logprobs) if v not in chosen)


def with_tail(logprobs: Row, chosen: set[int]) -> Row:
    return [math.exp(logprobs[v]) for v in sorted(chosen)] + [tail_mass(logprobs, chosen)]


def loss(student: Row, teacher: Row, sampled: int, objective: Objective) -> float:
    """The objective's value at one position, from both sides' logprobs."""
    if objective.form == "sampled":
        return -(teacher[sampled] - student[sampled]) * student[sampled]
    first, second = (student, teacher)
    if objective.divergence == "forward":
        first, second = second, first
    if objective.form == "full":
        return kl([math.exp(x) for x in first], [math.exp(x) for x in second])
    chosen = support_of(objective.support, student, teacher, objective.k)
    if objective.normalisation == "stop_gradient":
        return sum(math.exp(first[v]) * (first[v] - second[v]) for v in chosen)
    if objective.normalisation == "tail_bucket":
        return kl(with_tail(first, chosen), with_tail(second, chosen))
    p, q = renormalise(first, chosen), renormalise(second, chosen)
    return kl([p[v] for v in chosen], [q[v] for v in chosen])


def gradient(student: Row, teacher: Row, sampled: int, objective: Objective) -> Row:
    """The objective's analytic gradient with respect to the student's logits at one position."""
    everything = set(range(len(student)))
    p, q = [math.exp(x) for x in student], [math.exp(x) for x in teacher]
    a = [x - y for x, y in zip(student, teacher, strict=True)]
    if objective.form == "sampled":
        return [a[sampled] * ((v == sampled) - p[v]) for v in sorted(everything)]
    if objective.form == "full":
        if objective.divergence == "forward":
            return [p[v] - q[v] for v in sorted(everything)]
        return [p[v] * (a[v] - kl(p, q)) for v in sorted(everything)]
    chosen = support_of(objective.support, student, teacher, objective.k)
    rule = {
        ("stop_gradient", "reverse"): _stop_gradient_reverse,
        ("stop_gradient", "forward"): _stop_gradient_forward,
        ("renormalised", "reverse"): _renormalised_reverse,
        ("renormalised", "forward"): _renormalised_forward,
        ("tail_bucket", "reverse"): _tail_reverse,
        ("tail_bucket", "forward"): _tail_forward,
    }[objective.normalisation, objective.divergence]
    return rule(student, teacher, chosen)


def _stop_gradient_reverse(student: Row, teacher: Row, chosen: set[int]) -> Row:
    p = [math.exp(x) for x in student]
    a = [x - y for x, y in zip(student, teacher, strict=True)]
    inside = sum(p[v] * a[v] for v in chosen)
    return [p[j] * (a[j] * (j in chosen) - inside) for j in range(len(p))]


def _stop_gradient_forward(student: Row, teacher: Row, chosen: set[int]) -> Row:
    p, q = [math.exp(x) for x in student], [math.exp(x) for x in teacher]
    inside = sum(p[v] - q[v] for v in chosen)
    return [(p[j] - q[j]) * (j in chosen) - p[j] * inside for j in range(len(p))]


def _renormalised_reverse(student: Row, teacher: Row, chosen: set[int]) -> Row:
    p, q = renormalise(student, chosen), renormalise(teacher, chosen)
    a = {v: math.log(p[v]) - math.log(q[v]) for v in chosen}
    divergence = sum(p[v] * a[v] for v in chosen)
    return [p[j] * (a[j] - divergence) if j in chosen else 0.0 for j in range(len(student))]


def _renormalised_forward(student: Row, teacher: Row, chosen: set[int]) -> Row:
    p, q = renormalise(student, chosen), renormalise(teacher, chosen)
    return [p[j] - q[j] if j in chosen else 0.0 for j in range(len(student))]


def _tail_reverse(student: Row, teacher: Row, chosen: set[int]) -> Row:
    divergence = kl(with_tail(student, chosen), with_tail(teacher, chosen))
    tail = math.log(tail_mass(student, chosen)) - math.log(tail_mass(teacher, chosen))
    return [
        math.exp(x) * ((x - teacher[j] if j in chosen else tail) - divergence)
        for j, x in enumerate(student)
    ]


def _tail_forward(student: Row, teacher: Row, chosen: set[int]) -> Row:
    ratio = tail_mass(teacher, chosen) / tail_mass(student, chosen)
    return [
        math.exp(x) - math.exp(teacher[j]) if j in chosen else math.exp(x) * (1 - ratio)
        for j, x in enumerate(student)
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
