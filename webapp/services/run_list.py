"""The run list: filters, order and page as an address says them, read by key and not by offset.

A page is found from the row before it, so the thousandth page costs what the first one does. Runs
without the column's value come last in either direction. It knows no template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from django.db.models import F, Q, TextField
from django.db.models.functions import Cast

from webapp.models import Run
from webapp.models.runs import RunQuerySet

ROWS = 50
NEWEST = "-created"
# What the list can be sorted by, and the column behind it.
COLUMNS: dict[str, str] = {
    "created": "created_at",
    "name": "name",
    "overlap_ratio": "overlap_ratio",
    "reward": "reward",
    "loss": "loss",
    "accuracy": "accuracy",
    "gap_recovery": "gap_recovery",
}
NULLABLE = {"overlap_ratio", "reward", "loss", "accuracy", "gap_recovery"}
OUTCOMES = ("success", "partial", "no_gain", "regressed", "inconclusive", "unmeasured")


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for; an unknown sort or status counts as not given."""

    text: str = ""
    status: str = ""
    outcome: str = ""
    pair: str = ""
    tag: str = ""
    sort: str = NEWEST
    after: str = ""  # public id of the row before the page
    before: str = ""  # public id of the row after the page

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> Query:
        """Reads a page's parameters."""
        asked = {name: str(parameters.get(name, "")).strip()[:120] for name in cls.__slots__}
        if asked["status"] not in Run.Status.values:
            asked["status"] = ""
        if asked["outcome"] not in OUTCOMES:
            asked["outcome"] = ""
        if asked["sort"].removeprefix("-") not in COLUMNS:
            asked["sort"] = NEWEST
        return cls(**asked)

    @property
    def filtered(self) -> bool:
        """Whether anything narrows the list."""
        return any((self.text, self.status, self.outcome, self.pair, self.tag))

    @property
    def key(self) -> str:
        return self.sort.removeprefix("-")

    @property
    def descending(self) -> bool:
        return self.sort.startswith("-")

    def address(self, **changes: str) -> str:
        """The parameters of this list with some changed; a change of more than the page restarts it."""
        fresh = {"after": "", "before": ""} | changes
        asked = replace(self, **fresh)
        given = {name: getattr(asked, name) for name in self.__slots__}
        return "?" + urlencode({name: value for name, value in given.items() if value})

    def sorted_by(self, key: str) -> str:
        """The address that sorts by this column: best or newest first, then the other way around."""
        turned = key if self.key == key and self.descending else f"-{key}"
        return self.address(sort=turned)


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in order, and the neighbours' addresses where there are any."""

    rows: list[Run]
    newer: str | None
    older: str | None


def read(runs: RunQuerySet, query: Query) -> Page:
    """One page of the runs that the query asks for."""
    found = matching(runs, query)
    anchor = _anchor(runs, query)
    backwards = bool(query.before) and anchor is not None
    ordered = _ordered(found, query, backwards=backwards)
    if anchor is not None:
        ordered = ordered.filter(_beyond(anchor, query, backwards=backwards))
    rows = list(ordered.listed()[: ROWS + 1])
    more, rows = len(rows) > ROWS, rows[:ROWS]
    if backwards:
        rows.reverse()
    has_newer = more if backwards else anchor is not None
    has_older = bool(rows) and (backwards or more)
    return Page(
        rows,
        newer=query.address(before=rows[0].public_id) if rows and has_newer else None,
        older=query.address(after=rows[-1].public_id) if has_older else None,
    )


def matching(runs: RunQuerySet, query: Query) -> RunQuerySet:
    """The runs that pass the filters."""
    if query.text:
        named = Q(name__icontains=query.text) | Q(public_id__iexact=query.text)
        models = Q(pair__name__icontains=query.text) | Q(recipe__name__icontains=query.text)
        runs = runs.filter(named | models)
    if query.status:
        runs = runs.filter(status=query.status)
    if query.outcome:
        runs = runs.filter(outcome__code=query.outcome)
    if query.pair:
        runs = runs.filter(pair__public_id=query.pair)
    return _tagged(runs, query.tag) if query.tag else runs


def _tagged(runs: RunQuerySet, tag: str) -> RunQuerySet:
    """Runs with this tag; a search in the column's text, which every database can do."""
    texts = {json.dumps(tag), json.dumps(tag, ensure_ascii=False)}
    has_tag = Q()
    for text in texts:
        has_tag |= Q(tags_text__contains=text)
    return runs.annotate(tags_text=Cast("tags", TextField())).filter(has_tag)


def _anchor(runs: RunQuerySet, query: Query) -> tuple[Any, int] | None:
    """The column's value and the key of the row that the page borders on; None for the first page.

    It is looked for before the filters: since the page was shown, it may have left them.
    """
    public_id = query.before or query.after
    if not public_id:
        return None
    column = COLUMNS[query.key]
    return runs.filter(public_id=public_id).values_list(column, "pk").first()


def _ordered(runs: RunQuerySet, query: Query, *, backwards: bool) -> RunQuerySet:
    descending = query.descending != backwards
    column, key = F(COLUMNS[query.key]), F("pk")
    if query.key not in NULLABLE:
        by_value = column.desc() if descending else column.asc()
    elif backwards:
        by_value = column.desc(nulls_first=True) if descending else column.asc(nulls_first=True)
    else:
        by_value = column.desc(nulls_last=True) if descending else column.asc(nulls_last=True)
    return runs.order_by(by_value, key.desc() if descending else key.asc())


def _beyond(anchor: tuple[Any, int], query: Query, *, backwards: bool) -> Q:
    """Rows after the anchor in the order of reading."""
    value, key = anchor
    column = COLUMNS[query.key]
    side = "lt" if query.descending != backwards else "gt"
    tied = Q(**{column: value} if value is not None else {f"{column}__isnull": True})
    later = tied & Q(**{f"pk__{side}": key})
    if value is None:
        return later | Q(**{f"{column}__isnull": False}) if backwards else later
    later |= Q(**{f"{column}__{side}": value})
    if query.key in NULLABLE and not backwards:
        later |= Q(**{f"{column}__isnull": True})
    return later
