"""Live: a run's events after a seq, as the messages that a socket sends.

One method serves replay and live alike: it reads the database, whatever bell was or was not heard.
"""

from __future__ import annotations

import orjson

from webapp.models import Event, Run, User

MESSAGE_EVENTS = 500
# A message is cut before it grows beyond this, so that one slow page holds little memory.
MESSAGE_BYTES = 1 << 20

_COLUMNS = ("seq", "attempt", "line", "stage_index", "step", "at", "kind", "payload")


class Page:
    """One message: `text` as it goes out, `seq` of its last event, whether more are waiting."""

    __slots__ = ("empty", "more", "seq", "status", "text")

    def __init__(self, rows: list[str], *, seq: int, status: str, more: bool) -> None:
        self.empty = not rows
        self.more = more
        self.seq = seq
        self.status = status
        self.text = f'{{"events":[{",".join(rows)}],"seq":{seq},"status":"{status}"}}'


def read(user: User, public_id: str, *, after: int) -> Page | None:
    """The next events that the user may see; None where the run is not visible to the user."""
    run = Run.objects.visible_to(user).filter(public_id=public_id).values("pk", "status").first()
    if run is None:
        return None
    events = Event.objects.filter(run_id=run["pk"]).after(after).values(*_COLUMNS)
    rows: list[str] = []
    size = 0
    for event in events[: MESSAGE_EVENTS + 1]:
        if len(rows) == MESSAGE_EVENTS or (rows and size > MESSAGE_BYTES):
            return Page(rows, seq=after, status=run["status"], more=True)
        rows.append(encode(event))
        size += len(rows[-1])
        after = event["seq"]
    return Page(rows, seq=after, status=run["status"], more=False)


def encode(event: dict[str, object]) -> str:
    """An event's row as JSON: the line as its job wrote it, with the run's seq before it."""
    head = {key: event[key] for key in _COLUMNS[:-1]}
    text = orjson.dumps(head, option=orjson.OPT_UTC_Z).decode()
    return f'{text[:-1]},"payload":{event["payload"]}}}'
