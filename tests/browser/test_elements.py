"""The custom elements in a real Chromium, with the network answered here instead of by a server."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, WebSocketRoute, expect

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
SITE = "http://stillroom.test"
POLICY = "default-src 'self'; connect-src 'self' ws://stillroom.test; img-src 'self' data:"
HEAD = """<!doctype html><html data-icons="/static/img/icons.svg"><head><title>Elements</title>
<script src="/static/js/theme.js"></script>
<link rel="stylesheet" href="/static/css/tokens.css"><link rel="stylesheet" href="/static/css/data.css">
<script type="module" src="/static/js/stillroom.js"></script>
<script src="/static/vendor/htmx.org@2.0.11/htmx.min.js" defer></script>
<script type="module" src="/static/js/live-run.js"></script>
<script type="module" src="/static/js/live-part.js"></script>
<script type="module" src="/static/js/series-chart.js"></script>
<script type="module" src="/static/js/run-progress.js"></script></head>"""
COLLECT = """() => { const seqs = []; document.addEventListener("run-events", (e) => {
  seqs.push(...e.detail.events.map((event) => event.seq));
  document.body.dataset.seqs = seqs.join(" "); }); }"""
ANNOUNCE = """(events) => document.dispatchEvent(
  new CustomEvent("run-events", {detail: {events}}))"""


def open_page(page: Page, body: str, documents: dict[str, object] | None = None) -> None:
    """Opens a page of this body under the strict policy; `documents` are JSON answers by path."""

    def answer(route: Route) -> None:
        path = route.request.url.removeprefix(SITE).split("?")[0]
        if path == "/":
            headers = {"Content-Security-Policy": POLICY, "Content-Type": "text/html"}
            route.fulfill(body=f"{HEAD}<body>{body}</body></html>", headers=headers)
        elif path in (documents or {}):
            route.fulfill(json=(documents or {})[path])
        elif path.startswith("/static/"):
            route.fulfill(path=ROOT / path[1:])
        else:
            route.fulfill(status=404)

    page.route(f"{SITE}/**", answer)
    page.goto(SITE)


def event(seq: int, kind: str, payload: object, *, step: int | None = None, attempt: int = 1):
    return {
        "seq": seq,
        "attempt": attempt,
        "line": seq,
        "stage_index": 0,
        "step": step,
        "kind": kind,
        "at": f"2026-01-01T00:00:{seq:02d}Z",
        "payload": payload,
    }


def metrics(seq: int, step: int, loss: float | None, *, attempt: int = 1, **payload: object):
    values = {"values": {"loss": loss}, "nonfinite": {}, **payload}
    return event(seq, "metrics", values, step=step, attempt=attempt)


def snapshot(steps: list[int], losses: list[float | None], *, seq: int) -> dict[str, object]:
    columns = {"x": steps, "last": losses, "min": losses, "max": losses}
    series = {"loss": {**columns, "nonfinite": [0] * len(steps)}}
    stages = [{"index": 0, "kind": "distill", "offset": 0, "steps": 10}]
    return {"seq": seq, "series": series, "stages": stages}


def addresses(page: Page, path: str) -> list[str]:
    """The addresses under this path that the page asks for, as they come."""
    asked: list[str] = []

    def note(address: str) -> None:
        if address.startswith(SITE + path):
            asked.append(address.removeprefix(SITE))

    page.on("request", lambda request: note(request.url))
    return asked


def open_chart(page: Page, document: dict[str, object]) -> None:
    chart = '<series-chart keys="loss" src="/series.json" label="Loss"></series-chart>'
    open_page(page, chart, {"/series.json": document})
    page.wait_for_selector("series-chart canvas, series-chart .chart-empty")
    page.get_by_role("button", name="Show Loss as a table").click()


def chart_rows(page: Page) -> list[list[str]]:
    rows = page.locator("series-chart tbody tr").all()
    return [row.locator("th, td").all_inner_texts() for row in rows]


def test_live_run_continues_after_its_last_seq_gapless_and_once(page: Page) -> None:
    asked: list[str] = []

    def serve(socket: WebSocketRoute) -> None:
        asked.append(re.search(r"after=(\d+)", socket.url)[1])
        seqs = [3, 4, 5] if len(asked) == 1 else [4, 5, 6, 7]
        events = [event(seq, "log", {"level": "info", "message": "."}) for seq in seqs]
        socket.send(json.dumps({"events": events, "seq": seqs[-1]}))
        if len(asked) == 1:
            socket.close(code=1001)

    page.route_web_socket(re.compile("/ws/run"), serve)
    open_page(page, "")
    page.evaluate(COLLECT)
    live = '<live-run src="/ws/run" after="2" status="running"></live-run>'
    page.evaluate("(html) => document.body.insertAdjacentHTML('beforeend', html)", live)
    expect(page.locator("body")).to_have_attribute("data-seqs", "3 4 5 6 7")
    assert asked == ["2", "5"]
    expect(page.locator("live-run")).to_have_text("Live")


def test_live_run_says_why_it_is_refused(page: Page) -> None:
    page.route_web_socket(re.compile("/ws/run"), lambda socket: socket.close(code=4401))
    open_page(page, '<live-run src="/ws/run" after="0" status="running"></live-run>')
    expect(page.locator("live-run")).to_have_text("Logged out: log in again")


def test_live_run_is_complete_when_the_run_is(page: Page) -> None:
    finished = event(1, "job_finished", {"status": "succeeded"})
    message = json.dumps({"events": [finished], "seq": 1, "status": "succeeded"})
    page.route_web_socket(re.compile("/ws/run"), lambda socket: socket.send(message))
    open_page(page, '<live-run src="/ws/run" after="0" status="running"></live-run>')
    expect(page.locator("live-run")).to_have_text("Complete")


def test_chart_appends_live_points_and_skips_those_of_the_snapshot(page: Page) -> None:
    open_chart(page, snapshot([1, 2], [1.5, 1.25], seq=7))
    page.evaluate(ANNOUNCE, [metrics(7, 2, 99.0), metrics(8, 3, 1.0)])
    expect(page.locator("series-chart tbody tr")).to_have_count(3)
    assert chart_rows(page) == [["3", "1"], ["2", "1.25"], ["1", "1.5"]]


def test_chart_shows_each_step_once_after_a_resumed_attempt(page: Page) -> None:
    open_chart(page, snapshot([1, 2, 3, 4], [4, 3, 2, 1], seq=4))
    page.evaluate(ANNOUNCE, [metrics(5, 3, 2.5, attempt=2)])
    expect(page.locator("series-chart tbody tr")).to_have_count(3)
    assert chart_rows(page) == [["3", "2.5"], ["2", "3"], ["1", "4"]]


def test_chart_drops_what_lies_after_the_step_it_resumes_from(page: Page) -> None:
    open_chart(page, snapshot([1, 2, 3, 4], [4, 3, 2, 1], seq=4))
    payload = {"stage_kind": "distill", "steps": 10, "resumed_from_step": 2}
    page.evaluate(ANNOUNCE, [event(5, "stage_started", payload, attempt=2)])
    expect(page.locator("series-chart tbody tr")).to_have_count(2)
    assert chart_rows(page) == [["2", "3"], ["1", "4"]]


def test_chart_marks_a_value_that_is_not_finite(page: Page) -> None:
    open_chart(page, snapshot([1], [1.5], seq=1))
    page.evaluate(ANNOUNCE, [metrics(2, 2, None, nonfinite={"loss": "nan"})])
    expect(page.locator(".chart-nonfinite")).to_have_text("not finite here")
    assert chart_rows(page)[0] == ["2", "\u2013"]


def test_chart_tells_the_level_of_a_reference(page: Page) -> None:
    chart = '<series-chart keys="loss" reference="teacher_loss" src="/series.json"></series-chart>'
    open_page(page, chart, {"/series.json": snapshot([1], [1.5], seq=1)})
    page.wait_for_selector("series-chart canvas")
    page.evaluate(ANNOUNCE, [event(2, "evaluation", {"values": {"teacher_loss": 0.5}}, step=0)])
    expect(page.locator("series-chart > p")).to_contain_text("teacher loss: 0.5.")


def test_chart_without_values_says_so(page: Page) -> None:
    open_page(
        page,
        '<series-chart keys="loss" src="/series.json"></series-chart>',
        {"/series.json": {"seq": 0, "series": {}, "stages": []}},
    )
    expect(page.locator(".chart-empty")).to_have_text("No values yet")


def test_chart_that_cannot_load_offers_another_try(page: Page) -> None:
    open_page(page, '<series-chart keys="loss" src="/absent.json"></series-chart>')
    expect(page.locator(".chart-empty")).to_contain_text("the server answered 404")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_charts_of_a_page_share_one_request(page: Page) -> None:
    asked = addresses(page, "/series.json")
    charts = [f'<series-chart keys="{keys}" src="/series.json"></series-chart>'
              for keys in ("loss", "token_reward,reverse_kl")]  # fmt: skip
    open_page(page, "".join(charts), {"/series.json": snapshot([1], [1.5], seq=1)})
    page.wait_for_selector("series-chart canvas")
    assert [re.sub("&points.*", "", url) for url in asked] == [
        "/series.json?keys=loss%2Ctoken_reward%2Creverse_kl"
    ]


def test_a_chart_is_drawn_when_it_comes_into_view(page: Page) -> None:
    chart = '<series-chart keys="loss" src="/series.json" unbegun></series-chart>'
    open_page(page, f'<svg height="4000"></svg>{chart}')
    page.evaluate(ANNOUNCE, [metrics(1, 1, 1.5), metrics(2, 2, 1.0)])
    assert page.locator("canvas").count() == 0
    page.locator("series-chart").scroll_into_view_if_needed()
    expect(page.locator("canvas")).to_have_count(1)
    expect(page.locator(".chart-step")).to_have_text("step 2")


def test_a_part_is_asked_for_only_where_somebody_looks(page: Page) -> None:
    asked = addresses(page, "/part")
    part = '<live-part src="/part" kinds="log" pause="0">before</live-part>'
    open_page(page, f'<svg height="4000"></svg>{part}', {"/part": "now"})
    page.evaluate(ANNOUNCE, [event(1, "log", {})])
    page.wait_for_timeout(200)
    assert asked == []
    page.locator("live-part").scroll_into_view_if_needed()
    expect(page.locator("live-part")).to_have_text('"now"')
    page.evaluate(ANNOUNCE, [event(2, "metrics", {"values": {}}), event(3, "log", {})])
    page.wait_for_timeout(200)
    assert asked == ["/part", "/part"]


def test_progress_counts_steps_over_stages_and_tells_the_time_left(page: Page) -> None:
    open_page(
        page, '<run-progress steps-by-stage="10,20" done="0" status="running"></run-progress>'
    )
    later = [{**metrics(seq, seq, 1.0), "stage_index": 1} for seq in (1, 2, 3)]
    page.evaluate(ANNOUNCE, later)
    expect(page.locator(".progress-count")).to_have_text("13 of 30 steps")
    expect(page.locator("run-progress")).to_contain_text("about 17 s left")


def test_progress_shows_what_is_loaded_before_the_first_step(page: Page) -> None:
    open_page(page, '<run-progress status="running"></run-progress>')
    loading = {"what": "loading the teacher", "done": 3, "total": 5, "unit": "files"}
    page.evaluate(ANNOUNCE, [event(1, "progress", loading)])
    expect(page.locator(".progress-count")).to_have_text("loading the teacher: 3 of 5 files")


def test_what_htmx_could_not_send_is_told_and_a_poll_is_not(page: Page) -> None:
    open_page(page, "<toast-region></toast-region>")
    fail = """([verb, status]) => document.body.dispatchEvent(new CustomEvent(
      "htmx:responseError", {bubbles: true, detail: {xhr: {status}, requestConfig: {verb}}}))"""
    page.evaluate(fail, ["get", 500])
    page.evaluate(fail, ["post", 403])
    expect(page.locator(".toast-note")).to_have_count(1)
    expect(page.locator(".toast-text")).to_contain_text("the server answered 403")


def test_theme_choice_survives_a_reload(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    open_page(page, "<theme-toggle></theme-toggle>")
    root = page.locator("html")
    expect(root).to_have_attribute("data-bs-theme", "dark")
    page.get_by_role("button", name="Theme: system").click()
    expect(root).to_have_attribute("data-bs-theme", "light")
    page.reload()
    expect(root).to_have_attribute("data-bs-theme", "light")
    expect(page.get_by_role("button", name="Theme: light")).to_be_visible()


def test_confirm_button_asks_before_it_acts(page: Page) -> None:
    button = '<button name="went" value="yes">Go</button>'
    open_page(page, f'<form><confirm-button question="Sure?">{button}</confirm-button></form>')
    page.get_by_role("button", name="Go").click()
    expect(page).to_have_url(f"{SITE}/")
    page.get_by_role("button", name="Sure?").click()
    expect(page).to_have_url(f"{SITE}/?went=yes")


def test_a_form_is_sent_once_and_its_button_says_so(page: Page) -> None:
    form = '<form method="post" action="/slow"><button class="btn">Launch</button></form>'
    open_page(page, form)
    sent: list[str] = []

    def take(route: Route) -> None:
        sent.append(route.request.method)
        route.fulfill(status=204)  # the page stays as it is, as while an answer is waited for

    page.route(f"{SITE}/slow", take)
    button = page.get_by_role("button", name="Launch")
    button.click()
    expect(button).to_have_attribute("aria-busy", "true")
    button.dispatch_event("click")
    page.wait_for_timeout(200)
    assert sent == ["POST"]
