"""The whole application as a person starts it, in a folder of its own, and the journey through it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Page, expect

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 180
# Seconds from the last click until something awaited is painted: by the browser's own clock, since the
# driver looks only now and then. The second frame begins when the first one has been drawn.
CLOCK = """
addEventListener("click", () => sessionStorage.setItem("clicked", Date.now()), true);
const awaited = {
  point: "series-chart[keys='token_reward'] .chart-step",
  drawn: "series-chart .chart-step:not(:empty)",
  success: "#run-result [data-outcome='success']",
};
new MutationObserver(() => {
  for (const [name, selector] of Object.entries(awaited)) {
    if (!document.querySelector(selector)?.textContent.trim()) continue;
    delete awaited[name];
    const tell = () => document.documentElement.setAttribute(
      `data-${name}-seconds`, (Date.now() - sessionStorage.getItem("clicked")) / 1000);
    requestAnimationFrame(() => requestAnimationFrame(tell));
  }
}).observe(document, { subtree: true, childList: true, characterData: true });
"""


# The laboratory's own recipe at half its rate, which stops once the monitor calls it failing.
FAILING_RECIPE = """\
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


class Application(NamedTuple):
    """A running application: its address, a log-in, and its state folder."""

    url: str
    username: str
    password: str
    state: Path


@contextmanager
def running(state: Path) -> Iterator[Application]:
    """`manage.py up` with real broker, worker and web server; stopped as by Ctrl-C."""
    given = {"STILLROOM_STATE": str(state), "PYTHONUNBUFFERED": "1"}
    kept = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL")}
    process = subprocess.Popen(
        [sys.executable, "manage.py", "up", "--port", "8700"],
        cwd=ROOT, env=kept | given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield _announced(process, state)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def _announced(process: subprocess.Popen[str], state: Path) -> Application:
    text, deadline = "", time.monotonic() + START_SECONDS
    assert process.stdout is not None
    while "Stop it with" not in text:
        line = process.stdout.readline()
        if not line or time.monotonic() > deadline:
            raise RuntimeError(f"The application did not start:\n{text}")
        text += line
    url = re.search(r"http://\S+", text)
    login = re.search(r"Log in as (\S+), password (\S+)", text)
    assert url, text
    assert login, text
    return Application(url[0], login[1], login[2], state)


def log_in(page: Page, application: Application) -> None:
    page.goto(application.url)
    page.fill("[name=username]", application.username)
    page.fill("[name=password]", application.password)
    page.click("button[type=submit]")
    page.wait_for_url("**/runs/")


def launch(page: Page, application: Application) -> float:
    """Launches the laboratory run from the form; seconds from the click to its first live point."""
    open_form(page, application)
    return click_launch(page)


def open_form(page: Page, application: Application) -> None:
    """The form of a new run, filled in and at rest."""
    page.add_init_script(CLOCK)
    page.goto(f"{application.url}runs/new/")
    page.get_by_role("button", name="Launch run").wait_for()
    page.wait_for_load_state("networkidle")


def click_launch(page: Page) -> float:
    """Seconds from the click on Launch to the first live point."""
    page.get_by_role("button", name="Launch run").click()
    page.wait_for_url(re.compile(r"/runs/(?!new)[a-z0-9]+/$"))
    return seconds_until(page, "point", patience_seconds=120)


def seconds_until(page: Page, awaited: str, *, patience_seconds: float) -> float:
    """Seconds from the last click until what CLOCK calls so was painted: a first point, the success."""
    name = f"data-{awaited}-seconds"
    told = page.locator(f"html[{name}]")
    told.wait_for(timeout=patience_seconds * 1000)
    return float(told.get_attribute(name) or "nan")


def cancel(page: Page) -> None:
    """Cancels the run on its page and waits until it has stopped."""
    page.get_by_role("button", name="Cancel run").click()
    page.get_by_role("button", name="Stop after this step?").click()
    expect(page.locator("#run-badges")).to_contain_text("Cancelled", timeout=60_000)


def save_recipe(page: Page, application: Application, text: str, *, name: str) -> None:
    page.goto(f"{application.url}recipes/import/")
    page.locator("[name=text]").fill(text)
    page.locator("main button[type=submit]").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(name)


def save_failing_recipe(page: Page, application: Application) -> None:
    save_recipe(page, application, FAILING_RECIPE, name="Stops when failing")


def launch_failing(page: Page, application: Application) -> None:
    """Launches the laboratory's pair whose teacher writes in another style."""
    open_form(page, application)
    page.locator("#id_pair").select_option(label="Laboratory, sums: a teacher of another style")
    expect(page.locator("#id_train option:checked")).to_have_text(re.compile("sums-0 train"))
    page.locator("#id_recipe").select_option(label="Stops when failing v1")
    expect(page.locator("#launch-check")).to_contain_text("Ready to launch")
    page.get_by_role("button", name="Launch run").click()
    page.wait_for_url(re.compile(r"/runs/(?!new)[a-z0-9]+/$"))


def open_rescue(page: Page) -> None:
    """From a failing run's page to its plan, looked at and at rest."""
    page.locator("#run-actions").get_by_role("link", name="Rescue").click()
    expect(page.locator("#rescue-check")).to_contain_text("Ready to start")
    page.wait_for_load_state("networkidle")


def click_rescue(page: Page) -> float:
    """Seconds from the click on Start to the child's first drawn point."""
    page.get_by_role("button", name="Start the rescue").click()
    page.wait_for_url(re.compile(r"/runs/[a-z0-9]+/$"))
    return seconds_until(page, "drawn", patience_seconds=60)
