"""What a probe measures: identities, independent references, and the laboratory's known figures."""

from dataclasses import replace
from statistics import fmean

import pytest
import torch
from transformers import AutoModelForCausalLM

from opdcore.contract.distill import DistillStage
from opdcore.contract.probe import PROBE_METRICS, Probe
from opdcore.diagnosis.answers import TEACHER, answer
from opdcore.diagnosis.probe import measure
from opdcore.diagnosis.scored import likelihood, objective_of, score, style_mass
from opdcore.workspace import Workspace, prepare
from tests.opdcore.diagnoses import SUMS, diagnosis_of, make_job, shipped_diagnosis
from tests.opdcore.jobs import by_kind, events_of

HAND_OFFS = ("hand_off_25", "hand_off_50", "hand_off_75", "hand_off_min")


@pytest.fixture
def workspace(tmp_path):
    from contextlib import ExitStack

    with ExitStack() as stack:

        def make(**knobs) -> Workspace:
            *_, work = prepare(
                make_job(**knobs), tmp_path, stop=lambda: False, stack=stack, resumed=False
            )
            return work

        yield make


def probed(work: Workspace, **options) -> Probe:
    *_, probe = measure(work.job.recipe.stages[0], work, **options)
    return probe


def logprobs(model: str, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    """Of every token (T, V) after the prompt's last, by transformers alone."""
    reference = AutoModelForCausalLM.from_pretrained(SUMS / model)
    with torch.no_grad():
        logits = reference(torch.tensor([[*prompt, *response]])).logits[0]
    return logits[len(prompt) - 1 :].log_softmax(-1)


def test_a_teacher_that_is_the_student_agrees_with_it_everywhere():
    diagnosis = shipped_diagnosis("student")
    found = {key: one.value for key, one in diagnosis.probe.measures.items()}
    for key in ("overlap_ratio", "effective_overlap", "top1_agreement"):
        assert found[key] == 1
    for key in ("reverse_kl", "forward_kl", "token_reward", "entropy_gap", "first_loss"):
        assert found[key] == pytest.approx(0, abs=1e-6)
    assert found["grad_norm"] == pytest.approx(0, abs=1e-5)
    assert found["student_accuracy"] == found["teacher_accuracy"]
    assert diagnosis.verdict.code == "NO_NEW_KNOWLEDGE"


def test_a_teacher_that_is_the_student_gains_nothing_by_going_on():
    measures = shipped_diagnosis("student").probe.measures
    for key in HAND_OFFS:
        assert measures[key].low < 0 < measures[key].high
        assert measures[key].value == 0


def test_the_same_weights_are_found_before_anything_is_sampled():
    probe = shipped_diagnosis("student").probe
    assert [one.code for one in probe.findings] == ["setup.same_weights"]
    assert (probe.provenance.relation, probe.provenance.stated) == ("identical", False)


def test_the_laboratory_s_success_shows_its_known_figures():
    diagnosis = shipped_diagnosis("teacher")
    found = {key: one.value for key, one in diagnosis.probe.measures.items()}
    assert found["overlap_ratio"] == pytest.approx(0.82, abs=0.03)
    assert found["effective_overlap"] == pytest.approx(0.95, abs=0.04)
    assert 0.05 < found["reverse_kl"] < 0.3
    assert found["style_mass"] > 0.95
    assert found["teacher_on_failed"] > 0.8
    assert found["hand_off_min"] > -0.1
    assert diagnosis.probe.measures["hand_off_25"].value > 0.1
    assert diagnosis.verdict.go == "go"


def test_the_laboratory_s_mismatch_shows_its_known_figures():
    diagnosis = shipped_diagnosis("teacher_other_style")
    found = {key: one.value for key, one in diagnosis.probe.measures.items()}
    assert 0.3 < found["overlap_ratio"] < 0.45
    assert found["effective_overlap"] < 0.2
    assert found["top1_agreement"] < 0.25
    assert found["reverse_kl"] > 6
    assert found["style_mass"] < 0.003
    assert found["hand_off_min"] < -0.1
    assert found["teacher_accuracy"] > 0.8
    assert diagnosis.verdict.code == "PATTERN_MISMATCH"


def test_a_probe_with_a_verifier_fills_every_probe_metric():
    assert shipped_diagnosis("teacher").probe.measures.keys() == PROBE_METRICS.keys()


def test_every_interval_holds_its_value():
    for one in shipped_diagnosis("teacher").probe.measures.values():
        if one.low is not None:
            assert one.low <= one.value <= one.high


def test_chunks_cover_every_token_of_the_student_s_rollouts():
    probe = shipped_diagnosis("teacher").probe
    length = probe.measures["response_tokens_mean"].value
    written = length * probe.prompts * probe.rollouts_per_prompt
    assert sum(probe.chunks.positions) == pytest.approx(written)
    assert probe.chunks.edges[0] == 0
    assert len(probe.chunks.values["top1_agreement"]) == len(probe.chunks.edges) - 1


def test_hand_offs_stand_shallowest_first_with_fixed_depths_after_shares(workspace):
    work = workspace(prompts=8, rollouts_per_prompt=1, hand_off_tokens=(20, 10))
    depths = probed(work).hand_off
    places = [(one.share, one.tokens) for one in depths]
    assert places == [(0.25, None), (0.5, None), (0.75, None), (None, 10), (None, 20)]
    for one in depths:
        assert one.gain.value == pytest.approx(one.teacher.value - one.student.value)


def test_the_likelihood_of_the_teacher_s_text_is_what_transformers_says(workspace):
    work = workspace(prompts=8)
    stage, rows = work.job.recipe.stages[0], sorted(work.prompt_ids)[:2]
    theirs = answer(stage, work, rows, side=TEACHER, seed=3)
    found = likelihood(work, objective_of(stage, ()), theirs)
    for row in rows:
        naive = []
        for at, rollout in zip(theirs.rows, theirs.rollouts, strict=True):
            if at == row:
                table = logprobs("student", work.prompt_ids[row][0], rollout.ids)
                naive += [-table[t, token].item() for t, token in enumerate(rollout.ids)]
        assert found[row] == pytest.approx(fmean(naive), rel=1e-4)


def test_the_mass_on_the_teacher_s_style_is_what_transformers_says(workspace):
    work = workspace(prompts=8)
    row = min(work.prompt_ids)
    found = style_mass(work, objective_of(work.job.recipe.stages[0], ()), [row])[row]
    ids = work.prompt_ids[row][0]
    student, teacher = (logprobs(one, ids, ())[0].exp().tolist() for one in ("student", "teacher"))
    held, naive = 0.0, 0.0
    for token in sorted(range(len(teacher)), key=lambda token: -teacher[token]):
        if held >= 0.95:
            break
        held, naive = held + teacher[token], naive + student[token]
    assert found == pytest.approx(naive, rel=1e-4)


def test_the_loss_by_prompt_is_the_mean_over_its_tokens(workspace):
    work = workspace(prompts=8)
    stage, rows = work.job.recipe.stages[0], sorted(work.prompt_ids)[:3]
    full = DistillStage(form="full")
    ours = answer(stage, work, rows, side=0, seed=3)
    found = score(stage, work, objective_of(stage, [full]), ours).values
    # Over the full vocabulary the objective is the reverse KL itself.
    for row in rows:
        assert found["first_loss"][row] == pytest.approx(found["reverse_kl"][row], rel=1e-4)


def test_a_probe_leaves_weights_as_they_were_and_no_gradient(workspace):
    work = workspace(prompts=8, rollouts_per_prompt=1, tiers=("static", "scored"))
    before = [one.detach().clone() for one in work.student.model.parameters()]
    probe = probed(work)
    assert probe.measures["grad_norm"].value > 0
    for was, one in zip(before, work.student.model.parameters(), strict=True):
        assert one.grad is None
        assert torch.equal(was, one)


def test_the_same_seed_gives_the_same_measures(workspace):
    work = workspace(prompts=8, rollouts_per_prompt=1, tiers=("static", "scored"))
    assert probed(work).measures == probed(work).measures


def test_without_a_verifier_only_what_needs_none_is_measured(workspace):
    probe = probed(workspace(prompts=8, rollouts_per_prompt=1, verifier="none"))
    assert probe.verifier == "none"
    assert probe.tiers == ("static", "scored")
    assert probe.hand_off == ()
    assert (
        not {"student_accuracy", "accuracy_gap", "reward_auroc", *HAND_OFFS} & probe.measures.keys()
    )
    assert {"overlap_ratio", "style_mass", "grad_norm"} <= probe.measures.keys()


def test_a_settled_probe_ends_at_the_look_that_settled_it(workspace):
    work = workspace(prompts=24, rollouts_per_prompt=1, tiers=("static", "scored"))
    asked = []

    def settled(probe: Probe) -> bool:
        asked.append(probe.prompts)
        return len(asked) == 2

    probe = probed(work, settled=settled)
    assert (probe.looks, probe.prompts, asked) == (2, 16, [8, 16])


def test_intervals_at_looks_are_wider_than_without_looks(workspace):
    work = workspace(prompts=9, rollouts_per_prompt=1, tiers=("static", "scored"))
    plain = probed(work).measures["reverse_kl"]
    looked = probed(work, settled=lambda probe: False).measures["reverse_kl"]
    assert looked.value == plain.value
    assert looked.low < plain.low
    assert looked.high > plain.high


def test_the_planned_run_pays_for_its_probe(workspace):
    work = workspace(prompts=64, rollouts_per_prompt=1, tiers=("static", "scored"))
    planned = [DistillStage(steps=40, prompts_per_step=32, rollouts_per_prompt=1)]
    told = list(measure(work.job.recipe.stages[0], work, planned=planned))
    probe = told[-1]
    # 3 % of 1,280 rollouts, of which each prompt takes two: one of either side.
    assert probe.prompts == pytest.approx(19, abs=2)
    assert "budget" in next(one.message for one in told if getattr(one, "level", "") == "warning")
    spent = probe.student_tokens + probe.teacher_tokens
    assert spent <= 0.035 * 1280 * probe.measures["response_tokens_mean"].value


def test_a_tiny_run_still_gets_eight_prompts(workspace):
    work = workspace(prompts=24, rollouts_per_prompt=1, tiers=("static", "scored"))
    planned = [DistillStage(steps=1, prompts_per_step=1)]
    assert probed(work, planned=planned).prompts == 8


def test_given_rollouts_are_measured_and_nothing_is_sampled_of_the_student(workspace):
    work = workspace(prompts=8, rollouts_per_prompt=1, tiers=("static", "scored"))
    stage, rows = work.job.recipe.stages[0], sorted(work.prompt_ids)[:3]
    ours = answer(stage, work, rows, side=0, seed=3)
    probe = probed(
        work, given={row: [one] for row, one in zip(ours.rows, ours.rollouts, strict=True)}
    )
    assert (probe.prompts, probe.student_tokens) == (3, 0)
    assert probe.measures["response_tokens_mean"].value == pytest.approx(ours.tokens / 3)


def test_a_wish_to_stop_ends_a_probe(workspace):
    from opdcore.contract.errors import Cancelled

    work = replace(workspace(prompts=8), stop=lambda: True)
    with pytest.raises(Cancelled):
        probed(work)


def test_a_recipe_that_only_diagnoses_trains_nothing_and_writes_no_output(tmp_path):
    events = events_of(
        make_job(prompts=8, rollouts_per_prompt=1, held_out=SUMS / "held_out.jsonl"), tmp_path
    )
    kinds = [event.kind for event in events]
    assert kinds[-3:] == ["diagnosis", "stage_finished", "job_finished"]
    assert not {"artifact", "evaluation", "metrics"} & set(kinds)
    assert events[-1].payload.status == "succeeded"
    assert events[-1].payload.outcome.code == "unmeasured"


def test_pairs_with_different_token_maps_are_diagnosed_without_a_rollout(tmp_path):
    from opdcore.lab.record import shipped

    found = diagnosis_of(make_job(shipped("cups") / "teacher"), tmp_path)
    assert (found.verdict.code, found.verdict.go) == ("INVALID_SETUP", "no_go")
    assert (found.probe.tiers, found.probe.student_tokens) == (("static",), 0)


def test_a_run_that_diagnoses_first_still_evaluates_before_its_first_step(tmp_path):
    distill = {
        "kind": "distill", "steps": 1, "prompts_per_step": 2, "rollouts_per_prompt": 1,
        "max_prompt_tokens": 128, "max_response_tokens": 96,
    }  # fmt: skip
    job = make_job(
        prompts=8, rollouts_per_prompt=1, stages=(distill,), held_out=SUMS / "held_out.jsonl"
    )
    events = events_of(job, tmp_path)
    told = [(event.kind, event.stage_index, event.step) for event in events]
    first = told.index(("evaluation", 1, 0))
    assert told.index(("diagnosis", 0, None)) < first < told.index(("metrics", 1, 1))
    assert events[-1].payload.outcome.before is not None
    assert "output" in [event.payload.artifact_kind for event in by_kind(events, "artifact")]
