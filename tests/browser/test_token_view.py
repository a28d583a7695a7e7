"""The token view on a run's page, served by the real views from real trace files, in a real Chromium."""

import random
import re

import numpy as np
import pytest
from django.conf import settings as django_settings
from django.test import override_settings
from playwright.sync_api import Page, expect
from pytest_django.live_server_helper import LiveServer

from opdcore import traces
from opdcore.contract.events import TraceWritten
from opdcore.traces import COLUMNS, Text, TracedRollout, TracedTop
from tests.webapp.test_traces import publish
from tests.workers.rows import Scribe, make_project, make_running, make_user

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

WIDTH = 8
WORDS = ["<|end|>", "\n", " the", " sum", " of", " two", " and", " three", " is", " five", "."]
LONG = 8000


def make_rollout(tokens: int, *, prompt_index=0, correct=True, written_step=1, seed=0, gap=1.0):
    """A rollout between two random models; `gap` is how far the teacher is from the student."""
    chance, numbers = random.Random(seed), np.random.default_rng(seed)
    ids = [chance.randrange(1, len(WORDS)) for _ in range(tokens - 1)] + [0]
    logits = numbers.normal(0, 2, (tokens, len(WORDS)))
    student, teacher = (
        log_softmax(logits),
        log_softmax(logits + gap * numbers.normal(0, 2, logits.shape)),
    )
    places, by = np.arange(tokens), np.take_along_axis
    best = {"student": np.argsort(-student)[:, :WIDTH], "teacher": np.argsort(-teacher)[:, :WIDTH]}
    own, other = student[places, ids], teacher[places, ids]
    columns = {
        "token_reward": other - own,
        "reverse_kl": (np.exp(student) * (student - teacher)).sum(1),
        "student_logprob": own,
        "teacher_logprob": other,
        "student_entropy": -(np.exp(student) * student).sum(1),
        "teacher_entropy": -(np.exp(teacher) * teacher).sum(1),
        "overlap_ratio": np.full(tokens, 0.75),
    }
    top = TracedTop(
        width=WIDTH,
        ids={f"{side}_top_ids": ids for side, ids in best.items()},
        logprobs={
            "student_top_logprobs": by(student, best["student"], 1),
            "student_top_teacher_logprobs": by(teacher, best["student"], 1),
            "teacher_top_logprobs": by(teacher, best["teacher"], 1),
            "teacher_top_student_logprobs": by(student, best["teacher"], 1),
        },
        ranks={
            "student_rank": 1 + (student > own[:, None]).sum(1),
            "teacher_rank": 1 + (teacher > other[:, None]).sum(1),
        },
        texts=dict(enumerate(WORDS)),
    )
    return TracedRollout(
        text=Text(prompt_index, ids, True, correct, written_step),
        prompt=f"What is the sum number {prompt_index}?",
        response="".join(WORDS[token] for token in ids),
        tokens=[WORDS[token] for token in ids],
        columns={name: columns[name] for name in COLUMNS},
        top=top,
    )


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.fixture(scope="module")
def site(django_db_setup):
    """The web server's address: plain HTTP, and static files as they lie in the checkout."""
    plain = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    with override_settings(
        SECURE_SSL_REDIRECT=False,
        SECURE_HSTS_SECONDS=0,
        SESSION_COOKIE_SECURE=False,
        STORAGES={**django_settings.STORAGES, "staticfiles": plain},
    ):
        server = LiveServer("localhost")
        yield server.url
        server.stop()


@pytest.fixture
def run(site, transactional_db):
    return make_running(project=make_project())


def add_trace(run, folder, rollouts, *, step, scribe):
    path = folder / f"{step}.parquet"
    traces.write(path, rollouts, step=step)
    artifact = publish(run, path.read_bytes(), step=step)
    told = tuple(rollout.text.prompt_index for rollout in rollouts)
    payload = TraceWritten(key=artifact.key, rollouts=len(rollouts), prompts=told)
    scribe.record(scribe.parsed(payload, step=step))


@pytest.fixture
def traced(run, tmp_path):
    """Three traces; prompt 7 is in the first and the last, its text read again while they converge."""
    scribe = Scribe(run)
    first = [
        make_rollout(60, prompt_index=7, correct=False),
        make_rollout(24, prompt_index=3, seed=1, gap=0.1),
    ]
    add_trace(run, tmp_path, first, step=1, scribe=scribe)
    second = [make_rollout(30, prompt_index=5, written_step=10, seed=2)]
    add_trace(run, tmp_path, second, step=10, scribe=scribe)
    third = [make_rollout(40, prompt_index=9, written_step=20, seed=3),
             make_rollout(60, prompt_index=7, correct=False, gap=0.0)]  # fmt: skip
    add_trace(run, tmp_path, third, step=20, scribe=scribe)
    return run


@pytest.fixture
def complaints(page: Page):
    heard: list[str] = []
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("console", lambda said: heard.append(said.text) if said.type == "error" else None)
    return heard


def open_samples(page: Page, site: str, run, client, query: str = "") -> None:
    client.force_login(make_user("reader", project=run.project, role="viewer"))
    name = django_settings.SESSION_COOKIE_NAME
    cookie = {"name": name, "value": client.cookies[name].value, "url": site}
    page.context.add_cookies([cookie])
    page.goto(f"{site}/runs/{run.public_id}/{query}#samples")
    page.locator(".pairs").wait_for()


def token(page: Page, position: int):
    return page.locator(f'.token-text .token[data-index="{position}"]')


def chosen(page: Page) -> int:
    return int(page.locator('.token[aria-selected="true"]').get_attribute("data-index"))


def worst(rollout: TracedRollout, measure: str = "token_reward", *, lowest: bool = True):
    values = traces.rounded(rollout.columns[measure])
    return [int(place) for place in np.argsort(values if lowest else -values, kind="stable")]


def test_tokens_are_coloured_by_a_measure_and_by_another(page, site, traced, client):
    open_samples(page, site, traced, client, "?step=1&rollout=0")
    rollout = make_rollout(60, prompt_index=7)
    lowest = worst(rollout)[0]
    assert rollout.columns["token_reward"][lowest] < -4
    expect(token(page, lowest)).to_have_attribute("data-level", "-4")
    expect(token(page, lowest)).to_have_attribute("data-worst", "1")
    page.get_by_label("Colour by").select_option("reverse_kl")
    highest = worst(rollout, "reverse_kl", lowest=False)[0]
    expect(token(page, highest)).to_have_attribute("data-worst", "1")
    expect(page.locator(".token-scale")).to_have_attribute("aria-label", "Scale of Reverse KL")
    page.get_by_label("Colour by").select_option("overlap_ratio")
    expect(token(page, lowest)).to_have_attribute("data-level", "-1")  # .75 is below .8
    assert "colour=overlap_ratio" in page.url


def test_the_panel_pairs_both_models_top_tokens(page, site, traced, client):
    open_samples(page, site, traced, client, "?step=1&rollout=0&token=5")
    rollout = make_rollout(60, prompt_index=7)
    expect(page.locator(".token-place")).to_have_text("token 6 of 60")
    tops = {side: rollout.top.ids[f"{side}_top_ids"][5].tolist() for side in ("student", "teacher")}
    for side, ids in tops.items():
        shown = page.locator(f'.pairs-side[data-side="{side}"] .pair:not([data-outside])')
        expect(shown).to_have_count(WIDTH)
        first = shown.first.get_attribute("aria-label")
        assert first.startswith(f"{spoken(WORDS[ids[0]])}: 1st, "), first
        expect(page.locator(f'.pairs-side[data-side="{side}"] [data-written]')).to_have_count(1)
    written = rollout.text.ids[5]
    shared = len({*tops["student"], written} & {*tops["teacher"], written})
    expect(page.locator(".pairs-links path")).to_have_count(shared)
    expect(page.locator(".pairs-links path[data-written]")).to_have_count(1)


def spoken(text: str) -> str:
    return {"\n": "new line"}.get(text, text)


def test_hover_tells_of_a_token_and_leaving_returns_to_the_chosen_one(page, site, traced, client):
    open_samples(page, site, traced, client, "?step=1&rollout=0&token=5")
    token(page, 9).hover()
    expect(page.locator(".token-place")).to_have_text("token 10 of 60")
    page.locator(".token-title").hover()
    expect(page.locator(".token-place")).to_have_text("token 6 of 60")


def test_n_and_p_walk_the_worst_tokens_and_say_them(page, site, traced, client):
    open_samples(page, site, traced, client, "?step=1&rollout=0")
    order = worst(make_rollout(60, prompt_index=7))
    assert chosen(page) == order[0]
    page.locator('.token[aria-selected="true"]').focus()
    for place, key in ((1, "n"), (2, "n"), (1, "p")):
        page.keyboard.press(key)
        expect(token(page, order[place])).to_be_focused()
    expect(page.locator(".token-worst-place")).to_have_text("Worst 2 of 60")
    page.get_by_role("button", name="Next worst token").click()
    expect(token(page, order[2])).to_be_focused()
    said = page.locator("token-view [role=status]")
    expect(said).to_contain_text(f"token {order[2] + 1} of 60. Token reward")
    assert f"token={order[2]}" in page.url
    assert "/runs/new" not in page.url


def test_one_token_is_in_the_tab_order_and_arrows_move_it(page, site, traced, client):
    open_samples(page, site, traced, client, "?step=1&rollout=0&token=0")
    expect(page.locator('.token-text [tabindex="0"]')).to_have_count(1)
    token(page, 0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(token(page, 2)).to_be_focused()
    page.keyboard.press("ArrowDown")
    assert chosen(page) > 3
    page.keyboard.press("End")
    expect(token(page, 59)).to_be_focused()
    expect(page.locator('.token-text [tabindex="0"]')).to_have_count(1)
    expect(token(page, 59)).to_have_class(re.compile("token-special"))


def test_the_slider_follows_a_prompt_and_says_where_it_is_not(page, site, traced, client):
    open_samples(page, site, traced, client, "?step=1&rollout=0&token=5")
    expect(page.locator(".step-said")).to_have_text("Prompt 7 is in 2 of 3 traces")
    expect(page.locator(".step-tick[data-kept]")).to_have_count(2)
    slider = page.get_by_role("slider", name="Step")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("token-view .empty")).to_contain_text("Prompt 7 was not traced at step 10")
    expect(slider).to_have_attribute("aria-valuetext", "step 10, this prompt was not traced")
    page.locator("token-view .empty").get_by_role("button", name="Step 20").click()
    expect(page.locator(".token-title")).to_contain_text("Written at step 1, read again")
    assert chosen(page) == 5
    expect(token(page, worst(make_rollout(60, prompt_index=7))[0])).not_to_have_attribute(
        "data-level", re.compile(".")
    )
    expect(page.locator(".rollout[aria-current]")).to_contain_text("Prompt 7")
    page.get_by_role("button", name="Earlier step with this prompt").click()
    expect(page.locator(".step-place")).to_have_text("Step 1")


def test_rollouts_are_ordered_by_their_mean_gap(page, site, traced, client):
    open_samples(page, site, traced, client, "?step=20")
    names = page.locator(".rollout-name")
    expect(names).to_have_text(["Prompt 9", "Prompt 7"])
    page.get_by_label("Order of rollouts").select_option("wrong")
    expect(names).to_have_text(["Prompt 7", "Prompt 9"])
    page.get_by_label("Order of rollouts").select_option("gap")
    expect(names).to_have_text(["Prompt 9", "Prompt 7"])
    page.locator(".rollout", has_text="Prompt 7").click()
    expect(page.locator(".token-title")).to_contain_text("Prompt 7")
    assert "rollout=1" in page.url


def test_a_link_opens_its_place_again(page, site, traced, client, complaints):
    query = "?step=1&rollout=1&token=4&colour=student_entropy"
    open_samples(page, site, traced, client, query)
    assert chosen(page) == 4
    expect(page.get_by_label("Colour by")).to_have_value("student_entropy")
    expect(page.locator(".token-title")).to_contain_text("Prompt 3")
    assert [told for told in complaints if "WebSocket" not in told] == []


def test_white_space_and_end_tokens_are_seen(page, site, traced, client):
    open_samples(page, site, traced, client, "?step=1&rollout=0")
    rollout = make_rollout(60, prompt_index=7)
    line_end = rollout.tokens.index("\n")
    expect(token(page, line_end)).to_have_attribute("aria-label", "new line")
    expect(token(page, line_end).locator(".token-glyph")).to_have_text("\u21b5")
    assert token(page, rollout.tokens.index(" sum")).locator(".token-space").count() == 1


def test_text_of_a_model_is_shown_as_text(page, site, run, client, tmp_path):
    hostile = "<img src=x onerror=alert(1)>"
    made = make_rollout(3)
    evil = TracedRollout(
        text=made.text, prompt=hostile, response=hostile, tokens=[hostile, "\t", " a"],
        columns=made.columns, top=TracedTop(WIDTH, made.top.ids, made.top.logprobs, made.top.ranks,
                                            dict.fromkeys(range(len(WORDS)), hostile)),
    )  # fmt: skip
    add_trace(run, tmp_path, [evil], step=1, scribe=Scribe(run))
    open_samples(page, site, run, client)
    expect(token(page, 0)).to_have_text(hostile)
    expect(page.locator(".token-prompt")).to_have_text(hostile)
    assert page.locator("token-view img").count() == 0


def test_eight_thousand_tokens_open_scroll_and_are_walked(page, site, run, client, tmp_path):
    add_trace(run, tmp_path, [make_rollout(LONG)], step=1, scribe=Scribe(run))
    open_samples(page, site, run, client)
    expect(page.locator(".token-text .token")).to_have_count(LONG)
    page.locator(".token-text").scroll_into_view_if_needed()
    assert skipped_share(page) > 0.8
    page.locator(".token-text").hover()
    page.mouse.wheel(0, 5000)
    expect(page.locator(".token-block").first).not_to_be_in_viewport()
    assert skipped_share(page) > 0.8
    token(page, chosen(page)).focus()
    page.keyboard.press("End")
    expect(token(page, LONG - 1)).to_be_focused()
    expect(token(page, LONG - 1)).to_be_in_viewport()
    expect(page.locator(".token-place")).to_have_text("token 8,000 of 8,000")
    expect(page.locator(".pairs")).to_be_visible()


def skipped_share(page: Page) -> float:
    """Share of the text's blocks that the browser neither lays out nor paints now."""
    return page.evaluate("""() => {
      const words = [...document.querySelectorAll(".token-words")];
      const left = words.filter((node) => !node.checkVisibility({ contentVisibilityAuto: true }));
      return left.length / words.length;
    }""")


def test_it_is_read_on_a_narrow_screen_with_the_panel_below(page, site, traced, client):
    page.set_viewport_size({"width": 375, "height": 812})
    open_samples(page, site, traced, client, "?step=1&rollout=0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    text, panel = (page.locator(place).bounding_box() for place in (".token-text", ".token-panel"))
    assert panel["y"] >= text["y"] + text["height"]
