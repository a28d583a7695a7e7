"""The main job's figures: seconds of a first set-up, from the click on Launch to the first point and to
the success, and what the laboratory's run achieves on five seeds.

It knows the commands that README gives and the documents of the contract, nothing inside them.
Simplification: packages come from wherever pip is configured to find them, so that the set-up's seconds
hold for this machine's network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from playwright.sync_api import Page, sync_playwright

from benchmarks.records import ROOT, Row, Rows
from opdcore import forkserver_client
from opdcore.contract.job import Job
from opdcore.lab import record
from tests.browser.application import (
    Application,
    cancel,
    click_launch,
    log_in,
    open_form,
    running,
    seconds_until,
)
from tests.conftest import CHROMIUM_FLAGS, chromium
from workers.broker import socket_path

SEEDS = range(5)
LAUNCHES = 5
SUCCESSES = 3
SUCCESS_PATIENCE_SECONDS = 600
LABORATORIES = ROOT / "state" / "laboratories"


def setup() -> list[Row]:
    """Seconds of the demo's set-up in a fresh clone with an empty home: cold, and then once more."""
    with tempfile.TemporaryDirectory() as folder:
        clone, home = Path(folder, "clone"), Path(folder, "home")
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        return [{"kind": kind, "seconds": _set_up(clone, home)} for kind in ("cold", "repeated")]


def _set_up(clone: Path, home: Path) -> float:
    start = time.monotonic()
    environment = {**os.environ, "HOME": str(home), "PIP_NO_CACHE_DIR": "1"}
    subprocess.run(["scripts/setup", "demo"], cwd=clone, env=environment, check=True)
    return round(time.monotonic() - start, 1)


def first_point() -> list[Row]:
    """Seconds from the click on Launch to the first point of a chart, job process warm and cold."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as application:
        return [
            {"kind": kind, "seconds": round(_click_to_point(application, warm=warm), 2)}
            for kind, warm in (("warm", True), ("cold", False))
            for _ in range(LAUNCHES)
        ]


def visible() -> list[Row]:
    """Seconds from the click on Launch until the page shows the success, job process warm."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as application:
        return [{"seconds": round(_click_to_success(application), 2)} for _ in range(SUCCESSES)]


def _click_to_point(application: Application, *, warm: bool) -> float:
    """One launch; the run is cancelled as soon as its point is there.

    Opening the form warms the host, so a cold launch is one whose fork-server went after that.
    """
    with logged_in(application) as page:
        open_form(page, application)
        _wait_until_warm(application)
        if not warm:
            forkserver_client.retire(_forkserver(application))
        seconds = click_launch(page)
        cancel(page)
    return seconds


def _click_to_success(application: Application) -> float:
    with logged_in(application) as page:
        open_form(page, application)
        _wait_until_warm(application)
        click_launch(page)
        return seconds_until(page, "success", patience_seconds=SUCCESS_PATIENCE_SECONDS)


def _wait_until_warm(application: Application) -> None:
    """A worker that has just lost its fork-server is reminded by nobody but the next launch or form."""
    socket = _forkserver(application)
    while forkserver_client.warming(socket) or not socket.exists():
        time.sleep(0.5)


def _forkserver(application: Application) -> Path:
    return socket_path(application.state, "forkserver")


@contextmanager
def logged_in(application: Application) -> Iterator[Page]:
    """A page of a browser of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=CHROMIUM_FLAGS.split()
        )
        page = browser.new_page()
        log_in(page, application)
        yield page
        browser.close()


def success() -> list[Row]:
    """One laboratory run per seed, from the build of its models to the outcome, on the command line.

    Built models are kept, so that a repetition only runs them.
    """
    LABORATORIES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        return [_run_seed(seed, Path(folder)) for seed in SEEDS]


def _run_seed(seed: int, folder: Path) -> Row:
    job = folder / f"job-{seed}.json"
    laboratory = _laboratory(seed)
    began = time.monotonic()
    job.write_text(_job(seed, laboratory).model_dump_json(), encoding="utf-8")
    lines = _opdcore("run", str(job), "--run-dir", str(folder / f"run-{seed}")).splitlines()
    outcome = json.loads(lines[-1])["payload"]["outcome"]
    return {
        "seed": seed,
        "code": outcome["code"],
        **{name: outcome[name] for name in ("before", "teacher", "after", "recovery")},
        "build_seconds": round(record.read(laboratory).build_seconds, 1),
        "run_seconds": round(time.monotonic() - began, 1),
    }


def _laboratory(seed: int) -> Path:
    """The shipped folder of seed 0; another seed's is built, or found as it was built before."""
    if seed == 0:
        return record.shipped("sums")
    folder = LABORATORIES / f"sums-{seed}"
    _opdcore("lab", "build", str(folder), "--family", "sums", "--seed", str(seed))
    return folder


def _job(seed: int, laboratory: Path) -> Job:
    recipe = yaml.safe_load((ROOT / "recipes" / "laboratory-sums.yaml").read_text(encoding="utf-8"))
    return Job.model_validate(
        {
            "run_id": f"laboratory-{seed}",
            "student": {"model": {"kind": "local", "path": str(laboratory / "student")}},
            "teachers": [{"model": {"kind": "local", "path": str(laboratory / "teacher")}}],
            "prompt_sets": {
                "train": {"path": str(laboratory / "train.jsonl")},
                "held_out": {"path": str(laboratory / "held_out.jsonl")},
            },
            "recipe": recipe,
        }
    )


def _opdcore(*arguments: str) -> str:
    command = [sys.executable, "-m", "opdcore", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def summarise(rows: Rows) -> dict[str, Any]:
    """The figures that README and the release notes quote."""
    names = ("seed", "before", "teacher", "after", "recovery")
    return {
        "setup_seconds_cold": _median(rows.get("setup", ()), "cold"),
        "setup_seconds_repeated": _median(rows.get("setup", ()), "repeated"),
        "first_point_seconds_median": _median(rows.get("first_point", ()), "warm"),
        "first_point_seconds_median_cold": _median(rows.get("first_point", ()), "cold"),
        "success_visible_seconds_median": _seconds(rows.get("visible", ())),
        "success": [{name: row[name] for name in names} for row in rows.get("success", ())],
    }


def _median(rows: Sequence[Row], kind: str) -> float | None:
    return _seconds([row for row in rows if row["kind"] == kind])


def _seconds(rows: Sequence[Row]) -> float | None:
    seconds = [row["seconds"] for row in rows]
    return median(seconds) if seconds else None


PARTS = {"setup": setup, "first_point": first_point, "visible": visible, "success": success}
