"""Teachers' scores on the web: kept by choice, estimated, refused where they cannot be; a run replayed."""

import json
import shutil

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages

from opdcore.contract.scores import KeptRecord, KeptScores
from opdcore.files import hash_file
from tests.opdcore.jobs import QUESTIONS, events_of, make_recipe, write_prompts
from tests.opdcore.model_folders import make_pair as make_folders
from tests.webapp.callers import errors_of, post, with_token
from tests.webapp.rescues import keep_file
from tests.webapp.rows import RECIPE, make_model, make_pair, make_prompt_set
from tests.webapp.rows import make_recipe as make_recipe_row
from tests.workers.rows import make_running
from webapp.models import AuditEntry, ModelRoot, Pair, PairTeacher, RegisteredModel, Run
from webapp.services import replays, run_documents, runs, scores
from webapp.services.run_documents import LocalFiles

STAGE = RECIPE["stages"][0] | {"support": "teacher", "k": 8}
TEACHABLE = RECIPE | {"stages": [STAGE]}
NAME = "0123456789abcdef" * 2


def parts(project, document=TEACHABLE):
    return {
        "pair": make_pair(project, "pair"),
        "train": stored(project, "train", ["1+1?", "2+2?"]),
        "held_out": stored(project, "held", ["3+3?"]),
        "recipe": make_recipe_row(project, "kept", document=document),
    }


def stored(project, name, prompts):
    """A prompt set whose rows can be read, as the check of a launch does."""
    lines = "".join(json.dumps({"prompt": text, "answer": "1"}) + "\n" for text in prompts)
    key = storages["prompts"].save(f"{name}.jsonl", ContentFile(lines.encode()))
    return make_prompt_set(project, name, storage_key=key, rows=len(prompts))


def form_of(rows, **changes):
    return {name: row.public_id for name, row in rows.items()} | {"device": ""} | changes


def kept_run(project, member, *, is_whole=True, **fields):
    """A run that succeeded and has left the names of its records."""
    made_of = parts(project)
    run = runs.launch(actor=member, project=project, kept_scores=scores.KEEP, **made_of, **fields)
    Run.objects.filter(pk=run.pk).update(status="succeeded", host="first", attempt=1)
    run.refresh_from_db()
    told = KeptScores(
        records=(
            KeptRecord(
                teacher=0, record=NAME, tokens=9000, size_bytes=648_000, asked_tokens=9000,
                found_tokens=0, is_whole=is_whole,
            ),
        )
    )  # fmt: skip
    keep_file(run, "scores.json", told.model_dump_json().encode(), kind="scores")
    return run


def job_of(run, tmp_path):
    run.attempt = 1
    files = LocalFiles(train=tmp_path / "train.jsonl", scores=tmp_path / "scores")
    return run_documents.job_document(run, files, resources={})


def test_scores_that_are_kept_are_told_to_the_job(browse, member, project, tmp_path):
    rows = parts(project)
    browse(member).post("/runs/new/", form_of(rows, keep_scores="on"))
    told = job_of(Run.objects.get(), tmp_path).teachers[0].scores
    assert (told.mode, told.folder, told.record) == ("keep", str(tmp_path / "scores"), None)


def test_without_the_choice_nothing_is_kept(browse, member, project, tmp_path):
    browse(member).post("/runs/new/", form_of(parts(project)))
    assert job_of(Run.objects.get(), tmp_path).teachers[0].scores is None


def test_the_check_tells_what_the_scores_take(browse, member, project):
    rows = parts(project)
    page = browse(member).post("/runs/new/check/", form_of(rows, keep_scores="on")).content.decode()
    tokens = (
        STAGE["steps"]
        * STAGE["prompts_per_step"]
        * STAGE["rollouts_per_prompt"]
        * STAGE["max_response_tokens"]
    )
    assert scores.disk_bytes(rows["recipe"].contract) == tokens * 9 * 8
    assert "Ready to launch" in page
    assert "&quot;keep_scores&quot;: true" in page
    assert "&quot;mode&quot;: &quot;keep&quot;" in page


def test_an_objective_that_needs_more_is_refused_at_the_choice(browse, member, project):
    rows = parts(project, RECIPE)
    answer = browse(member).post("/runs/new/", form_of(rows, keep_scores="on"))
    assert answer.status_code == 422
    assert "support student needs" in str(answer.context["form"].errors["keep_scores"])
    assert not Run.objects.exists()


def test_a_teacher_that_follows_cannot_be_kept(project, member):
    rows = parts(project)
    rows["pair"].teachers.update(follows="average", model=rows["pair"].student)
    with pytest.raises(runs.LaunchRefused) as caught:
        runs.launch(actor=member, project=project, kept_scores=scores.KEEP, **rows)
    assert [one.code for one in caught.value.problems] == ["teachers.scores_follow"]


def test_a_replay_is_the_same_run_at_the_worker_that_has_the_record(project, member, tmp_path):
    served = {"teacher": {"count": 0, "served": True}}
    run = kept_run(project, member, resources=served)
    child = replays.replay(run, actor=member)
    assert (child.parent, child.relation, child.host) == (run, "replay", "first")
    same = ("pair", "recipe", "train_set", "held_out_set")
    assert [getattr(child, name) for name in same] == [getattr(run, name) for name in same]
    (teacher,) = job_of(child, tmp_path).teachers
    assert (teacher.scores.mode, teacher.scores.record) == ("replay", NAME)
    assert (teacher.served, child.resources) == (None, {})
    entry = AuditEntry.objects.filter(verb="launch").order_by("-pk").first()
    assert entry.detail["parent"] == run.public_id
    assert replays.replay(child, actor=member).snapshot["scores"] == child.snapshot["scores"]


def test_a_replay_asks_nothing_of_the_teachers_folder(project, member):
    run = kept_run(project, member)
    RegisteredModel.objects.filter(pk=run.pair.teachers.get().model_id).update(state="error")
    assert replays.replay(run, actor=member).relation == "replay"
    with pytest.raises(runs.LaunchRefused):
        runs.clone(run, actor=member)


def test_a_teacher_of_the_hub_is_not_fetched_for_a_replay(project, member):
    run = kept_run(project, member)
    teacher = run.pair.teachers.get().model
    RegisteredModel.objects.filter(pk=teacher.pk).update(
        source_kind="hub", repo="tall/teacher", revision="main", path="", state="registered"
    )
    run = Run.objects.get(pk=run.pk)
    assert runs.clone(run, actor=member).downloads
    assert not replays.replay(run, actor=member).downloads


def test_a_clone_keeps_too_and_of_a_replay_asks_the_teacher(project, member):
    run = kept_run(project, member)
    assert runs.clone(run, actor=member).snapshot["scores"] == scores.KEEP
    replayed = replays.replay(run, actor=member)
    assert runs.clone(replayed, actor=member).snapshot["scores"] is None


def test_a_run_without_a_whole_record_is_not_replayed(browse, project, member):
    plain = make_running(project=project, status="succeeded")
    full = kept_run(project, member, is_whole=False)
    for run, told in ((plain, "has left no record"), (full, "was full while")):
        answer = browse(member).post(f"/runs/{run.public_id}/replay/", follow=True)
        assert told in answer.content.decode()
    assert not Run.objects.filter(relation="replay").exists()


def test_the_page_offers_a_replay_and_says_what_is_one(browse, project, member):
    run = kept_run(project, member)
    client = browse(member)
    assert b"Replay without the teacher" in client.get(f"/runs/{run.public_id}/").content
    details = client.get(f"/runs/{run.public_id}/details/").content.decode()
    assert "9,000 tokens" in details
    answer = client.post(f"/runs/{run.public_id}/replay/")
    child = Run.objects.get(relation="replay")
    assert answer["Location"] == f"/runs/{child.public_id}/"
    page = client.get(f"/runs/{child.public_id}/details/").content.decode()
    assert "no teacher was asked" in page
    assert "Replay of" in page
    assert b"Replay without the teacher" not in client.get(f"/runs/{child.public_id}/").content


def test_a_changed_copy_keeps_by_default_what_its_parent_kept(browse, project, member):
    run = kept_run(project, member)
    form = browse(member).get(f"/runs/new/?from={run.public_id}").context["form"]
    assert form["keep_scores"].value() == "on"


def test_a_script_keeps_and_replays(project, member):
    client = with_token(member)
    rows = parts(project)
    body = {name: row.public_id for name, row in rows.items()} | {"keep_scores": True}
    answer = post(client, "/api/runs", body)
    assert answer.status_code == 201, answer.content
    assert answer.json()["snapshot"]["scores"] == {"mode": "keep"}
    waiting = post(client, f"/api/runs/{answer.json()['public_id']}/replay", {})
    assert errors_of(waiting, 409)[0]["code"] == "scores.not_kept_by_run"


def test_a_script_replays_a_run_that_kept(project, member):
    run = kept_run(project, member)
    answer = post(with_token(member), f"/api/runs/{run.public_id}/replay", {"name": "again"})
    assert answer.status_code == 201, answer.content
    told = answer.json()
    assert (told["relation"], told["parent"], told["name"]) == ("replay", run.public_id, "again")


def test_a_kept_run_and_its_replay_learn_the_same(project, member, tmp_path):
    """From the launch to the weights, with the teacher's folder gone in between."""
    folders = make_folders(tmp_path)
    ModelRoot.objects.create(project=project, path=str(tmp_path))
    student, teacher = (make_model(project, folder.name, path=str(folder)) for folder in folders)
    pair = Pair.objects.create(project=project, name="real", student=student)
    PairTeacher.objects.create(pair=pair, model=teacher)
    document = make_recipe(k=4, support="teacher", steps=2).model_dump(mode="json")
    path = write_prompts(tmp_path / "prompts.jsonl", QUESTIONS)
    sha256 = hash_file(tmp_path / "prompts.jsonl").sha256
    train = make_prompt_set(project, "q", sha256=sha256, rows=len(QUESTIONS))
    recipe = make_recipe_row(project, "real", document=document)
    run = runs.launch(
        actor=member, project=project, pair=pair, recipe=recipe, train=train, held_out=train,
        kept_scores=scores.KEEP,
    )  # fmt: skip

    def finished(run):
        run.attempt = 1
        files = LocalFiles(train=path, held_out=path, scores=tmp_path / "scores")
        events_of(run_documents.job_document(run, files, resources={}), tmp_path / run.public_id)
        return (tmp_path / run.public_id / "output" / "model.safetensors").read_bytes()

    weights = finished(run)
    keep_file(
        run, "scores.json", (tmp_path / run.public_id / "scores.json").read_bytes(), kind="scores"
    )
    Run.objects.filter(pk=run.pk).update(status="succeeded")
    run.refresh_from_db()
    shutil.rmtree(folders[1])
    assert finished(replays.replay(run, actor=member)) == weights
