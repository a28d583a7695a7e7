"""Cures: for each verdict that training can answer, what the recipe does otherwise.

A cure turns knobs of the draft and says what should be seen if it works. Figures without a source
are our choice, tried on the laboratory's runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.distill import DistillStage
from opdcore.contract.rescue import History, Spot
from opdcore.contract.verdicts import Evidence, Verdict
from opdcore.monitor import CALLED_WITHIN
from opdcore.rescue.depth import LIMITS
from opdcore.rescue.draft import Draft, Reason

# A cold start's responses, against the rollouts that the distillation will take.
COLD_SHARE = 0.1
FEWEST_RESPONSES, MOST_RESPONSES = 48, 20_000
RESPONSES_PER_STEP = 32
FEWEST_STEPS, EPOCHS = 48, 2
# Peak learning rates of supervised fine-tuning (2604.13016, Table 3), full and by adapters; and the
# least, against that of the distillation.
COLD_RATE, COLD_LORA_RATE, FASTER = 1e-5, 1e-4, 2
# A second cold start takes so many times as much as a first, and so does that of a damaged student: in
# the laboratory a first one's recovered .6 of the gap for those, four times as much .9.
LARGER = 4
# Stable-OPD (2604.08527) mixes in demonstrations and holds the student near its start.
KL_WEIGHT, GOLD_WEIGHT = 0.1, 0.1
# What the knobs allow.
MOST_KL_WEIGHT, MOST_FORWARD_WEIGHT = 100.0, 10.0
# A collapse is a sign of too large steps too; our choice.
SLOWER = 0.25
USUAL_K = 16
REWARD_CLAMP = 5.0
FORWARD_WEIGHT = 0.5


class Told(NamedTuple):
    """What should be seen if a cure works, and why it may not."""

    expected: str
    cautions: tuple[str, ...] = ()


Cure = Callable[[Draft, Verdict, History], Told]


def start_cold(draft: Draft, verdict: Verdict, history: History) -> Told:
    """A short supervised stage on the teacher's responses, before the same distillation."""
    again = any(isinstance(one, ColdStartStage) for one in draft.recipe.stages)
    damaged = verdict.code == "STUDENT_MALFORMED" or _damaged(history)
    times = LARGER if again or damaged else 1
    stage = cold_start(draft.stage, times=times, prompts=history.prompts)
    draft.insert(
        stage,
        Reason(
            f"{_apart(verdict, history)}{stage.prompts} responses of the teacher "
            f"{'teach the student to write again' if damaged else 'bring the student to its manner'} "
            "first; it begins at the weights before this run, since damage done early is not mended later.",
            (*_first_overlap(history), *verdict.evidence),
            "2604.13016, 5.1",
        ),
    )
    _keep_mass(draft, verdict)
    cautions = ["A cold start brings no knowledge that the teacher lacks."]
    if again:
        cautions.append(
            "This recipe has a cold start already, which was not enough; a larger one may not be "
            "either."
        )
    return Told(
        "Effective overlap is higher from the first step of the distillation on, and held-out "
        "accuracy climbs.",
        tuple(cautions),
    )


def _apart(verdict: Verdict, history: History) -> str:
    """Why a verdict that does not speak of two manners is answered as if it did."""
    if verdict.code in ("PATTERN_MISMATCH", "STALLED_MISMATCH", "STUDENT_MALFORMED"):
        return ""
    where = f"token {history.parted_tokens}" if history.parted_tokens else "the first token"
    return f"Both sides differed from {where} on before anything was learned, and this follows: "


def _damaged(history: History) -> bool:
    """Whether the student agreed with the teacher on little, and was unsure of its own words too."""
    overlap, excess = history.start_overlap, history.start_entropy_excess
    if overlap is None or excess is None:
        return False
    return overlap < LIMITS.incompatible_overlap and excess > 0


def _first_overlap(history: History) -> tuple[Evidence, ...]:
    """The effective overlap of the first steps, where it was measured."""
    if history.start_overlap is None:
        return ()
    return (Evidence(metric="effective_overlap", value=history.start_overlap, step=1),)


def cold_start(
    stage: DistillStage, *, times: int = 1, prompts: int | None = None
) -> ColdStartStage:
    """A cold start in proportion to a distillation, of at most so many prompts as there are."""
    rollouts = stage.steps * stage.prompts_per_step * stage.rollouts_per_prompt
    wanted = times * math.ceil(COLD_SHARE * rollouts)
    responses = min(max(times * FEWEST_RESPONSES, wanted), MOST_RESPONSES)
    if prompts is not None:
        # One response each, and a fifth is held out.
        responses = max(1, min(responses, prompts * 4 // 5))
    steps = max(times * FEWEST_STEPS, math.ceil(EPOCHS * responses / RESPONSES_PER_STEP))
    return ColdStartStage(
        prompts=responses,
        held_out_prompts=min(64, responses // 4),
        steps=steps,
        responses_per_step=min(RESPONSES_PER_STEP, responses),
        max_prompt_tokens=stage.max_prompt_tokens,
        max_response_tokens=stage.max_response_tokens,
        tuning=stage.tuning,
        learning_rate=max(COLD_RATE, FASTER * stage.learning_rate),
        lora_learning_rate=max(COLD_LORA_RATE, FASTER * stage.lora_learning_rate),
        lora_rank=stage.lora_rank,
        lora_alpha=stage.lora_alpha,
        warmup_steps=math.ceil(0.05 * steps),
        weight_decay=stage.weight_decay,
        precision=stage.precision,
        micro_batch_tokens=stage.micro_batch_tokens,
    )


def shorten(draft: Draft, verdict: Verdict, history: History) -> Told:
    """Learn from the tokens at which the teacher's signal holds, and from no later ones."""
    sound, stage = history.sound_tokens, draft.stage
    trained = stage.loss_prefix_tokens or stage.max_response_tokens
    cautions: tuple[str, ...] = ()
    if sound is None:
        sound = math.ceil(trained / 2)
        cautions = ("Where the signal fades was not measured, so half of the length is a guess.",)
    draft.set(
        "loss_prefix_tokens",
        min(sound, trained),
        Reason(
            f"Up to token {sound} both sides still agree; later tokens would be taught by noise.",
            verdict.evidence,
            "2602.15260; 2604.13016, 6.1",
        ),
    )
    return Told(
        "Entropy of the last positions stays where it was, and overlap in the first ones goes on "
        "rising.",
        cautions,
    )


def mask_late(draft: Draft, verdict: Verdict, history: History) -> Told:
    """From before the decay on, leave out late positions for as long as overlap does not hold there."""
    _roll_back(draft, verdict, history)
    _keep_mass(draft, verdict)
    _slow_down(draft, verdict)
    draft.set(
        "mask_late_chunks",
        True,
        Reason(
            "Late tokens are taught by noise once overlap is lost there; they are learned from again "
            "when it holds.",
            verdict.evidence,
            "2604.13016, 6.1",
        ),
    )
    return Told(
        "Entropy of the last positions stays where it was, and overlap holds in all of them."
    )


def steady(draft: Draft, verdict: Verdict, history: History) -> Told:
    """Hold the student near its start, with demonstrations where there are any (Stable-OPD)."""
    _roll_back(draft, verdict, history)
    _keep_mass(draft, verdict)
    _slow_down(draft, verdict)
    why = "It holds the student near its start, away from endless and repeating responses."
    draft.set(
        "initial_kl_weight",
        min(max(KL_WEIGHT, 2 * draft.stage.initial_kl_weight), MOST_KL_WEIGHT),
        Reason(why, verdict.evidence, "2604.08527"),
    )
    if history.demonstrations:
        draft.set(
            "gold_sft_weight",
            max(GOLD_WEIGHT, 2 * draft.stage.gold_sft_weight),
            Reason("Demonstrations keep responses that end.", verdict.evidence, "2604.08527"),
        )
    return Told("Truncation and repetition stay low, and response length stays where it was.")


def normalise(draft: Draft, verdict: Verdict, history: History) -> Told:
    """A sound truncated objective, from before the mass was lost."""
    _sound_objective(draft, verdict)
    _roll_back(draft, verdict, history)
    return Told("The student's probability on the common tokens rises and stays above 97 %.")


def widen(draft: Draft, verdict: Verdict, history: History) -> Told:
    """More than one token of support."""
    _roll_back(draft, verdict, history)
    draft.set(
        "k", USUAL_K, Reason("A single token's signal spikes.", verdict.evidence, "2604.13016, 6.3")
    )
    return Told("Overlap, entropy and the gradient's norm change smoothly.")


def mask_special(draft: Draft, verdict: Verdict, history: History) -> Told:
    """Special tokens of the teacher are not learned."""
    _roll_back(draft, verdict, history)
    reason = Reason(
        "The teacher's control tokens are no part of what should be learned.",
        verdict.evidence,
        "2605.11182",
    )
    _mask_special(draft, reason)
    return Told("The share of control tokens goes back to what it was at the start.")


def bound_reward(draft: Draft, verdict: Verdict, history: History) -> Told:
    """Tokens that one side never writes are not learned, and other rewards are cut where they can be."""
    _roll_back(draft, verdict, history)
    reason = Reason(
        "A few tokens of tens of nats dominate the reward.", verdict.evidence, "2606.17199"
    )
    stage = draft.stage
    gradient = stage.form == "sampled" and stage.sampled_loss == "policy_gradient"
    if gradient and not stage.reward_power:
        draft.set("reward_clamp", min(REWARD_CLAMP, stage.reward_clamp or REWARD_CLAMP), reason)
    _mask_special(draft, reason)
    return Told("The heavy tail's share of the rewards falls, and the gradient is calm.")


def keep_variety(draft: Draft, verdict: Verdict, history: History) -> Told:
    """Forward KL where the teacher itself is uncertain."""
    _roll_back(draft, verdict, history)
    if draft.stage.divergence == "forward":
        return Told("", ("The objective covers the teacher's variety already.",))
    reason = Reason(
        "Where the teacher is uncertain, forward KL keeps the student from growing too certain.",
        verdict.evidence,
        "2603.07079",
    )
    twice = 2 * draft.stage.high_entropy_forward_weight
    weight = min(max(FORWARD_WEIGHT, twice), MOST_FORWARD_WEIGHT)
    draft.set("high_entropy_forward_weight", weight, reason)
    return Told("The student's entropy comes to the teacher's and no further down.")


def _mask_special(draft: Draft, reason: Reason) -> None:
    """Special tokens are not learned; a recipe that leaves out more goes on doing so."""
    if draft.stage.token_mask == "none":  # noqa: S105 (tokens of text)
        draft.set("token_mask", "special", reason)


def _sound_objective(draft: Draft, verdict: Verdict) -> None:
    why = Reason(
        "A truncated loss without normalisation drives probability out of its support.",
        verdict.evidence,
        "2605.11182",
    )
    if draft.stage.normalisation == "unnormalised":
        draft.set("normalisation", "stop_gradient", why)
    if draft.stage.form == "top_k" and draft.stage.k < 4:
        draft.set("k", USUAL_K, Reason("So small a support spikes.", (), "2604.13016, 6.3"))


def _keep_mass(draft: Draft, verdict: Verdict) -> None:
    """A truncated loss that pushes no probability out of its support.

    The stop-gradient loss shifts the logits of a support of mass M together by -M (1 - M) times the mean
    log-ratio of student to teacher: down, wherever the teacher prefers tokens that are not among the
    student's. Renormalised on the support, the loss does not depend on M. A clamp of its log-ratios is
    sound with the former alone.
    """
    _sound_objective(draft, verdict)
    stage = draft.stage
    if (stage.form, stage.divergence, stage.normalisation) != (
        "top_k",
        "reverse",
        "stop_gradient",
    ):
        return
    draft.set(
        "normalisation",
        "renormalised",
        Reason(
            "Where the teacher prefers tokens beyond the student's top k, the stop-gradient loss pushes "
            "probability out to tokens that nothing is said about; renormalised, it does not.",
            verdict.evidence,
            "2605.11182",
        ),
    )
    why = "Only the stop-gradient loss can be clamped without a bias."
    draft.set("reward_clamp", None, Reason(why))


def _slow_down(draft: Draft, verdict: Verdict) -> None:
    """Smaller updates, where they drove the student away."""
    name = "lora_learning_rate" if draft.stage.tuning == "lora" else "learning_rate"
    draft.set(
        name,
        SLOWER * draft.stage.peak_learning_rate,
        Reason(
            "Smaller updates leave the student time to follow: what is learned at such a pace from "
            "noise is not unlearned.",
            verdict.evidence,
        ),
    )


def _roll_back(draft: Draft, verdict: Verdict, history: History) -> None:
    """Goes on from the newest checkpoint that was surely sound; where none is kept, begins again."""
    if history.failing is None:
        return
    last = history.failing.step - CALLED_WITHIN
    sound = [
        spot
        for spot in history.checkpoints
        if spot.stage_index == draft.stage_index and 0 < spot.step <= last
    ]
    if not sound or draft.stage.tuning == "lora":
        return
    spot: Spot = max(sound, key=lambda one: one.step)
    draft.start_from(
        spot,
        Reason(
            f"It goes on from step {spot.step}, before the run failed, for the steps that were left.",
            verdict.evidence,
            "2604.08527",
        ),
    )


CURES: dict[str, Cure] = {
    "STUDENT_MALFORMED": start_cold,
    "PATTERN_MISMATCH": start_cold,
    "STALLED_MISMATCH": start_cold,
    "HORIZON_RISK": shorten,
    "DEPTH_COLLAPSE": mask_late,
    "AGREEMENT_TRAP": shorten,
    "OVERWRITE": steady,
    "REPETITION_COLLAPSE": steady,
    "BIASED_TOPK": normalise,
    "BAD_OBJECTIVE": normalise,
    "TOP1_INSTABILITY": widen,
    "MODE_HACKING": mask_special,
    "HEAVY_TAIL_REWARD": bound_reward,
    "ENTROPY_COLLAPSE_RISK": keep_variety,
}
