"""A failing run in a real Chromium: launched, flagged, rescued by two clicks, and proven to be rescued.

Celery, the embedded server, the worker, both jobs and the web server are the real ones.
"""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.application import (
    Application,
    click_rescue,
    launch_failing,
    log_in,
    open_rescue,
    save_failing_recipe,
)

pytestmark = pytest.mark.browser

PATIENCE_SECONDS = 180
# From the click on Start to the child's first point: 3.5 on two quiet cores.
MOST_SECONDS_TO_A_POINT = 15


def test_a_failing_run_is_flagged_rescued_by_a_click_and_proven_rescued(
    page: Page, application: Application
):
    log_in(page, application)
    save_failing_recipe(page, application)
    launch_failing(page, application)
    parent = page.url
    expect(page.locator("#run-badges")).to_contain_text("Failed", timeout=PATIENCE_SECONDS * 1000)
    expect(page.locator("#run-health")).to_contain_text("STALLED_MISMATCH")

    open_rescue(page)
    expect(page.locator(".changes")).to_contain_text("Cold start")
    assert click_rescue(page) < MOST_SECONDS_TO_A_POINT
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
