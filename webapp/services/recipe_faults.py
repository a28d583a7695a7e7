"""Pydantic's complaints about a contract document, as faults of a knob with a remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

SHOWN_VALUE = 60

# Kind of pydantic's error: what is wrong and what to do, of its value and its context.
TEXTS: dict[str, tuple[str, str]] = {
    "greater_than": ("{value} is too small.", "Give more than {gt}."),
    "greater_than_equal": ("{value} is too small.", "Give at least {ge}."),
    "less_than": ("{value} is too large.", "Give less than {lt}."),
    "less_than_equal": ("{value} is too large.", "Give at most {le}."),
    "int_parsing": ("{value} is no whole number.", "Give a whole number, such as 16."),
    "int_type": ("{value} is no whole number.", "Give a whole number, such as 16."),
    "int_from_float": ("{value} is no whole number.", "Give a whole number, such as 16."),
    "float_parsing": ("{value} is no number.", "Give a number, such as 0.5 or 1e-6."),
    "float_type": ("{value} is no number.", "Give a number, such as 0.5 or 1e-6."),
    "finite_number": ("{value} is not finite.", "Give a number, such as 0.5 or 1e-6."),
    "bool_parsing": ("{value} is neither true nor false.", "Give true or false."),
    "literal_error": ("{value} is no choice here.", "Choose {expected}."),
    "extra_forbidden": ("There is no knob of this name.", "Remove it, or mend its spelling."),
    "missing": ("It is missing.", "Give it."),
    "string_too_short": ("It is empty.", "Give a text."),
    "string_too_long": ("It is too long.", "Give at most {max_length} characters."),
    "too_short": ("It is empty.", "Give at least {min_length}."),
    "too_long": ("There are too many.", "Give at most {max_length}."),
    "union_tag_invalid": ("There is no stage of kind {tag}.", "Choose {expected_tags}."),
    "union_tag_not_found": ("The stage does not say its kind.", "Give kind: distill, or another."),
}


class Fault(NamedTuple):
    """What is wrong with one knob; the path is dotted, such as stages.0.k."""

    path: str
    kind: str
    message: str
    remedy: str


def faults_of(error: ValidationError) -> list[Fault]:
    """One fault for each of pydantic's complaints.

    A list whose items are unsound is also called too short; that says nothing of its own.
    """
    faults = [_fault(one) for one in error.errors()]
    return [one for one in faults if not (one.kind == "too_short" and _has_inner(one, faults))]


def _has_inner(outer: Fault, faults: list[Fault]) -> bool:
    return any(one.path.startswith(f"{outer.path}.") for one in faults)


def _fault(error: ErrorDetails) -> Fault:
    path, kind = _path(error["loc"]), error["type"]
    if kind == "value_error":
        return _of_validator(path, error["msg"].removeprefix("Value error, "))
    message, remedy = TEXTS.get(kind, ("{value} cannot be used.", error["msg"] + "."))
    context = {name: _bound(value) for name, value in error.get("ctx", {}).items()}
    words = {**context, "value": _shown(error["input"])}
    return Fault(path, kind, message.format(**words), remedy.format(**words))


def _of_validator(path: str, message: str) -> Fault:
    """The contract's own checks begin with the knob's name, and end with the remedy."""
    knob, _, rest = message.partition(": ")
    within = f"{path}.{knob}" if path else knob
    fault, _, remedy = rest.rpartition("; ")
    if not remedy or not knob.isidentifier():
        return Fault(path, "unsound", f"{message}.", "Change it.")
    return Fault(within, "unsound", f"{fault}.", f"{remedy[:1].upper()}{remedy[1:]}.")


def _path(loc: Sequence[int | str]) -> str:
    """Without the stage's kind, which pydantic puts behind its index."""
    parts = [
        str(part)
        for place, part in enumerate(loc)
        if not (place == 2 and loc[0] == "stages" and isinstance(loc[1], int))
    ]
    return ".".join(parts)


def _bound(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shown(value: object) -> str:
    text = "nothing" if value in ("", None) else str(value)
    return text if len(text) <= SHOWN_VALUE else text[: SHOWN_VALUE - 1] + "…"
