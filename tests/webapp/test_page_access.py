"""Who may open and send what: each page of parts, for each role, and only by its methods."""

from io import BytesIO

import pytest
from django.urls import reverse

from tests.webapp.rows import make_model, make_pair, make_prompt_set, make_recipe
from webapp.models import ModelRoot
from webapp.services import prompt_sets

PAGES = ["models", "pairs", "prompt-sets", "recipes", "members", "audit"]
FORMS = ["model-new", "pair-new", "prompt-set-new", "recipe-new", "recipe-import"]
OBJECTS = ["model", "pair", "prompt-set", "recipe", "recipe-download", "prompt-set-download"]
ACTIONS = [
    "model-inspect",
    "model-delete",
    "model-root-remove",
    "pair-delete",
    "prompt-set-delete",
    "prompt-set-restore",
]
POSTED = ["pair-check", "recipe-check", "model-root-add"]


@pytest.fixture
def addresses(project, monkeypatch):
    """The address of an object of the project, by the name of its page."""
    monkeypatch.setattr(prompt_sets, "open_stored", lambda row: _two_rows())
    made = {
        "model": make_model(project),
        "model-root": ModelRoot.objects.get(project=project, path="/models"),
        "pair": make_pair(project),
        "prompt-set": make_prompt_set(project, stats=STATS, sha256="2" * 64),
        "recipe": make_recipe(project),
    }

    def address(name):
        kind = max((one for one in made if name.startswith(one)), key=len)
        return reverse(name, args=[made[kind].public_id])

    return address


@pytest.fixture
def clients(client, stranger, viewer, member, browse):
    """Somebody who is not logged in, somebody of no project, and two of this one."""
    people = {"stranger": stranger, "viewer": viewer, "member": member}
    return {"nobody": client} | {name: browse(user) for name, user in people.items()}


STATS = {
    "answers": 2,
    "chats": 0,
    "duplicates": 0,
    "characters_mean": 5,
    "characters_max": 9,
    "histogram": [{"to": 32, "count": 2}],
    "tags": {},
    "columns": {"prompt": "prompt"},
    "left_out": [],
}


def _two_rows():
    return BytesIO(b'{"prompt":"2 + 2 = ?","answer":"4"}\n{"prompt":"3?"}\n')


@pytest.mark.parametrize("name", PAGES + FORMS)
def test_a_page_sends_strangers_away(name, client, stranger, browse):
    assert client.get(reverse(name)).headers["Location"].startswith("/log-in/")
    assert browse(stranger).get(reverse(name)).status_code == 404


@pytest.mark.parametrize("name", PAGES)
def test_a_viewer_reads_a_page(name, viewer, browse, addresses):
    assert browse(viewer).get(reverse(name)).status_code == 200


@pytest.mark.parametrize("name", FORMS)
def test_only_a_member_opens_a_form(name, viewer, member, browse, addresses):
    assert browse(viewer).get(reverse(name)).status_code == 403
    assert browse(member).get(reverse(name)).status_code == 200


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_seen_by_its_projects_members_alone(name, clients, addresses):
    assert clients["nobody"].get(addresses(name)).status_code == 302
    assert clients["stranger"].get(addresses(name)).status_code == 404
    assert clients["viewer"].get(addresses(name)).status_code == 200
    assert clients["viewer"].post(addresses(name)).status_code == 405


@pytest.mark.parametrize("name", ACTIONS)
def test_a_viewer_changes_nothing(name, clients, addresses):
    assert clients["stranger"].post(addresses(name)).status_code == 404
    assert clients["viewer"].post(addresses(name)).status_code == 403
    assert clients["member"].get(addresses(name)).status_code == 405


@pytest.mark.parametrize("name", POSTED)
def test_what_is_posted_is_not_opened(name, member, browse, addresses):
    assert browse(member).get(reverse(name)).status_code == 405


@pytest.mark.parametrize("name", PAGES)
def test_a_page_with_nothing_on_it_says_what_to_do(name, admin, browse):
    assert browse(admin).get(reverse(name)).status_code == 200
