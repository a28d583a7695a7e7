"""A family's strips and a pair's control runs in a real Chromium; Django's own pages answer it."""

import re
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pytest
from django.test import Client
from playwright.sync_api import Page, Route, expect

from opdcore.calibration import laboratory
from opdcore.contract.recipe import Recipe as RecipeDocument
from tests.webapp.diagnoses import make_prompts
from tests.webapp.families import SAME, fill, make_family, make_finished
from tests.webapp.rows import make_pair, make_recipe
from tests.workers.rows import make_project, make_user
from webapp.models import PromptSet
from webapp.services import families

# The answering handler has a connection of its own, which sees only what was committed.
pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

ROOT = Path(__file__).resolve().parents[2]
SITE = "http://stillroom.test"
# The first is the driver's to count, the second asks for HTTPS.
NOT_FORWARDED = ("Content-Length", "Cross-Origin-Opener-Policy")


@pytest.fixture(autouse=True)
def plain_site(settings):
    """Pages as they are made, over plain HTTP."""
    settings.SECURE_SSL_REDIRECT = False
    settings.ALLOWED_HOSTS = ["stillroom.test"]
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }


@pytest.fixture
def project():
    return make_project()


@pytest.fixture
def ada(project):
    return make_user(project=project)


@pytest.fixture
def family(project, ada):
    """Successes, failures and a teacher of the same pipeline; the other two controls of a pack."""
    made = fill(make_family(project, ada), good=5, lost=3)
    make_finished(made, SAME, "no_gain", "same_pipeline")
    raw = laboratory().model_dump_json().encode()
    return families.import_pack(made, raw, file_name="laboratory.json", actor=ada)


@pytest.fixture
def pair(project, ada, family):
    """A pair of the family with a recipe of its name, and prompts."""
    stage = {"kind": "distill", "steps": 40, "prompts_per_step": 32, "max_response_tokens": 128}
    document = RecipeDocument(name="Mine", evaluation={"verifier": "exact"}, stages=(stage,))
    make_recipe(project, "Mine", document=document.model_dump(mode="json"))
    for name in ("train", "held out"):
        readable = make_prompts(project, name).storage_key
    # A pair's page renders the oldest set's first prompt, and those of other runs hold none.
    PromptSet.objects.update(storage_key=readable)
    return families.choose(make_pair(project, "Mine"), family, actor=ada)


@pytest.fixture
def complaints(page: Page):
    """What the browser complained of: errors of scripts and of the policy."""
    heard: list[str] = []
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("console", lambda said: heard.append(said.text) if said.type == "error" else None)
    return heard


@pytest.fixture
def site(page: Page, ada):
    """Opens a path as a member of the project."""
    client = Client(headers={"Host": "stillroom.test"})
    client.force_login(ada)

    def answer(route: Route) -> None:
        path = route.request.url.removeprefix(SITE)
        if path.startswith("/static/"):
            return route.fulfill(path=ROOT / unquote(path[1:].partition("?")[0]))
        if route.request.method == "POST":
            got = client.post(path, parse_qs(route.request.post_data or ""))
        else:
            got = client.get(path)
        headers = {name: value for name, value in got.items() if name not in NOT_FORWARDED}
        return route.fulfill(status=got.status_code, body=got.content, headers=headers)

    page.route_web_socket(re.compile("/ws/"), lambda _: None)
    page.route(f"{SITE}/**", answer)
    return lambda path: page.goto(SITE + path)


def test_a_dot_names_its_run_and_opens_it_by_keyboard(page: Page, site, family, complaints):
    site(f"/families/{family.public_id}/")
    strip = page.locator(".strip", has_text="Effective overlap")
    dots = strip.get_by_role("link", name=re.compile("^Known good: "))
    expect(dots).to_have_count(5)
    dots.first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/runs/[a-z0-9]+/$"))
    assert complaints == []


def test_dots_lie_left_of_the_cut_offs_or_right_of_them(page: Page, site, family):
    site(f"/families/{family.public_id}/")
    strip = page.locator(".strip", has_text="Effective overlap")
    cut = strip.locator(".strip-cut:not([data-usual])").first.bounding_box()["x"]
    places = {
        name: [
            dot.bounding_box()["x"]
            for dot in strip.locator(f".strip-dot .control-mark[data-control={name}]").all()
        ]
        for name in ("descendant", "other_pattern")
    }
    assert max(places["other_pattern"]) < cut < min(places["descendant"])


@pytest.mark.parametrize("width", [375, 1440])
def test_nothing_is_wider_than_the_window(page: Page, site, family, pair, width):
    page.set_viewport_size({"width": width, "height": 900})
    for path in (f"/families/{family.public_id}/", "/families/", f"/pairs/{pair.public_id}/"):
        site(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_cost_of_controls_follows_their_number(page: Page, site, pair, complaints):
    site(f"/pairs/{pair.public_id}/")
    page.get_by_text("Run controls", exact=True).first.click()
    cost = page.locator("#controls-cost")
    expect(cost).to_contain_text("3 runs, 120 steps")
    page.get_by_label("Runs of each").select_option("3")
    expect(cost).to_contain_text("9 runs, 360 steps")
    assert complaints == []
