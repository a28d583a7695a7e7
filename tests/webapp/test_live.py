"""The live path: every event reaches the page as it was written, gapless and once, bell or no bell."""

import json

import pytest
from channels.layers import get_channel_layer
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser

from opdcore.contract import events as contract
from opdcore.contract.events import (
    ArtifactDropped,
    ArtifactWritten,
    Evaluated,
    Health,
    JobFinished,
    JobStarted,
    Logged,
    Metrics,
    Progress,
    Selected,
    StageFinished,
    StageStarted,
    TraceWritten,
    metrics,
)
from opdcore.contract.positions import Positions
from opdcore.contract.verdicts import Verdict
from tests.webapp.diagnoses import make_diagnosis
from tests.workers.rows import Scribe, make_running, make_user
from webapp import consumers
from webapp.models import Event, Run
from webapp.routing import websocket_urlpatterns
from webapp.services import live, recording

PAYLOADS = (
    JobStarted(device="cpu", versions={"torch": "2"}, steps_by_stage=(20,)),
    StageStarted(stage_kind="distill", steps=20),
    Progress(what='a "payload": in a text', done=1, total=None, unit="models"),
    Metrics(values={"loss": 0.1, "reward": None}, nonfinite={"reward": "nan"}),
    Positions(edges=(0, 4), positions=(2,), values={"overlap_ratio": (0.5,)}),
    Evaluated(
        role="student", prompts=4, samples_per_prompt=1, verifier="exact", values={"accuracy": 0.5}
    ),
    TraceWritten(key="traces/step-1.parquet", rollouts=2),
    ArtifactWritten(artifact_kind="output", key="output", sha256="0" * 64, size_bytes=3),
    ArtifactDropped(key="checkpoints/a"),
    Health(verdict=Verdict(code="HEALTHY", go="go", confidence="low", explanation="Well.")),
    make_diagnosis(),
    Selected(
        key="selections/stage-00.json",
        strategy="gap",
        steps=0,
        counts={"kept": 3, "no_gap": 1},
        student_tokens=40,
        teacher_tokens=44,
    ),
    Logged(level="info", message="a line\nwith </script> and \u00e9"),
    StageFinished(seconds=1.5),
    JobFinished(status="succeeded"),
)


def test_the_round_trip_covers_every_kind_of_event():
    kinds = {contract.shape(payload, attempt=1, line=1).kind for payload in PAYLOADS}
    schema = contract.EVENT.json_schema()
    assert kinds == set(schema["discriminator"]["mapping"])


@pytest.mark.django_db
def test_every_kind_of_event_goes_from_line_to_row_to_socket_unchanged():
    admin = make_user(role="admin")
    admin.is_superuser = True
    run = make_running()
    scribe = Scribe(run)
    raws = [scribe.raw(payload, step=3) for payload in PAYLOADS]
    scribe.record(*map(recording.parse, raws))
    sent = json.loads(live.read(admin, run.public_id, after=0).text)["events"]
    rows = Event.objects.order_by("seq").values(*live._COLUMNS)
    for seq, (raw, message, row) in enumerate(zip(raws, sent, rows, strict=True), start=1):
        assert live.encode(row) == f'{{"seq":{seq},{raw.decode()[1:]}'
        assert message == {"seq": seq, **json.loads(raw)}


@pytest.mark.django_db
def test_a_payload_that_is_not_written_last_is_still_kept():
    scribe = Scribe(make_running())
    document = json.loads(scribe.raw(Logged(level="info", message="x")))
    swapped = {"payload": document.pop("payload"), **document}
    line = recording.parse(json.dumps(swapped).encode())
    assert json.loads(line.payload) == {"level": "info", "message": "x"}


@pytest.mark.django_db
def test_pages_of_events_join_without_gap_or_overlap():
    user = make_user(role="viewer")
    user.is_superuser = True
    run = make_running()
    scribe = Scribe(run)
    lines = [scribe.parsed(metrics({"loss": 1.0}), step=i) for i in range(1, 1203)]
    for i in range(0, len(lines), 400):
        scribe.record(*lines[i : i + 400])
    seen, after, more = [], 2, True
    while more:
        page = live.read(user, run.public_id, after=after)
        seen += [event["seq"] for event in json.loads(page.text)["events"]]
        after, more = page.seq, page.more
    assert seen == list(range(3, 1203))


@pytest.fixture(autouse=True)
def bells_within_this_process(settings):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}


class Reader:
    """A browser's socket, logged in as `user`."""

    def __init__(self, run, user, *, after=0):
        path = f"/ws/runs/{run.public_id}/?after={after}"
        self.socket = WebsocketCommunicator(URLRouter(websocket_urlpatterns), path)
        self.socket.scope["user"] = user

    async def __aenter__(self):
        connected, _ = await self.socket.connect(timeout=10)
        assert connected
        return self

    async def __aexit__(self, *_):
        await self.socket.disconnect()

    async def message(self):
        return json.loads(await self.socket.receive_from(timeout=10))


def sync(function):
    from channels.db import database_sync_to_async

    return database_sync_to_async(function)


async def record(scribe, *payloads, ring=True):
    await sync(scribe.record)(*(scribe.parsed(payload, step=1) for payload in payloads))
    if ring:
        run = await sync(Run.objects.get)(pk=scribe.author.run_id)
        await get_channel_layer().group_send(run.bell, {"type": "run.changed"})


def member_and_run():
    run = make_running()
    return make_user(project=run.project, role="viewer"), run


@pytest.mark.django_db(transaction=True)
async def test_a_reader_gets_what_was_written_before_and_after_it_came():
    user, run = await sync(member_and_run)()
    scribe = Scribe(run)
    await record(scribe, Logged(level="info", message="before"))
    async with Reader(run, user) as reader:
        first = await reader.message()
        assert [event["payload"]["message"] for event in first["events"]] == ["before"]
        assert (first["seq"], first["status"]) == (1, "running")
        await record(scribe, Logged(level="info", message="after"))
        second = await reader.message()
        assert [event["seq"] for event in second["events"]] == [2]


@pytest.mark.django_db(transaction=True)
async def test_a_lost_bell_costs_seconds_and_no_event(monkeypatch):
    monkeypatch.setattr(consumers, "LIVE_SECONDS", 0.2)
    user, run = await sync(member_and_run)()
    scribe = Scribe(run)
    async with Reader(run, user) as reader:
        assert (await reader.message())["events"] == []
        await record(scribe, Logged(level="info", message="unheard"), ring=False)
        assert [event["seq"] for event in (await reader.message())["events"]] == [1]


@pytest.mark.django_db(transaction=True)
async def test_a_reader_that_comes_back_continues_after_its_last_seq():
    user, run = await sync(member_and_run)()
    scribe = Scribe(run)
    await record(scribe, *(Logged(level="info", message=str(i)) for i in range(5)))
    async with Reader(run, user, after=3) as reader:
        assert [event["seq"] for event in (await reader.message())["events"]] == [4, 5]


@pytest.mark.django_db(transaction=True)
async def test_many_bells_send_nothing_twice():
    user, run = await sync(member_and_run)()
    scribe = Scribe(run)
    async with Reader(run, user) as reader:
        await reader.message()
        for i in range(20):
            await record(scribe, Logged(level="info", message=str(i)))
        seen = []
        while len(seen) < 20:
            seen += [event["seq"] for event in (await reader.message())["events"]]
        assert seen == list(range(1, 21))
        assert await reader.socket.receive_nothing(timeout=0.3)


@pytest.mark.django_db(transaction=True)
async def test_a_change_of_status_is_sent_without_any_event():
    user, run = await sync(member_and_run)()
    async with Reader(run, user) as reader:
        assert (await reader.message())["status"] == "running"
        await sync(Run.objects.filter(pk=run.pk).update)(status="failed")
        await get_channel_layer().group_send(run.bell, {"type": "run.changed"})
        assert await reader.message() == {"events": [], "seq": 0, "status": "failed"}


async def refusal(run, user, *, after=0):
    reader = Reader(run, user, after=after)
    await reader.socket.connect(timeout=10)
    return (await reader.socket.receive_output(timeout=10))["code"]


@pytest.mark.django_db(transaction=True)
async def test_only_members_may_listen():
    member, run = await sync(member_and_run)()
    stranger = await sync(make_user)("stranger")
    assert await refusal(run, AnonymousUser()) == consumers.NOT_LOGGED_IN
    assert await refusal(run, stranger) == consumers.NOT_FOUND
    assert await refusal(run, member, after="x") == consumers.BAD_REQUEST


@pytest.mark.django_db(transaction=True)
async def test_whoever_leaves_the_project_is_cut_off():
    user, run = await sync(member_and_run)()
    async with Reader(run, user) as reader:
        await reader.message()
        await sync(user.memberships.all().delete)()
        await get_channel_layer().group_send(run.bell, {"type": "run.changed"})
        assert (await reader.socket.receive_output(timeout=10))["code"] == consumers.NOT_FOUND
