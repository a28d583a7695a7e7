"""A failing run in a real Chromium: launched, flagged, rescued by two clicks, and proven to be rescued.

Celery, the embedded server, the worker, both jobs and the web server are the real ones.
"""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.application import Application, log_in, open_form, seconds_until

pytestmark = pytest.mark.browser

# The laboratory's own recipe at half its rate, which stops once the monitor calls it failing.
RECIPE = """\
name: Stops when failing
goal: {kind: acquire, target_metric: accuracy}
evaluation: {verifier: laboratory, prompts: 128, samples_per_prompt: 1, max_response_tokens: 128}
stages:
  - kind: distill
    steps: 30
    prompts_per_step: 32
    rollouts_per_prompt: 1
    learning_rate: 5.0e-4
    warmup_steps: 5
    weight_decay: 0.0
    max_prompt_tokens: 128
    max_response_tokens: 128
    evaluate_steps: 10
    checkpoint_steps: 10
    on_failing: stop
"""
PATIENCE_SECONDS = 180
# From the click on Start to the child's first point: 3.5 on two quiet cores.
MOST_SECONDS_TO_A_POINT = 15


def test_a_failing_run_is_flagged_rescued_by_a_click_and_proven_rescued(
    page: Page, application: Application
):
    log_in(page, application)
    save_recipe(page, application)
    launch_mismatch(page, application)
    parent = page.url
    expect(page.locator("#run-badges")).to_contain_text("Failed", timeout=PATIENCE_SECONDS * 1000)
    expect(page.locator("#run-health")).to_contain_text("STALLED_MISMATCH")

    page.locator("#run-actions").get_by_role("link", name="Rescue").click()
    expect(page.locator(".changes")).to_contain_text("Cold start")
    expect(page.locator("#rescue-check")).to_contain_text("Ready to start")
    page.wait_for_load_state("networkidle")
    page.get_by_role("button", name="Start the rescue").click()
    page.wait_for_url(re.compile(r"/runs/[a-z0-9]+/$"))
    assert seconds_until(page, "drawn", patience_seconds=60) < MOST_SECONDS_TO_A_POINT
    expect(page.locator(".page-header-sub")).to_contain_text("rescue of")

    page.get_by_role("link", name="Proof").click()
    verdict = page.locator("#proof-arms [data-proof]")
    verdict.wait_for(timeout=PATIENCE_SECONDS * 1000)
    expect(verdict).to_have_attribute("data-proof", "rescued")
    expect(page.locator(".arms tbody tr")).to_have_count(2)
    charts = page.locator("series-chart[keys='parent:accuracy,rescue:accuracy']")
    expect(charts.locator(".chart-key")).to_have_text([re.compile("parent"), re.compile("rescue")])

    page.goto(parent)
    expect(page.locator("#run-badges")).to_contain_text("Failed")


def save_recipe(page: Page, application: Application) -> None:
    page.goto(f"{application.url}recipes/import/")
    page.locator("[name=text]").fill(RECIPE)
    page.locator("main button[type=submit]").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Stops when failing")


def launch_mismatch(page: Page, application: Application) -> None:
    """Launches the laboratory's pair whose teacher writes in another style."""
    open_form(page, application)
    page.locator("#id_pair").select_option(label="Laboratory, sums: a teacher of another style")
    expect(page.locator("#id_train option:checked")).to_have_text(re.compile("sums-0 train"))
    page.locator("#id_recipe").select_option(label="Stops when failing v1")
    expect(page.locator("#launch-check")).to_contain_text("Ready to launch")
    page.get_by_role("button", name="Launch run").click()
    page.wait_for_url(re.compile(r"/runs/(?!new)[a-z0-9]+/$"))
