"""Rescue plans: what each verdict is answered with, where a child starts, and what proves it."""

from contextlib import suppress
from itertools import product

import pytest
from pydantic import ValidationError

from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.distill import DistillStage
from opdcore.contract.outcome import judge
from opdcore.contract.positions import Positions
from opdcore.contract.recipe import Recipe
from opdcore.contract.rescue import History, Spot
from opdcore.contract.select_prompts import SelectPromptsStage
from opdcore.contract.verdicts import VERDICTS, Evidence, Verdict
from opdcore.rescue import parted_tokens, plan, prove, sound_tokens
from opdcore.rescue.cures import CURES
from opdcore.rescue.offers import OFFERED

NOTHING_NEW = ("NO_NEW_KNOWLEDGE", "REGRESSION_RISK", "STALLED_NO_SIGNAL")


def recipe(*before, name="plain", **knobs) -> Recipe:
    told = {"steps": 100, "prompts_per_step": 64, "rollouts_per_prompt": 1, "learning_rate": 1e-3}
    return Recipe(name=name, stages=(*before, DistillStage.model_validate(told | knobs)))


def verdict(code: str, confidence="high") -> Verdict:
    rows = (Evidence(metric="reverse_kl", value=7.0, step=30),)
    return Verdict(
        code=code, go=VERDICTS[code].go, confidence=confidence, evidence=rows, explanation="Why."
    )


def failed_at(step: int, *kept: int, **told) -> History:
    spots = tuple(Spot(stage_index=0, step=one) for one in kept)
    return History(failing=Spot(stage_index=0, step=step), checkpoints=spots, **told)


def test_every_verdict_that_speaks_against_a_run_has_a_cure_or_an_offer():
    answered = set(CURES) | set(OFFERED)
    assert set(VERDICTS) - answered == {"GO", "HEALTHY"}


@pytest.mark.parametrize("code", sorted(CURES))
def test_every_cure_gives_a_sound_recipe_whose_changes_say_why(code):
    history = failed_at(60, 20, 40, best_accuracy=0.2, teacher_accuracy=0.9)
    found = plan(verdict(code), recipe(k=2), history)
    assert found.changes
    assert found.expected
    for change in found.changes:
        assert change.reason.endswith(".")
        _, place, *knob = change.path.split(".")
        stage = found.recipe.stages[int(place)]
        assert (getattr(stage, knob[0]) if knob else stage.kind) == change.after


def objectives():
    """Every sound combination of the knobs that bind one another."""
    choices = {
        "form": ("top_k", "sampled", "full"),
        "divergence": ("reverse", "forward", "jsd"),
        "normalisation": ("stop_gradient", "renormalised", "tail_bucket", "unnormalised"),
        "sampled_loss": ("policy_gradient", "k2"),
        "k": (1, 16),
        "reward_clamp": (None, 3.0),
        "reward_power": (0.0, 1.0),
        "extrapolation": (1.0, 1.2),
        "tuning": ("full", "lora"),
    }
    for values in product(*choices.values()):
        with suppress(ValidationError):
            yield recipe(**dict(zip(choices, values, strict=True)))


@pytest.mark.parametrize("code", sorted(VERDICTS))
def test_a_sound_recipe_is_answered_by_a_sound_one_whatever_its_objective(code):
    history = failed_at(
        60, 20, start_overlap=0.9, best_accuracy=0.2, teacher_accuracy=0.9, demonstrations=True
    )
    answered = [plan(verdict(code), old, history) for old in objectives()]
    assert len(answered) > 100
    for found in answered:
        assert (found.recipe is None) == (found.changes == ())


@pytest.mark.parametrize("code", ["PATTERN_MISMATCH", "STALLED_MISMATCH", "STUDENT_MALFORMED"])
def test_other_ways_of_thinking_are_answered_with_a_cold_start_from_the_runs_own_beginning(code):
    old = recipe(max_response_tokens=128, tuning="lora")
    found = plan(verdict(code), old, failed_at(60, 20, 40))
    cold, distill = found.recipe.stages
    assert found.start is None
    assert distill == old.stages[0].model_copy(update={"normalisation": "renormalised"})
    assert isinstance(cold, ColdStartStage)
    times = 4 if code == "STUDENT_MALFORMED" else 1
    assert (cold.prompts, cold.steps, cold.max_response_tokens) == (640 * times, 48 * times, 128)
    assert (cold.tuning, cold.source) == ("lora", "teacher")
    assert found.changes[0].evidence[0].value == 7.0


def test_a_second_cold_start_is_larger_and_comes_with_a_caution():
    once = plan(verdict("PATTERN_MISMATCH"), recipe(), History())
    at_distill = History(failing=Spot(stage_index=1, step=60))
    twice = plan(verdict("STALLED_MISMATCH"), once.recipe, at_distill)
    sizes = [one.prompts for one in twice.recipe.stages if isinstance(one, ColdStartStage)]
    assert sizes == [640, 2560]
    assert any("not enough" in caution for caution in twice.cautions)


@pytest.mark.parametrize("code", NOTHING_NEW)
def test_a_teacher_with_nothing_new_is_never_answered_with_training(code):
    found = plan(verdict(code), recipe(), failed_at(60, 20, verifier=True))
    assert (found.recipe, found.changes) == (None, ())
    assert [offer.kind for offer in found.offers] == ["other_teacher", "reinforce"]
    unverified = plan(verdict(code), recipe(), failed_at(60, 20))
    assert [offer.kind for offer in unverified.offers] == ["other_teacher"]


def test_a_collapse_goes_on_from_the_newest_checkpoint_that_was_surely_sound():
    found = plan(verdict("REPETITION_COLLAPSE"), recipe(), failed_at(60, 20, 40, 50, 60))
    assert found.start == Spot(stage_index=0, step=40)
    assert found.recipe.stages[0].steps == 60
    assert found.recipe.stages[0].initial_kl_weight > 0
    early = plan(verdict("REPETITION_COLLAPSE"), recipe(), failed_at(30, 20))
    assert (early.start, early.recipe.stages[0].steps) == (None, 100)


@pytest.mark.parametrize("code", ["REPETITION_COLLAPSE", "DEPTH_COLLAPSE", "MODE_HACKING"])
def test_a_collapse_of_two_sides_that_never_agreed_is_answered_with_a_cold_start(code):
    agreed = plan(verdict(code), recipe(), failed_at(60, 20, start_overlap=0.8))
    assert [stage.kind for stage in agreed.recipe.stages] == ["distill"]
    apart = plan(verdict(code), recipe(), failed_at(60, 20, start_overlap=0.3))
    assert [stage.kind for stage in apart.recipe.stages] == ["cold_start", "distill"]
    assert apart.start is None
    why = apart.changes[0]
    assert why.reason.startswith("Both sides differed from the first token on")
    assert (why.evidence[0].metric, why.evidence[0].value) == ("effective_overlap", 0.3)


def test_a_damaged_student_gets_a_larger_cold_start_than_one_of_another_manner():
    code = "STALLED_MISMATCH"
    other = failed_at(60, 20, start_overlap=0.2, start_entropy_excess=-0.4)
    damaged = other.model_copy(update={"start_entropy_excess": 0.6})
    manner, whole = (
        plan(verdict(code), recipe(), one).recipe.stages[0] for one in (other, damaged)
    )
    assert (whole.prompts, whole.steps) == (4 * manner.prompts, 4 * manner.steps)
    malformed = plan(verdict("STUDENT_MALFORMED"), recipe(), other).recipe.stages[0]
    assert malformed.steps == whole.steps


def test_a_student_that_unlearns_what_its_teacher_has_is_rescued_and_else_keeps_its_checkpoint():
    best = Spot(stage_index=0, step=20)
    lacks = failed_at(60, 20, best=best, best_accuracy=0.9, teacher_accuracy=0.5)
    found = plan(verdict("OVERWRITE"), recipe(), lacks)
    assert found.recipe is None
    assert found.offers[0].kind == "keep_checkpoint"
    has = failed_at(60, 20, best_accuracy=0.4, teacher_accuracy=0.9, start_overlap=0.8)
    assert plan(verdict("OVERWRITE"), recipe(), has).start == best
    apart = has.model_copy(update={"start_overlap": 0.3})
    assert plan(verdict("OVERWRITE"), recipe(), apart).recipe.stages[0].kind == "cold_start"


def test_rolling_back_leaves_out_the_stages_that_were_done_before_the_checkpoint():
    old = recipe(ColdStartStage(steps=8))
    history = History(
        failing=Spot(stage_index=1, step=60), checkpoints=(Spot(stage_index=1, step=20),)
    )
    found = plan(verdict("DEPTH_COLLAPSE"), old, history)
    assert [stage.kind for stage in found.recipe.stages] == ["distill"]
    assert found.recipe.stages[0].steps == 80


def test_rolling_back_keeps_the_choice_of_prompts_that_the_distillation_draws_from():
    old = recipe(SelectPromptsStage(strategy="random"), ColdStartStage(steps=8))
    history = History(
        failing=Spot(stage_index=2, step=60), checkpoints=(Spot(stage_index=2, step=20),)
    )
    found = plan(verdict("DEPTH_COLLAPSE"), old, history)
    assert [stage.kind for stage in found.recipe.stages] == ["select_prompts", "distill"]
    assert found.recipe.stages[1].steps == 80
    assert found.changes[0].path == "stages.1.steps"


def test_an_unsound_objective_is_replaced_and_one_that_is_sound_is_left_alone():
    unsound = recipe(normalisation="unnormalised")
    found = plan(verdict("BIASED_TOPK"), unsound, failed_at(10))
    assert found.recipe.stages[0].normalisation == "stop_gradient"
    assert plan(verdict("BIASED_TOPK"), recipe(), failed_at(10)).recipe is None


def test_the_horizon_is_cut_where_overlap_was_seen_to_end():
    found = plan(verdict("HORIZON_RISK"), recipe(), History(sound_tokens=48))
    assert found.recipe.stages[0].loss_prefix_tokens == 48
    assert found.cautions == ()
    unknown = plan(verdict("HORIZON_RISK"), recipe(max_response_tokens=100), History())
    assert unknown.recipe.stages[0].loss_prefix_tokens == 50
    assert "guess" in unknown.cautions[0]


def test_a_verdict_of_low_confidence_comes_with_a_caution():
    sure = plan(verdict("PATTERN_MISMATCH"), recipe(), History())
    unsure = plan(verdict("PATTERN_MISMATCH", "low"), recipe(), History())
    assert len(unsure.cautions) == len(sure.cautions) + 1


def test_the_plan_keeps_the_name_within_bounds_and_the_rest_of_the_recipe_as_it_was():
    old = recipe(name="n" * 120)
    found = plan(verdict("MODE_HACKING"), old, History())
    assert found.recipe.name.endswith(", rescued")
    assert found.recipe.model_copy(update={"name": old.name, "stages": old.stages}) == old


def chunks(*overlap: float, positions=(90, 90, 90, 90)) -> Positions:
    return Positions(
        edges=(0, 10, 20, 30, 40), positions=positions, values={"effective_overlap": overlap}
    )


def starts(nats, overlap=(0.9, 0.9, 0.9, 0.9)) -> Positions:
    values = {"reverse_kl": nats, "effective_overlap": overlap}
    return Positions(edges=(0, 10, 20, 30, 40), positions=(90,) * 4, values=values)


def test_sides_part_where_they_agree_before_and_not_after():
    assert parted_tokens(starts((0.2, 0.3, 1.4, 3.0))) == 20
    assert parted_tokens(starts((0.2, 0.3, 0.9, 0.9))) is None
    assert parted_tokens(starts((3.0, 3.0, 4.0, 5.0))) is None
    assert parted_tokens(starts((0.5, 1.5, 1.5, 1.5), (0.8, 0.5, 0.5, 0.5))) == 10
    assert parted_tokens(starts((0.5, 1.5, 1.5, 1.5), (0.4, 0.3, 0.3, 0.3))) is None


@pytest.mark.parametrize("code", ["HORIZON_RISK", "REPETITION_COLLAPSE", "DEPTH_COLLAPSE"])
def test_sides_that_part_at_a_depth_are_answered_with_a_cold_start(code):
    found = plan(verdict(code), recipe(), failed_at(20, parted_tokens=24, start_overlap=0.8))
    assert [stage.kind for stage in found.recipe.stages] == ["cold_start", "distill"]


def test_overlap_ends_where_it_is_low_or_fell():
    sound = chunks(0.9, 0.9, 0.8, 0.7)
    assert sound_tokens(sound, sound) is None
    assert sound_tokens(sound, chunks(0.9, 0.9, 0.65, 0.7)) == 20
    assert sound_tokens(sound, chunks(0.1, 0.5, 0.9, 0.9)) == 10
    few = chunks(0.9, 0.9, 0.9, 0.1, positions=(90, 90, 90, 2))
    assert sound_tokens(sound, few) is None


BEFORE, LOW, HIGH = [0.0] * 100, [0.0] * 80 + [1.0] * 20, [0.0] * 10 + [1.0] * 90
TEACHER = [1.0] * 100


def test_a_rescue_is_proven_by_success_that_beats_every_other_arm():
    child = judge(BEFORE, HIGH, TEACHER)
    arms = {"child_scores": HIGH, "parent_scores": LOW, "teacher_scores": TEACHER}
    proof = prove(child, **arms)
    assert proof.code == "rescued"
    assert proof.against_parent.gain == pytest.approx(0.7)
    assert proof.against_control is None
    tied = prove(child, **arms, control_scores=HIGH)
    assert tied.code == "inconclusive"
    assert "the control arm's" in tied.explanation


def test_a_child_that_goes_on_from_a_checkpoint_is_judged_from_its_parents_start():
    from_checkpoint = judge(HIGH, HIGH, TEACHER)
    assert from_checkpoint.code == "no_gain"
    proof = prove(
        from_checkpoint,
        before_scores=BEFORE,
        child_scores=HIGH,
        parent_scores=LOW,
        teacher_scores=TEACHER,
    )
    assert (proof.code, proof.outcome.recovery) == ("rescued", pytest.approx(0.9))


def test_a_child_that_gains_half_as_much_is_partly_rescued_and_one_that_does_not_is_not():
    partly = judge(BEFORE, LOW, TEACHER)
    assert prove(partly, child_scores=LOW, parent_scores=BEFORE).code == "partly"
    nothing = judge(LOW, LOW, TEACHER)
    assert prove(nothing, child_scores=LOW, parent_scores=LOW).code == "not_rescued"
    few = judge(BEFORE[:2], BEFORE[:2], TEACHER[:2])
    assert prove(few).code == "inconclusive"


def test_a_plan_loosens_nothing_that_the_recipe_holds_tighter():
    sound = failed_at(60, 20, sound_tokens=300)
    found = plan(verdict("HORIZON_RISK"), recipe(loss_prefix_tokens=100), sound)
    assert found.recipe is None
    masked = plan(verdict("MODE_HACKING"), recipe(token_mask="special_and_stop"), failed_at(20))
    assert masked.recipe is None


def test_what_is_doubled_stays_within_what_its_knob_allows():
    held = plan(verdict("REPETITION_COLLAPSE"), recipe(initial_kl_weight=80.0), failed_at(20))
    assert held.recipe.stages[0].initial_kl_weight == 100.0
    kept = recipe(high_entropy_forward_weight=8.0)
    varied = plan(verdict("ENTROPY_COLLAPSE_RISK"), kept, failed_at(20))
    assert varied.recipe.stages[0].high_entropy_forward_weight == 10.0


def test_a_cold_start_asks_for_no_more_responses_than_there_are_prompts():
    few = failed_at(60, 20, prompts=50)
    cold = plan(verdict("PATTERN_MISMATCH"), recipe(), few).recipe.stages[0]
    assert (cold.prompts, cold.held_out_prompts) == (40, 10)


def test_whole_numbers_of_a_change_stay_whole():
    found = plan(verdict("TOP1_INSTABILITY"), recipe(k=1), failed_at(60, 20, 40))
    told = {change.path: (change.before, change.after) for change in found.changes}
    assert all(isinstance(one, int) for path in told for one in told[path])
