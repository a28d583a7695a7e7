"""The prompts that a run has selected, as its page browses them: counts, a histogram, and one page of rows.

What was chosen is told by events; the candidates are read from the published file. It knows no
request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson
from django.core.files.storage import storages

from opdcore.contract.selection import REASONS, Choice, Reason, Selection, Source
from webapp.models import Event, Run

_SETS: dict[Source, str] = {
    "train": "training prompts",
    "teacher_content": "teacher's prompts",
    "outside": "outside prompts",
}
ROWS = 25
BARS = 16


@dataclass(frozen=True, slots=True)
class Told:
    """A selection as its event tells it."""

    key: str
    steps: int
    counts: dict[Reason, int]

    @property
    def name(self) -> str:
        return f"After {self.steps:,} distillation steps" if self.steps else "Before distillation"


@dataclass(frozen=True, slots=True)
class Bar:
    """Candidates whose measure lies between two values; heights are percent of the tallest bar."""

    low: float
    high: float
    kept: int
    dropped: int
    kept_height: float
    height: float

    @property
    def y(self) -> float:
        """Where the bar begins in a drawing 100 high."""
        return 100 - self.height

    @property
    def kept_y(self) -> float:
        """Where its kept part begins: it stands at the foot."""
        return 100 - self.kept_height


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate in words; `earlier` is the prompt that it repeats."""

    choice: Choice
    place: str
    words: str
    earlier: str | None


@dataclass(frozen=True, slots=True)
class Shown:
    """One selection, with a page of those candidates that have the reason asked for."""

    selection: Selection
    rows: Sequence[Choice]
    reason: Reason | None
    page: int
    last_page: int
    bars: list[Bar]

    @property
    def counts(self) -> list[tuple[Reason, str, int]]:
        """Each reason that occurs, its words, and how many candidates have it."""
        return [(one, REASONS[one], count) for one, count in self.selection.counts.items()]

    @property
    def dropped(self) -> int:
        return len(self.selection.choices) - len(self.selection.kept)

    @property
    def is_measured(self) -> bool:
        return bool(self.bars)

    @property
    def is_graded(self) -> bool:
        """Whether both sides were asked and graded."""
        return self.selection.strategy == "gap"

    @property
    def measure(self) -> str:
        """What candidates were ranked by."""
        return "Gap" if self.is_graded else "Reverse KL, nat"

    @property
    def table(self) -> list[Row]:
        """The page's rows with their words."""
        return [Row(one, _place(one.source, one.source_row), REASONS[one.reason],
                    self._earlier(one)) for one in self.rows]  # fmt: skip

    def _earlier(self, choice: Choice) -> str | None:
        """Which prompt a duplicate repeats."""
        if choice.like_row is None:
            return None
        like = next(one for one in self.selection.choices if one.row == choice.like_row)
        return _place(like.source, like.source_row)

    @property
    def newer(self) -> int | None:
        return self.page - 1 or None

    @property
    def older(self) -> int | None:
        return self.page + 1 if self.page < self.last_page else None


def told(run: Run) -> list[Told]:
    """The run's selections, the oldest first; one that was told again counts once."""
    payloads = Event.objects.filter(run=run, kind="selection").order_by("seq")
    said = map(orjson.loads, payloads.values_list("payload", flat=True))
    found = {one["key"]: Told(one["key"], one["steps"], one["counts"]) for one in said}
    return sorted(found.values(), key=lambda one: one.key)


def show(run: Run, key: str, *, reason: str, page: int) -> Shown | None:
    """A selection as people browse it; None where its file is not published yet."""
    artifact = run.artifacts.filter(kind="selection", key=key, dropped=False)
    found = artifact.exclude(storage_key="").last()
    if found is None:
        return None
    with storages["artifacts"].open(found.storage_key) as stored:
        selection = Selection.model_validate_json(stored.read())
    wanted = next((one for one in REASONS if one == reason), None)
    rows = [one for one in selection.choices if wanted in (None, one.reason)]
    last = max(0, len(rows) - 1) // ROWS + 1
    page = min(max(1, page), last)
    return Shown(
        selection=selection,
        rows=rows[(page - 1) * ROWS : page * ROWS],
        reason=wanted,
        page=page,
        last_page=last,
        bars=list(_bars(selection)),
    )


def _place(source: Source, row: int) -> str:
    """Such as `training prompts, row 12`, counted from 1 as the set's own page does."""
    return f"{_SETS[source]}, row {row + 1:,}"


def _bars(selection: Selection) -> Iterator[Bar]:
    """Kept and dropped candidates by what they were ranked by; none where nothing was measured."""
    measured = [(one.measure, one.reason) for one in selection.choices if one.measure is not None]
    if not measured:
        return
    low, high = min(measured)[0], max(measured)[0]
    width = (high - low) / BARS or 1.0
    kept, dropped = [0] * BARS, [0] * BARS
    for value, reason in measured:
        place = min(BARS - 1, int((value - low) / width))
        (kept if reason == "kept" else dropped)[place] += 1
    tallest = max(map(sum, zip(kept, dropped, strict=True)))
    for place in range(BARS):
        both = kept[place] + dropped[place]
        yield Bar(
            low=low + place * width,
            high=low + (place + 1) * width,
            kept=kept[place],
            dropped=dropped[place],
            kept_height=100 * kept[place] / tallest,
            height=100 * both / tallest,
        )
