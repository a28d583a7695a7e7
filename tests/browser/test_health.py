"""Verdicts, charts by position and the matrix in a real Chromium; Django's own pages answer it."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from django.test import Client
from playwright.sync_api import Page, Route, expect

from opdcore.contract.events import (
    Health,
    metrics,
)
from opdcore.contract.metrics import POSITION_METRICS
from opdcore.contract.positions import Positions
from tests.webapp.diagnoses import DIAGNOSE, make_diagnosis, make_evidence, make_verdict
from tests.workers.rows import Scribe, make_project, make_running, make_user
from webapp.models import Event

# The answering handler has a connection of its own, which sees only what was committed.
pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

ROOT = Path(__file__).resolve().parents[2]
SITE = "http://stillroom.test"
# The first is the driver's to count, the second asks for HTTPS.
NOT_FORWARDED = ("Content-Length", "Cross-Origin-Opener-Policy")
ANNOUNCE = """(events) => document.dispatchEvent(
  new CustomEvent("run-events", {bubbles: true, detail: {events}}))"""


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
def complaints(page: Page):
    """What the browser complained of: errors of scripts and of the policy."""
    heard: list[str] = []
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("console", lambda said: heard.append(said.text) if said.type == "error" else None)
    return heard


@pytest.fixture
def site(page: Page, project):
    """Opens a path as a member of the project."""
    client = Client(headers={"Host": "stillroom.test"})
    client.force_login(make_user(project=project))

    def answer(route: Route) -> None:
        path = route.request.url.removeprefix(SITE)
        if path.startswith("/static/"):
            return route.fulfill(path=ROOT / unquote(path[1:].partition("?")[0]))
        got = client.get(path)
        headers = {name: value for name, value in got.items() if name not in NOT_FORWARDED}
        return route.fulfill(status=got.status_code, body=got.content, headers=headers)

    page.route_web_socket(re.compile("/ws/"), lambda _: None)
    page.route(f"{SITE}/**", answer)
    return lambda path: page.goto(SITE + path)


@pytest.fixture
def scribe(project):
    run = make_running(project=project)
    scribe = Scribe(run)
    for step in range(1, 13):
        columns = dict.fromkeys(POSITION_METRICS, (step / 20, -step / 10, None))
        by_position = Positions(edges=(0, 8, 16, 24), positions=(40, 20, 0), values=columns)
        values = {"loss": 1 / step, "overlap_ratio": step / 20}
        scribe.record(
            scribe.parsed(metrics(values), step=step), scribe.parsed(by_position, step=step)
        )
    return run, scribe


def fail(run, scribe) -> list[dict[str, object]]:
    """Records a verdict, and returns what a socket would tell of it."""
    evidence = (make_evidence("overlap_ratio", 0.45, low=0.4, high=0.5, reference=0.7, step=9),)
    scribe.record(scribe.parsed(Health(verdict=make_verdict(evidence=evidence)), step=10))
    last = Event.objects.filter(run=run).latest("seq")
    return [{"seq": last.seq, "kind": "health", "attempt": 1, "step": 10, "stage_index": 0,
             "payload": {}}]  # fmt: skip


def test_the_banner_appears_with_its_evidence(page: Page, site, scribe, complaints):
    run, writer = scribe
    site(f"/runs/{run.public_id}/")
    banner = page.locator("#run-health")
    expect(banner).to_contain_text("No verdict yet")
    page.evaluate(ANNOUNCE, fail(run, writer))
    expect(banner.get_by_role("heading", name="Overlap stays low")).to_be_visible()
    expect(banner.locator(".verdict-line")).to_contain_text("No-go")
    expect(banner.locator(".evidence tbody tr")).to_contain_text(["0.4 to 0.5"])
    expect(page.locator("#health-said")).to_have_text(re.compile("Verdict: Overlap stays low"))
    assert complaints == []


def test_an_evidence_link_marks_the_chart_at_the_step_by_keyboard(
    page: Page, site, scribe, complaints
):
    run, writer = scribe
    fail(run, writer)
    site(f"/runs/{run.public_id}/")
    page.get_by_role("tab", name="Log").click()
    link = page.get_by_role("link", name="Step 9 in the chart of Overlap ratio")
    link.focus()
    page.keyboard.press("Enter")
    chart = page.locator("series-chart[keys^='overlap_ratio']")
    expect(page.get_by_role("tab", name="Charts")).to_have_attribute("aria-selected", "true")
    expect(chart).to_have_attribute("pointed", "")
    expect(chart).to_be_in_viewport()
    expect(chart.locator(".chart-step")).to_have_text("step 9")
    expect(chart.locator(".chart-plot")).to_be_focused()
    expect(chart.locator(".chart-plot")).to_have_attribute(
        "aria-label", re.compile("step 9: ratio 0.45")
    )
    chart.get_by_role("button", name="Take the mark away").click()
    expect(chart).not_to_have_attribute("pointed", "")
    expect(chart.locator(".chart-step")).to_have_text("step 12")
    assert complaints == []


def test_going_back_takes_the_mark_away_and_an_address_brings_it(page: Page, site, scribe):
    run, _ = scribe
    site(f"/runs/{run.public_id}/")
    page.evaluate("location.hash = '#loss@5'")
    chart = page.locator("series-chart[keys='loss']")
    expect(chart).to_have_attribute("pointed", "")
    page.go_back()
    expect(chart).not_to_have_attribute("pointed", "")
    site(f"/runs/{run.public_id}/?again#loss@5")
    expect(chart.locator(".chart-step")).to_have_text("step 5")


def test_the_heat_map_answers_the_keyboard_and_a_gap_is_no_value(
    page: Page, site, scribe, complaints
):
    run, _ = scribe
    site(f"/runs/{run.public_id}/#by_position@6")
    heat = page.get_by_role("application", name="Overlap ratio by step and position")
    expect(heat).to_be_focused()
    said = page.locator("heat-map [role=status]")
    page.keyboard.press("Home")
    page.keyboard.press("Home")
    expect(said).to_have_text(re.compile(r"Step 1, positions 0.7: 0\.05, 40 scored"))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(said).to_have_text(re.compile(r"Step 2, positions 8.15: -0\.2, 20 scored"))
    page.keyboard.press("ArrowDown")
    expect(said).to_have_text(re.compile(r"Step 2, positions 16.23: no value, 0 scored"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("slider", name="Step A")).to_have_attribute("aria-valuetext", "step 2")
    page.get_by_role("button", name="Show the curves as a table").click()
    rows = page.locator(".position-numbers tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(2)).to_have_text(re.compile(r"16.230–––"))
    assert complaints == []


def test_curves_compare_two_steps_and_follow_new_ones(page: Page, site, scribe, complaints):
    run, _ = scribe
    site(f"/runs/{run.public_id}/")
    page.locator("position-view").scroll_into_view_if_needed()
    first = page.get_by_role("slider", name="Step A")
    expect(first).to_have_attribute("aria-valuetext", "step 12")
    columns = {key: [0.9, 0.8, 0.7] for key in POSITION_METRICS}
    payload = {"edges": [0, 8, 16, 24], "positions": [9, 9, 9], "values": columns}
    told = {"seq": 999, "kind": "positions", "attempt": 1, "stage_index": 0, "step": 13,
            "payload": payload}  # fmt: skip
    page.evaluate(ANNOUNCE, [told])
    expect(first).to_have_attribute("aria-valuetext", "step 13")
    page.get_by_label("compare two steps").check()
    panel = page.locator(".position-panel").last
    expect(panel.locator(".chart-key")).to_have_text(
        ["student, A", "student, B", "teacher, A", "teacher, B"]
    )
    assert complaints == []


def test_a_cell_of_the_matrix_leads_to_the_diagnosis(page: Page, site, project, complaints):
    run = make_running(project=project, stages=[DIAGNOSE])
    scribe = Scribe(run, steps=(0,))
    scribe.record(scribe.parsed(make_diagnosis()))
    site("/pairs/matrix/")
    page.get_by_role("link", name="PATTERN_MISMATCH").click()
    expect(page).to_have_url(re.compile(run.public_id))
    expect(page.get_by_role("heading", name="Teacher and student think")).to_be_visible()
    page.get_by_role("link", name="Measure Least hand-off").click()
    expect(page.locator("#measure-hand_off_min")).to_be_in_viewport()
    assert complaints == []
