"""The run list: filters, keyset paging, bulk actions, and who may do what."""

import pytest

from tests.webapp.rows import make_pair, make_recipe, make_run
from webapp.models import Project, Run
from webapp.services import run_list
from webapp.services.run_list import Query


@pytest.fixture
def runs(project):
    """120 runs, a third without a reward, some with equal ones."""
    shared = {"pair": make_pair(project), "recipe": make_recipe(project)}
    shared["train_set"] = make_run(project, name="other", **shared).train_set
    Run.objects.all().delete()
    return [
        make_run(project, name=f"run {n:03d}", reward=None if n % 3 == 0 else -(n // 4), **shared)
        for n in range(120)
    ]


@pytest.mark.parametrize("sort", ["-created", "created", "name", "-name", "reward", "-reward"])
def test_pages_follow_one_another_without_gap_or_repeat(runs, sort):
    query, seen = Query(sort=sort), []
    while query is not None:
        page = run_list.read(Run.objects.all(), query)
        seen += [row.pk for row in page.rows]
        older = page.older
        query = Query(sort=sort, after=page.rows[-1].public_id) if older else None
    assert len(seen) == 120
    assert len(set(seen)) == 120


@pytest.mark.parametrize("sort", ["-created", "name", "reward", "-reward"])
def test_going_back_leads_to_the_page_one_came_from(runs, sort):
    first = run_list.read(Run.objects.all(), Query(sort=sort))
    second = run_list.read(Run.objects.all(), Query(sort=sort, after=first.rows[-1].public_id))
    back = run_list.read(Run.objects.all(), Query(sort=sort, before=second.rows[0].public_id))
    assert [row.pk for row in back.rows] == [row.pk for row in first.rows]
    assert first.newer is None
    assert second.newer is not None


def test_runs_without_the_value_come_last_in_either_direction(runs):
    for sort in ("reward", "-reward"):
        query = Query(sort=sort)
        page = run_list.read(Run.objects.all(), query)
        assert all(row.reward is not None for row in page.rows)


def test_filters_narrow_by_text_status_outcome_pair_and_tag(project):
    wanted = make_run(
        project, name="Blue", status="failed", tags=["é", "b"], outcome={"code": "partial"}
    )
    make_run(project, name="Red", tags=["bb"])
    for query in (
        Query(text="blu"),
        Query(status="failed"),
        Query(outcome="partial"),
        Query(pair=wanted.pair.public_id),
        Query(tag="é"),
        Query(tag="b"),
    ):
        assert list(run_list.matching(Run.objects.all(), query)) == [wanted], query


def test_an_address_keeps_the_filters_and_drops_the_page():
    query = Query.parse({"text": "a b", "status": "no such", "after": "abc", "sort": "-accuracy"})
    assert query.status == ""
    assert query.address(sort="name") == "?text=a+b&sort=name"
    assert query.sorted_by("accuracy") == "?text=a+b&sort=accuracy"


def test_the_list_shows_a_row_in_few_queries_and_without_snapshots(
    browse, member, project, runs, django_assert_max_num_queries
):
    client = browse(member)
    with django_assert_max_num_queries(12):
        page = client.get("/runs/")
    assert page.status_code == 200
    assert b"run 119" in page.content
    assert b"run 060" not in page.content
    rows = run_list.read(Run.objects.all(), Query()).rows
    assert {"snapshot", "notes"} <= rows[0].get_deferred_fields()


def test_htmx_gets_the_table_alone(browse, member, runs):
    answer = browse(member).get("/runs/?text=run+11", headers={"HX-Target": "run-table"})
    assert b"<html" not in answer.content
    assert b"run 110" in answer.content


def test_a_row_that_follows_its_run_replaces_itself_and_not_the_table(browse, member, project):
    run = make_run(project, status="running")
    row = browse(member).get(f"/runs/{run.public_id}/row/").content.decode()
    assert 'hx-target="this"' in row.split(">")[0]


def test_an_empty_list_offers_the_laboratory(browse, member, project):
    make_pair(project, is_laboratory=True)
    assert b"Launch the laboratory run" in browse(member).get("/runs/").content


def test_a_stranger_sees_no_run(browse, stranger, runs):
    assert browse(stranger).get("/runs/").status_code == 404
    assert browse(stranger).get(f"/runs/{runs[0].public_id}/row/").status_code == 404


def test_chosen_runs_are_cancelled_and_ended_ones_are_told_of(browse, member, project):
    waiting, ended = make_run(project), make_run(project, status="succeeded")
    chosen = [waiting.public_id, ended.public_id]
    answer = browse(member).post("/runs/bulk/", {"verb": "cancel", "run": chosen}, follow=True)
    waiting.refresh_from_db()
    assert waiting.status == "cancelled"
    assert b"1 run told to stop. 1 had already ended." in answer.content


def test_chosen_runs_are_tagged(browse, member, project):
    run = make_run(project, tags=["old"])
    back = "/runs/?status=queued"
    form = {"verb": "tag", "tag": "new", "run": [run.public_id], "back": back}
    answer = browse(member).post("/runs/bulk/", form)
    run.refresh_from_db()
    assert run.tags == ["old", "new"]
    assert answer["Location"] == back


def test_where_one_run_has_too_many_tags_none_is_tagged(browse, member, project):
    free, full = make_run(project), make_run(project, tags=[f"t{n}" for n in range(20)])
    form = {"verb": "tag", "tag": "new", "run": [free.public_id, full.public_id]}
    answer = browse(member).post("/runs/bulk/", form, follow=True)
    assert b"21 tags are too many" in answer.content
    free.refresh_from_db()
    assert free.tags == []


def test_a_page_cannot_start_at_a_run_that_is_not_ones_own(project):
    other = make_run(Project.objects.create(name="Other", slug="other"))
    mine = [make_run(project, name=str(number)) for number in range(2)]
    asked = Query.parse({"after": other.public_id})
    found = run_list.read(Run.objects.filter(project=project), asked)
    assert [run.pk for run in found.rows] == [run.pk for run in reversed(mine)]
    assert found.newer is None


def test_a_page_goes_on_after_a_run_that_has_left_the_filter(project):
    mine = [make_run(project) for _ in range(2)]
    Run.objects.filter(pk=mine[1].pk).update(status="running")
    asked = Query.parse({"after": mine[1].public_id, "status": "queued"})
    found = run_list.read(Run.objects.filter(project=project), asked)
    assert [run.pk for run in found.rows] == [mine[0].pk]


def test_the_way_back_never_leads_elsewhere(browse, member, project):
    run = make_run(project)
    form = {"verb": "tag", "tag": "x", "run": [run.public_id], "back": "//evil.example/"}
    assert browse(member).post("/runs/bulk/", form)["Location"] == "/runs/"


def test_a_viewer_changes_nothing(browse, viewer, project):
    run = make_run(project)
    form = {"verb": "cancel", "run": [run.public_id]}
    assert browse(viewer).post("/runs/bulk/", form).status_code == 403
    run.refresh_from_db()
    assert run.status == "queued"


def test_bulk_wants_a_post(browse, member, project):
    assert browse(member).get("/runs/bulk/").status_code == 405
