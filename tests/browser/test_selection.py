"""Selected prompts in a real Chromium: a run chooses what it learns from, and its page tells which and why."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.application import Application, log_in, open_form, save_recipe

pytestmark = pytest.mark.browser

RECIPE = """\
name: Easy ones first
goal: {kind: acquire, target_metric: accuracy}
evaluation: {verifier: laboratory, prompts: 32, samples_per_prompt: 1, max_response_tokens: 128}
stages:
  - kind: select_prompts
    strategy: low_kl
    candidates: 40
    share: 0.25
    max_prompt_tokens: 128
    max_response_tokens: 96
  - kind: distill
    steps: 2
    prompts_per_step: 8
    rollouts_per_prompt: 1
    warmup_steps: 0
    max_prompt_tokens: 128
    max_response_tokens: 96
"""
PATIENCE_SECONDS = 90


def test_what_was_kept_and_dropped_can_be_browsed(page: Page, application: Application):
    log_in(page, application)
    save_recipe(page, application, RECIPE, name="Easy ones first")
    open_form(page, application)
    page.locator("#id_recipe").select_option(label="Easy ones first v1")
    expect(page.locator("#launch-check")).to_contain_text("Ready to launch")
    page.get_by_role("button", name="Launch run").click()
    page.wait_for_url(re.compile(r"/runs/(?!new)[a-z0-9]+/$"))
    expect(page.locator("#run-badges")).to_contain_text(
        "Succeeded", timeout=PATIENCE_SECONDS * 1000
    )

    page.get_by_role("tab", name="Prompts").click()
    shown = page.locator("#run-prompts")
    expect(shown.locator(".stat-value")).to_have_text(["40", "10", "30", re.compile(r"\d")])
    expect(shown.locator("svg")).not_to_have_count(0)
    choice = shown.locator("select[name=reason]")
    choice.select_option(label="Kept (10)")
    expect(shown.locator(".selection-table tbody tr")).to_have_count(10)
    measures = [float(text) for text in shown.locator(".selection-table td.num").all_inner_texts()]
    assert measures == sorted(measures)
    assert "page=1" in (shown.get_attribute("src") or "")
