"""The main job in a real Chromium: launch the laboratory pair from the form, watch it, see it succeed.

Celery, the embedded server, the worker, the job and the web server are the real ones.
"""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.application import Application, cancel, launch, log_in

pytestmark = pytest.mark.browser

RUN_SECONDS = 300


@pytest.fixture
def complaints(page: Page):
    """What the browser complained of: errors of scripts, of the policy, and of requests."""
    heard: list[str] = []
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("console", lambda said: heard.append(said.text) if said.type == "error" else None)
    page.on(
        "response",
        lambda got: heard.append(f"{got.status} {got.url}") if got.status >= 400 else None,
    )
    return heard


def test_the_laboratory_pair_is_launched_watched_and_succeeds(
    page: Page, application: Application, complaints: list[str]
):
    log_in(page, application)
    launch(page, application)
    expect(page.locator("live-run")).to_contain_text("Live")

    result = page.locator("#run-result")
    expect(result).to_contain_text(re.compile("success", re.IGNORECASE), timeout=RUN_SECONDS * 1000)
    expect(result).to_contain_text(re.compile(r"recovered \d+% of the gap", re.IGNORECASE))
    expect(page.locator("series-chart[keys='token_reward'] .chart-step")).to_have_text("step 40")

    page.reload()
    expect(page.locator("series-chart[keys='token_reward'] .chart-step")).to_have_text("step 40")
    page.get_by_role("tab", name="Samples").click()
    expect(page.locator("token-view .token").first).to_be_visible()
    page.get_by_role("tab", name="Artifacts").click()
    expect(page.locator("#artifacts")).to_contain_text("model.safetensors")

    page.goto(f"{application.url}runs/")
    expect(page.locator("#run-table")).to_contain_text("Succeeded")
    assert complaints == []


def test_the_form_brings_along_what_belongs_to_a_pair(page: Page, application: Application):
    log_in(page, application)
    page.goto(f"{application.url}runs/new/")
    page.wait_for_load_state("networkidle")
    page.locator("#id_pair").select_option(label="Laboratory, cups")
    for field, name in (("train", "cups-0 train v1"), ("held_out", "cups-0 held out v1")):
        expect(page.locator(f"#id_{field} option:checked")).to_have_text(name)
    expect(page.locator("#id_recipe option:checked")).to_contain_text("Laboratory, cups")
    expect(page.locator("#launch-check")).to_contain_text("Ready to launch")

    page.locator("#id_recipe").select_option(index=3)
    chosen = page.locator("#id_recipe").input_value()
    expect(page.locator("[name=knobs_of]")).to_have_value(chosen)


def test_a_cancelled_run_says_so_and_can_be_resumed(page: Page, application: Application):
    log_in(page, application)
    launch(page, application)
    cancel(page)
    expect(page.locator("#run-actions")).to_contain_text("Resume")
