"""From a failing run's rows to its child: the history, the plan, what is launched, what is refused."""

import json

import pytest
from django.core.exceptions import PermissionDenied
from django.core.files.storage import storages
from django.core.files.uploadedfile import SimpleUploadedFile

from opdcore.contract.errors import BadInput
from opdcore.contract.events import Health
from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.contract.rescue import Spot
from tests.webapp.diagnoses import make_verdict
from tests.webapp.rescues import (
    keep_checkpoint,
    make_failing,
    tell,
    tell_accuracy,
    tell_overlap,
    tell_positions,
)
from tests.workers.rows import make_run
from webapp.models import AuditEntry, PairDiagnosis, Recipe, Run
from webapp.services import histories, prompt_sets, proofs, rescues, run_documents, runs, series

STOPPED = {"code": "run.failing", "message": "Stopped.", "remedy": "Rescue it."}


def distill(**knobs):
    return [{"kind": "distill", "steps": 60, "prompts_per_step": 8, **knobs}]


def spot(step, stage=0):
    return Spot(stage_index=stage, step=step)


def test_a_history_begins_to_fail_with_the_first_bad_verdict_after_the_last_good_one(
    project, member
):
    found = histories.found(make_failing(project, member))
    assert found.verdict.code == "STALLED_MISMATCH"
    assert found.verdict.confidence == "high"
    assert found.failing == spot(12)


def test_a_history_tells_what_is_kept_and_which_of_it_was_best(project, member):
    run = make_failing(project, member)
    for step in (5, 10, 14):
        keep_checkpoint(run, step)
    dropped = keep_checkpoint(run, 8)
    dropped.dropped, dropped.storage_key = True, ""
    dropped.save()
    for step, accuracy in ((0, 0.3), (10, 0.5), (14, 0.1)):
        tell_accuracy(run, step, accuracy)
    history = histories.of(run, spot(12))
    assert history.checkpoints == (spot(5), spot(10), spot(14))
    assert (history.best, history.best_accuracy) == (spot(10), 0.5)


@pytest.mark.parametrize(("rows", "demonstrated"), [(2, True), (1, False), (0, False)])
def test_demonstrations_count_where_every_prompt_has_one(project, member, rows, demonstrated):
    lines = [{"prompt": f"{n} + 1?", "response": "It is so." if n < rows else ""} for n in range(2)]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    given = SimpleUploadedFile("shown.jsonl", content)
    run = make_failing(project, member)
    run.train_set = prompt_sets.upload(given, name="shown", project=project, actor=member)
    assert histories.of(run, None).demonstrations is demonstrated


def test_a_history_tells_how_deep_both_sides_still_agree(project, member):
    run = make_failing(project, member)
    assert histories.of(run, spot(12)).sound_tokens is None
    tell_positions(run, 1, (0.9, 0.9, 0.9))
    tell_positions(run, 12, (0.9, 0.85, 0.3))
    tell_positions(run, 14, (0.1, 0.1, 0.1))
    history = histories.of(run, spot(12))
    assert (history.sound_tokens, history.parted_tokens) == (16, None)


def test_a_history_tells_whether_the_two_ever_agreed(project, member):
    run = make_failing(project, member)
    tell_positions(run, 1, (0.9, 0.2, 0.2), divergence=(0.1, 3.0, 4.0))
    tell_overlap(run, (0.3, 0.5, 0.1, 0.9), student_entropy=0.9, teacher_entropy=0.4)
    for compacted in (False, True):
        if compacted:
            run.refresh_from_db()
            series.compact(run.pk, through=run.last_seq)
        history = histories.of(run, spot(12))
        assert history.start_overlap == pytest.approx(0.3)
        assert history.start_entropy_excess == pytest.approx(0.5)
        assert history.parted_tokens == 8


def test_a_plan_answers_the_monitors_verdict(project, member):
    planned = rescues.plan_of(make_failing(project, member))
    assert planned.verdict.code == "STALLED_MISMATCH"
    assert [stage.kind for stage in planned.recipe.stages] == ["cold_start", "distill"]


def test_the_pairs_diagnosis_answers_for_a_run_whose_monitor_said_nothing(project, member):
    run = make_run(project=project, status="failed")
    with pytest.raises(BadInput) as caught:
        rescues.plan_of(run)
    assert caught.value.info.code == "rescue.no_verdict"
    verdict = make_verdict("PATTERN_MISMATCH").model_dump(mode="json")
    PairDiagnosis.objects.create(
        pair=run.pair,
        prompt_set=run.train_set,
        goal="acquire",
        run=run,
        code="PATTERN_MISMATCH",
        verdict=verdict,
        diagnosed_at=run.created_at,
    )
    assert rescues.plan_of(run).verdict.code == "PATTERN_MISMATCH"


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"status": "succeeded", "outcome": {"code": "success"}}, "rescue.succeeded"),
        ({"status": "running", "health": {"code": "HEALTHY", "go": "go"}}, "rescue.healthy"),
        ({"status": "running"}, "rescue.too_early"),
        ({"status": "failed"}, "rescue.no_verdict"),
    ],
)
def test_what_cannot_be_rescued_is_refused_with_a_remedy(project, columns, code):
    with pytest.raises(BadInput) as caught:
        rescues.plan_of(make_run(project=project, **columns))
    assert caught.value.info.code == code
    assert caught.value.info.remedy


def test_a_run_that_only_diagnoses_is_not_rescued(project):
    run = make_run(project=project, stages=[{"kind": "diagnose"}], status="succeeded")
    with pytest.raises(BadInput, match="trains nothing"):
        rescues.plan_of(run)


def test_an_accepted_rescue_is_a_child_with_a_recipe_of_its_own_and_its_lineage(project, member):
    run = make_failing(project, member)
    child = rescues.accept(run, actor=member)
    assert (child.parent, child.relation, child.status) == (run, "rescue", "queued")
    assert (child.pair, child.train_set) == (run.pair, run.train_set)
    assert child.name == f"{run.name}, rescued"
    assert child.recipe.name == "plain, rescued"
    assert [s["kind"] for s in child.recipe.document["stages"]] == ["cold_start", "distill"]
    lineage = child.snapshot["lineage"]
    assert lineage["plan"]["verdict"]["code"] == "STALLED_MISMATCH"
    assert lineage["plan"]["changes"][0]["reason"]
    assert (lineage["edited"], lineage["unattended"]) == ([], False)
    entry = AuditEntry.objects.get(verb="rescue")
    assert (entry.actor, entry.object_id) == (member, run.public_id)
    assert entry.detail["child"] == child.public_id


def test_what_a_person_edited_is_told_beside_what_the_plan_changed(project, member):
    run = make_failing(project, member)
    recipe = rescues.plan_of(run).recipe.model_dump()
    recipe["stages"][1]["steps"] = 33
    child = rescues.accept(run, actor=member, document=RecipeDocument.model_validate(recipe))
    assert child.recipe.contract.stages[1].steps == 33
    assert child.snapshot["lineage"]["edited"] == [
        {"path": "stages.1.steps", "before": "20", "after": "33"}
    ]


def test_the_parent_stays_as_it_was(project, member):
    run = make_failing(project, member)
    keep_checkpoint(run, 10)
    rows = Run.objects.filter(pk=run.pk)
    before, events = rows.values().get(), run.events.count()
    rescues.accept(run, actor=member, control=True)
    assert rows.values().get() == before
    assert run.events.count() == events
    assert run.artifacts.filter(dropped=False).count() == 1


def test_a_rescue_that_goes_on_from_a_checkpoint_has_it_for_its_own(project, member):
    run = make_failing(project, member, code="DEPTH_COLLAPSE", stages=distill())
    move_failing_to(run, 40)
    file = keep_checkpoint(run, 20)
    child = rescues.accept(run, actor=member)
    start = child.snapshot["start"]
    assert (start["run"], start["stage_index"], start["step"]) == (run.public_id, 0, 20)
    assert start["sha256"] == file.sha256
    storages["artifacts"].delete(file.storage_key)
    assert storages["artifacts"].open(start["storage_key"]).read() == b"weights"
    again = runs.clone(child, actor=member)
    assert again.snapshot["start"] == start


def test_the_job_of_such_a_rescue_names_its_start_with_its_hash(project, member, tmp_path):
    run = make_failing(project, member, code="DEPTH_COLLAPSE", stages=distill())
    move_failing_to(run, 40)
    keep_checkpoint(run, 20)
    child = rescues.accept(run, actor=member)
    child.attempt = 1
    files = run_documents.LocalFiles(train=tmp_path / "train.jsonl", start=tmp_path)
    job = run_documents.job_document(child, files)
    assert (job.start.path, job.start.sha256) == (str(tmp_path), "a" * 64)


def test_a_rescue_from_the_beginning_starts_where_its_parent_did(project, member):
    run = make_failing(project, member)
    run.snapshot["start"] = {"run": "x", "stage_index": 0, "step": 5, "storage_key": "k"}
    run.save()
    assert rescues.accept(run, actor=member).snapshot["start"] == run.snapshot["start"]


def test_a_control_arm_goes_on_with_the_parents_recipe_for_equal_steps(project, member):
    run = make_failing(project, member, stages=distill(on_failing="stop"))
    keep_checkpoint(run, 10)
    child = rescues.accept(run, actor=member, control=True)
    arm = Run.objects.get(relation="control")
    (stage,) = arm.recipe.contract.stages
    assert arm.snapshot["lineage"] == {"control_of": child.public_id}
    assert (stage.steps, stage.on_failing) == (child.steps_total, "continue")
    assert arm.snapshot["start"]["step"] == 10


def test_a_control_arm_draws_from_the_same_choice_of_prompts():
    stages = [{"kind": "select_prompts", "strategy": "random"}, *distill()]
    recipe = RecipeDocument.model_validate({"name": "chosen", "stages": stages})
    arm = rescues.continued(recipe, spot(20, stage=1), steps=40)
    assert [stage.kind for stage in arm.stages] == ["select_prompts", "distill"]
    assert arm.stages[1].steps == 40


def test_a_control_arm_without_a_checkpoint_takes_the_parents_steps_again(project, member):
    run = make_failing(project, member)
    child = rescues.accept(run, actor=member, control=True)
    arm = Run.objects.get(relation="control")
    assert arm.steps_total == run.step + child.steps_total
    assert arm.snapshot["start"] is None


def test_where_training_is_no_cure_nothing_is_launched(project, member):
    run = make_failing(project, member, code="STALLED_NO_SIGNAL")
    assert rescues.plan_of(run).recipe is None
    with pytest.raises(BadInput) as caught:
        rescues.accept(run, actor=member)
    assert caught.value.info.code == "rescue.no_cure"
    assert Run.objects.count() == 1


def test_a_refused_launch_leaves_nothing_behind(project, member):
    run = make_failing(project, member, code="DEPTH_COLLAPSE", stages=distill())
    move_failing_to(run, 40)
    keep_checkpoint(run, 20)
    run.train_set.state = "failed"
    run.train_set.save()
    with pytest.raises(runs.LaunchRefused):
        rescues.accept(run, actor=member)
    assert (Run.objects.count(), Recipe.objects.count()) == (1, 1)
    storage = storages["artifacts"]
    folders, _ = storage.listdir(f"{project.public_id}/starts")
    assert [storage.listdir(f"{project.public_id}/starts/{one}")[1] for one in folders] == [[]]


def test_a_viewer_may_not_rescue(project, member, viewer):
    run = make_failing(project, member)
    with pytest.raises(PermissionDenied, match="role Member"):
        rescues.accept(run, actor=viewer)


def test_a_run_that_stops_for_a_rescue_is_rescued_without_anybody(project, member):
    run = make_failing(project, member, stages=distill(on_failing="rescue"), error=STOPPED)
    child = rescues.unattended(run.pk)
    assert (child.parent, child.relation, child.created_by) == (run, "rescue", member)
    assert child.snapshot["lineage"]["unattended"] is True
    assert AuditEntry.objects.get(verb="rescue").detail["unattended"] is True
    assert rescues.unattended(run.pk) is None, "a second telling launches nothing more"


def test_unattended_rescues_end_with_their_budget(project, member):
    for budget, follows in ((1, False), (2, True)):
        stages = distill(on_failing="rescue", rescues=budget)
        first = make_failing(project, member, stages=stages)
        run = make_failing(project, member, stages=stages, error=STOPPED)
        run.parent, run.relation = first, "rescue"
        run.save()
        assert rescues.depth(run) == 1
        assert (rescues.unattended(run.pk) is not None) is follows


@pytest.mark.parametrize(
    ("on_failing", "columns"),
    [
        ("stop", {"error": STOPPED}),
        ("rescue", {"error": STOPPED | {"code": "job.killed"}}),
        ("rescue", {"status": "succeeded"}),
    ],
)
def test_nothing_is_rescued_that_did_not_ask_for_it(project, member, on_failing, columns):
    run = make_failing(project, member, stages=distill(on_failing=on_failing), **columns)
    assert rescues.unattended(run.pk) is None
    assert Run.objects.count() == 1


def test_an_unattended_rescue_without_a_cure_is_noted_in_the_audit_log(project, member):
    stages = distill(on_failing="rescue")
    run = make_failing(project, member, code="STALLED_NO_SIGNAL", stages=stages, error=STOPPED)
    assert rescues.unattended(run.pk) is None
    entry = AuditEntry.objects.get(verb="rescue_declined")
    assert entry.actor is None
    assert "does not help" in entry.detail["why"]


def move_failing_to(run, step):
    """The monitor called it failing so late that a sound checkpoint lies before it."""
    run.events.filter(kind="health", step__gte=12).update(step=step)


def test_the_cause_that_was_called_first_is_answered_not_what_followed(project, member):
    run = make_failing(project, member)
    tell(run, Health(verdict=make_verdict("REPETITION_COLLAPSE", confidence="high")), 16)
    answered = histories.found(run)
    assert (answered.verdict.code, answered.verdict.confidence) == ("STALLED_MISMATCH", "high")
    assert answered.failing == spot(12)


def test_a_rescue_that_its_monitor_stopped_is_told_and_counted_as_none(project, member):
    child = rescues.accept(make_failing(project, member), actor=member)
    Run.objects.filter(pk=child.pk).update(status="failed", error=STOPPED)
    assert proofs.update(child.pk).code == "not_rescued"
    rate = proofs.rate(project, "STALLED_MISMATCH")
    assert (rate.worked, rate.rescues) == (0, 1)


def test_a_run_fails_from_its_first_certain_verdict_on_not_from_a_doubt_before(project, member):
    run = make_failing(project, member)
    doubt = make_verdict("HEAVY_TAIL_REWARD", "undecided")
    tell(run, Health(verdict=doubt), 16)
    tell(run, Health(verdict=make_verdict("REPETITION_COLLAPSE")), 18)
    assert histories.found(run).failing == spot(12)
    healthy_again = make_verdict("HEALTHY", "go")
    for verdict, step in ((healthy_again, 19), (doubt, 20), (make_verdict("MODE_HACKING"), 22)):
        tell(run, Health(verdict=verdict), step)
    found = histories.found(run)
    assert (found.verdict.code, found.failing) == ("MODE_HACKING", spot(22))
