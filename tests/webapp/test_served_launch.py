"""A teacher or the sampler behind a server: chosen at a launch, refused where it cannot teach, told to the job."""

import pytest
from django.utils import timezone

from tests.webapp.rows import RECIPE, make_pair, make_prompt_set, make_recipe
from tests.webapp.test_runs_service import card
from webapp.models import Device, ModelEndpoint, RegisteredModel, Run, Worker
from webapp.services import endpoints, run_documents, runs
from webapp.services.run_documents import LocalFiles
from workers import job_secrets

SERVED = {"count": 0, "served": True}
TEACHABLE = {"stages": [RECIPE["stages"][0] | {"support": "teacher"}]}


def parts(project, **recipe):
    return {
        "project": project,
        "pair": make_pair(project, "pair"),
        "train": make_prompt_set(project, "train"),
        "held_out": make_prompt_set(project, "held"),
        "recipe": make_recipe(project, "served", document=RECIPE | recipe),
    }


def job_of(run, tmp_path):
    run.attempt = 1
    return run_documents.job_document(run, LocalFiles(train=tmp_path / "train.jsonl"), resources={})


def test_both_servers_of_a_runs_own_are_told_to_the_job(project, member, tmp_path):
    resources = {"sample": SERVED, "teacher": SERVED}
    run = runs.launch(actor=member, resources=resources, **parts(project, **TEACHABLE))
    job = job_of(run, tmp_path)
    assert job.teachers[0].served.endpoint is None
    assert job.sampler.endpoint is None


def test_without_a_server_the_job_loads_everything(project, member, tmp_path):
    job = job_of(runs.launch(actor=member, **parts(project)), tmp_path)
    assert (job.teachers[0].served, job.sampler) == (None, None)


def test_an_objective_that_a_server_cannot_teach_is_refused_at_the_choice(project, member):
    with pytest.raises(runs.LaunchRefused) as caught:
        runs.launch(actor=member, resources={"teacher": SERVED}, **parts(project))
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == ("recipe.served_teacher", "teacher_served")
    assert "support student needs" in problem.message
    assert not Run.objects.exists()


@pytest.mark.parametrize("answer", [None, True, False])
def test_an_endpoint_is_asked_for_the_students_top_k_unless_it_said_that_it_cannot(
    project, admin, tmp_path, answer
):
    row = endpoints.register(
        project, "big", base_url="http://host:8000/v1", model="m", key="", actor=admin
    )
    row.probe = None if answer is None else {"student_top_k": answer}
    row.save()
    resources = {"teacher": SERVED | {"endpoint": row.public_id}}
    if answer is False:
        with pytest.raises(runs.LaunchRefused, match="tells the student's top k"):
            runs.launch(actor=admin, resources=resources, **parts(project))
    else:
        run = runs.launch(actor=admin, resources=resources, **parts(project))
        assert job_of(run, tmp_path).teachers[0].served.student_top_k


@pytest.mark.parametrize("kind", [None, "cuda", "cpu"])
def test_a_server_on_a_gpu_can_tell_the_students_top_k(project, member, tmp_path, kind):
    worker = Worker.objects.create(host="tall", pid=1, heartbeat_at=timezone.now())
    Device.objects.create(worker=worker, name="cuda:0", kind="cuda", memory_bytes=80 << 30)
    asked = {"teacher": SERVED | {"kind": kind}, "sample": SERVED}
    if kind == "cpu":
        with pytest.raises(runs.LaunchRefused):
            runs.launch(actor=member, resources=asked, **parts(project))
        return
    job = job_of(runs.launch(actor=member, resources=asked, **parts(project)), tmp_path)
    assert job.teachers[0].served.student_top_k
    assert not hasattr(job.sampler, "student_top_k")


def test_what_a_server_tells_by_itself_is_not_asked_for(project, member, tmp_path):
    resources = {"teacher": SERVED}
    run = runs.launch(actor=member, resources=resources, **parts(project, **TEACHABLE))
    assert not job_of(run, tmp_path).teachers[0].served.student_top_k


def test_runs_of_one_teacher_and_like_recipes_share_its_server(project, member, tmp_path):
    asked = {"teacher": SERVED, "sample": SERVED}
    given = parts(project, **TEACHABLE)
    RegisteredModel.objects.filter(name="pair teacher").update(card=card(vocabulary=400))
    first = runs.launch(actor=member, resources=asked, **given)
    wider = {"stages": [TEACHABLE["stages"][0] | {"k": 64}]}
    other = make_recipe(project, "wider", document=RECIPE | wider)
    servers = [
        runs.launch(actor=member, resources=resources, **given | recipe).teacher_server
        for resources, recipe in (
            (asked, {}), (asked, {"recipe": other}), ({"teacher": SERVED | {"count": 1}}, {}),
            ({"sample": SERVED}, {}),
        )
    ]  # fmt: skip
    assert servers[0] == first.teacher_server != ""
    assert len({*servers}) == 4
    assert servers[3] == ""
    first.attempt = 1
    job = run_documents.job_document(
        first, LocalFiles(train=tmp_path / "t", teacher_server=tmp_path / "server"), resources={}
    )
    assert job.teachers[0].served.shared == str(tmp_path / "server")
    assert not hasattr(job.sampler, "shared")


def test_a_registered_endpoint_is_told_with_the_variable_of_its_key(
    project, member, admin, tmp_path
):
    row = endpoints.register(
        project, "big", base_url="http://host:8000/v1", model="m", key="s3cret-key", actor=admin
    )
    resources = {"teacher": SERVED | {"endpoint": row.public_id}}
    run = runs.launch(actor=member, resources=resources, **parts(project, **TEACHABLE))
    endpoint = job_of(run, tmp_path).teachers[0].served.endpoint
    assert (endpoint.base_url, endpoint.model) == ("http://host:8000", "m")
    assert endpoint.key_variable == row.key_variable
    assert "s3cret-key" not in job_of(run, tmp_path).model_dump_json()
    assert job_secrets.of(run)[row.key_variable] == "s3cret-key"


def test_an_endpoint_of_another_project_is_refused(project, member):
    other = {"teacher": SERVED | {"endpoint": "nowhere"}}
    with pytest.raises(runs.LaunchRefused) as caught:
        runs.launch(actor=member, resources=other, **parts(project, **TEACHABLE))
    assert caught.value.info.code == "endpoint.unknown"
    assert not ModelEndpoint.objects.exists()
