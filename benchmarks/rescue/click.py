"""Seconds from the click on "Start the rescue" to the child's first drawn point, in a real browser.

The parent is the laboratory's mismatch, stopped once it was called failing. It knows no study.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from playwright.sync_api import Page, expect

from benchmarks.main_job import logged_in
from benchmarks.records import Row
from tests.browser.application import (
    cancel,
    click_rescue,
    launch_failing,
    open_rescue,
    running,
    save_failing_recipe,
)

PART = "click"
RESCUES = 5
PATIENCE_MILLISECONDS = 300_000


def rows() -> list[Row]:
    """A rescue each, of one and the same parent."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder)) as application,
        logged_in(application) as page,
    ):
        save_failing_recipe(page, application)
        launch_failing(page, application)
        expect(page.locator("#run-badges")).to_contain_text("Failed", timeout=PATIENCE_MILLISECONDS)
        parent, responses = page.url, Path(folder) / "responses"
        return [_rescued(page, parent, responses) for _ in range(RESCUES)]


def summarise(rows: Sequence[Row]) -> float | None:
    """The median in seconds."""
    return median(row["seconds"] for row in rows) if rows else None


def _rescued(page: Page, parent: str, responses: Path) -> Row:
    """One rescue, cancelled as soon as its point is there; with the blocks of responses it had to sample."""
    known = len(list(responses.glob("*.json")))
    page.goto(parent)
    open_rescue(page)
    seconds = click_rescue(page)
    cancel(page)
    sampled = len(list(responses.glob("*.json"))) - known
    return {"seconds": round(seconds, 2), "blocks_sampled": sampled}
