"""Launch, cancel, resume, clone, and what people write on a run."""

import shutil
from pathlib import Path

import pytest
from django.core.exceptions import PermissionDenied
from kombu.exceptions import OperationalError

from opdcore.contract.errors import BadInput
from tests.webapp.rows import RECIPE, make_model, make_pair, make_prompt_set, make_recipe, make_run
from webapp.models import AuditEntry, ModelRoot, Pair, Project, RegisteredModel, Run
from webapp.services import run_documents, runs


def parts(project):
    return {
        "project": project,
        "pair": make_pair(project),
        "recipe": make_recipe(project),
        "train": make_prompt_set(project),
        "held_out": make_prompt_set(project, "held out"),
    }


def test_a_launch_queues_a_run_with_a_snapshot_and_wakes_a_worker(
    project, member, wake_ups, django_capture_on_commit_callbacks
):
    with django_capture_on_commit_callbacks(execute=True):
        run = runs.launch(actor=member, **parts(project))
    assert run.status == "queued"
    assert run.steps_total == 3
    assert run.snapshot["recipe"]["document"] == RECIPE
    assert run.snapshot["student"]["participant"]["model"]["path"] == "/models/pair student"
    assert run.snapshot["prompt_sets"]["held_out"]["name"] == "held out"
    assert wake_ups == ["workers.wake"]
    entry = AuditEntry.objects.get(verb="launch")
    assert (entry.actor, entry.object_id) == (member, run.public_id)


def test_a_run_that_names_a_model_of_the_hub_is_fetched_for_first(project, member):
    chosen = parts(project)
    assert not runs.launch(actor=member, **chosen).downloads
    teacher = chosen["pair"].teachers.get().model
    RegisteredModel.objects.filter(pk=teacher.pk).update(
        source_kind="hub", repo="tall/teacher", revision="main", path="", state="registered"
    )
    run = runs.launch(actor=member, **chosen | {"pair": Pair.objects.get(pk=chosen["pair"].pk)})
    assert run.downloads
    named = {"kind": "hub", "repo": "tall/teacher", "revision": "main"}
    assert run.snapshot["teachers"][0]["participant"]["model"] == named


def test_runs_without_a_name_are_told_apart_by_a_number(project, member):
    chosen = parts(project)
    names = [runs.launch(actor=member, **chosen).name for _ in range(3)]
    assert names == ["pair - Sums", "pair - Sums 2", "pair - Sums 3"]


def test_a_viewer_may_not_launch(project, viewer):
    with pytest.raises(PermissionDenied, match="role Member"):
        runs.launch(actor=viewer, **parts(project))
    assert not Run.objects.exists()


def test_parts_of_another_project_are_refused(project, member):
    other = Project.objects.create(name="Other", slug="other")
    with pytest.raises(BadInput) as caught:
        runs.launch(actor=member, **{**parts(project), "recipe": make_recipe(other)})
    assert caught.value.info.field == "recipe"


def test_a_launch_survives_an_absent_broker(project, member, monkeypatch):
    def refuse(*args, **options):
        raise OperationalError("no broker")

    monkeypatch.setattr("webapp.celery.app.send_task", refuse)
    runs.wake()
    assert runs.launch(actor=member, **parts(project)).status == "queued"


def test_k_above_the_vocabulary_is_refused_with_its_field(project, member):
    document = {**RECIPE, "stages": [{**RECIPE["stages"][0], "k": 4000}]}
    chosen = parts(project)
    chosen["recipe"] = make_recipe(project, "wide", document=document)
    chosen["pair"] = make_pair(
        project,
        "small",
        student=make_model(project, "small", card=card(vocabulary=400)),
        token_map_report={"verdict": "same", "shared_vocabulary": 390, "summary": ""},
    )
    with pytest.raises(runs.LaunchRefused) as caught:
        runs.launch(actor=member, **chosen)
    assert [problem.field for problem in caught.value.problems] == ["recipe.stages.0.k"]
    assert "shares 390 tokens" in caught.value.info.message


def test_different_token_maps_refuse_a_launch(project, member):
    chosen = parts(project)
    report = {"verdict": "different", "shared_vocabulary": 3, "summary": "The token maps differ."}
    chosen["pair"] = make_pair(project, "odd", token_map_report=report)
    with pytest.raises(runs.LaunchRefused) as caught:
        runs.launch(actor=member, **chosen)
    assert caught.value.info.code == "pair.token_maps_differ"


def test_an_experiment_is_refused_outside_the_laboratory(project, member):
    stage = {**RECIPE["stages"][0], "form": "sampled", "sampled_loss": "k3"}
    chosen = parts(project)
    chosen["recipe"] = make_recipe(project, "k3", document={**RECIPE, "stages": [stage]})
    with pytest.raises(runs.LaunchRefused) as caught:
        runs.launch(actor=member, **chosen)
    assert caught.value.info.field == "recipe.stages.0.sampled_loss"
    chosen["pair"].lab_version = "1"
    assert runs.launch(actor=member, **chosen).status == "queued"


def test_a_folder_that_is_no_longer_allowed_refuses_a_launch(project, member):
    chosen = parts(project)
    ModelRoot.objects.all().delete()
    with pytest.raises(runs.LaunchRefused) as caught:
        runs.launch(actor=member, **chosen)
    assert (caught.value.info.code, caught.value.info.field) == ("model.outside_roots", "pair")


def test_a_full_disk_refuses_a_launch_with_what_it_needs(project, member, monkeypatch):
    chosen = parts(project)
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(runs.LaunchRefused) as caught:
        runs.launch(actor=member, **chosen)
    assert caught.value.info.code == "launch.disk_full"
    assert "0.3 GB of disk and 0.0 GB are free" in caught.value.info.message
    assert not Run.objects.exists()


def test_a_verifier_without_a_held_out_set_is_refused(project, member):
    document = {**RECIPE, "evaluation": {**RECIPE["evaluation"], "verifier": "math"}}
    chosen = {**parts(project), "held_out": None}
    chosen["recipe"] = make_recipe(project, "graded", document=document)
    with pytest.raises(runs.LaunchRefused) as caught:
        runs.launch(actor=member, **chosen)
    assert caught.value.info.field == "held_out"


def test_a_queued_run_is_cancelled_at_once(project, member):
    run = runs.cancel(make_run(project), actor=member)
    assert run.status == "cancelled"
    assert run.finished_at is not None


def test_a_running_run_is_asked_to_stop(project, member):
    run = runs.cancel(make_run(project, status="running"), actor=member)
    assert run.status == "running"
    assert run.is_stopping


def test_a_paused_run_is_cancelled_at_once(project, member):
    run = runs.cancel(make_run(project, status="paused"), actor=member)
    assert (run.status, run.finished_at is None) == ("cancelled", False)


def test_a_paused_run_is_resumed_as_a_failed_one(project, member):
    run = make_run(project, status="paused", error={"code": "run.paused"})
    resumed = runs.resume(run, actor=member)
    assert (resumed.status, resumed.error) == ("queued", None)


def test_an_ended_run_is_not_cancelled(project, member):
    with pytest.raises(BadInput, match="already succeeded"):
        runs.cancel(make_run(project, status="succeeded"), actor=member)


def test_a_failed_run_is_queued_again(project, member):
    run = make_run(project, status="failed", attempt=2, error={"code": "x"})
    run = runs.resume(run, actor=member)
    assert (run.status, run.attempt, run.error) == ("queued", 2, None)


def test_a_succeeded_run_is_not_resumed(project, member):
    with pytest.raises(BadInput, match="is succeeded"):
        runs.resume(make_run(project, status="succeeded"), actor=member)


def test_a_clone_is_a_child_with_the_same_parts(project, member):
    parent = make_run(project)
    child = runs.clone(parent, actor=member)
    assert (child.parent, child.relation) == (parent, "clone")
    assert (child.pair, child.recipe, child.train_set) == (
        parent.pair,
        parent.recipe,
        parent.train_set,
    )


def test_the_job_document_names_the_workers_files(project, member):
    run = runs.launch(actor=member, **parts(project))
    run.attempt = 2
    job = run_documents.job_document(
        run, run_documents.LocalFiles(train=Path("/w/t"), held_out=Path("/w/h"))
    )
    assert (job.run_id, job.attempt) == (run.public_id, 2)
    assert (job.prompt_sets.train.path, job.prompt_sets.train.sha256) == ("/w/t", "0" * 64)
    assert job.teachers[0].model.path == "/models/pair teacher"
    assert job.recipe.stages[0].steps == 3


def test_tags_are_trimmed_and_kept_once(project, member):
    assert runs.set_tags(make_run(project), [" a", "b", "a", " "], actor=member).tags == ["a", "b"]


def test_a_long_tag_is_refused(project, member):
    with pytest.raises(BadInput, match="too long"):
        runs.set_tags(make_run(project), ["x" * 41], actor=member)


def test_a_comment_is_edited_by_its_author_only(project, member, maintainer):
    said = runs.comment(make_run(project), "why?", actor=member)
    with pytest.raises(BadInput, match="is member's"):
        runs.edit_comment(said, "no", actor=maintainer)
    assert runs.edit_comment(said, "because", actor=member).edited_at is not None


@pytest.mark.parametrize(("text", "code"), [(" ", "empty"), ("x" * 20_001, "too_long")])
def test_a_comment_says_something_and_not_everything(project, member, text, code):
    run = make_run(project)
    said = runs.comment(run, "first", actor=member)
    for write in (lambda: runs.comment(run, text, actor=member),
                  lambda: runs.edit_comment(said, text, actor=member)):  # fmt: skip
        with pytest.raises(BadInput) as caught:
            write()
        assert caught.value.info.code == f"comment.{code}"
    said.refresh_from_db()
    assert said.text == "first"


def test_a_review_says_who_and_when(project, member):
    run = runs.review(make_run(project), "approved", actor=member)
    assert (run.review, run.reviewed_by) == ("approved", member)
    with pytest.raises(BadInput, match="no review state"):
        runs.review(run, "fine", actor=member)


def card(**overrides):
    ids = {"tokenizer": [0], "config": [0], "generation_config": []}
    return {
        "architecture": "Qwen3ForCausalLM",
        "model_type": "qwen3",
        "parameters": 131_000,
        "weights_bytes": 524_000,
        "dtypes": ["F32"],
        "quantization": None,
        "vocabulary": 400,
        "padded_vocabulary": 400,
        "context_length": 8192,
        "hidden_size": 64,
        "layers": 2,
        "heads": 4,
        "kv_heads": 4,
        "head_dim": 16,
        "intermediate_size": 192,
        "tied_embeddings": True,
        "chat_template_sha256": None,
        "bos": ids,
        "eos": ids,
        "pad": ids,
        "token_map_sha256": "a" * 64,
        "weights_fingerprint": "b" * 64,
        **overrides,
    }
