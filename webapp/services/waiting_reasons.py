"""Why each waiting run is not running yet, in words, by the decision that workers claim by.

It knows nothing of leases and heartbeats: only hosts that are there are given to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings
from django.template.defaultfilters import filesizeformat

from webapp.models import Run
from webapp.services.allocation import Decision, Request, Unit, decisions
from webapp.services.resources import needs, words

NOBODY = "No worker is running."


@dataclass(frozen=True, slots=True)
class There:
    """A host whose worker is running."""

    host: str
    units: tuple[Unit, ...]


def of(runs: Sequence[Run], hosts: Sequence[There]) -> dict[int, str]:
    """The reason of each run by its key; `runs` is the queue from its beginning."""
    found: dict[int, list[tuple[There, Decision]]] = {run.pk: [] for run in runs}
    started: set[int] = set()
    for host in hosts:
        own = [run for run in runs if _may_run(run, host) and run.pk not in started]
        for one in decisions([_request(run) for run in own], host.units):
            found[one.request.key].append((host, one))
            started |= {one.request.key} if one.granted else set()
    return {run.pk: _told(run, found[run.pk]) if hosts else NOBODY for run in runs}


def _request(run: Run) -> Request:
    return Request(run.pk, needs(run.resources, teacher_server=run.teacher_server))


def _may_run(run: Run, host: There) -> bool:
    """Its models are on that host, and its folder too, or nowhere yet, or everywhere."""
    if run.downloads and run.downloaded_to != host.host:
        return False
    return not run.host or settings.WORKER_SHARED_STATE or run.host == host.host


def _told(run: Run, found: Sequence[tuple[There, Decision]]) -> str:
    if not found:
        return _nowhere(run)
    if any(one.granted for _, one in found):
        return "It starts in a moment."
    suited = [(host, one) for host, one in found if one.fits]
    wanted = words(needs(run.resources))
    if not suited:
        return f"No running worker has {wanted}."
    kept = max(len(one.kept) for _, one in suited)
    if kept:
        return f"Waits for {wanted}; {kept} {'is' if kept == 1 else 'are'} free, kept for it."
    if any(_would_use(one.request, host) for host, one in suited):
        return f"Waits for {wanted}; what is free is kept for older runs."
    return f"Waits for {wanted}; none is free."


def _nowhere(run: Run) -> str:
    """Why no host may run it yet."""
    if not run.downloads or run.downloaded_to:
        return f"Its run folder is on {run.host or run.downloaded_to}, whose worker is silent."
    if run.progress and run.progress["unit"] == "tries":
        tries = f"{run.progress['done']} of {run.progress['total']}"
        return f"{run.progress['what']} That was try {tries}; the next one comes by itself."
    if run.progress:
        done, total = (filesizeformat(run.progress[key]) for key in ("done", "total"))
        return f"Its models are being downloaded: {done} of {total}."
    return "Its models are downloaded next; it holds no device meanwhile."


def _would_use(request: Request, host: There) -> bool:
    """Whether some free device would serve it, if no older run waited."""
    alone = next(decisions([request], host.units))
    return alone.granted is not None or bool(alone.kept)
