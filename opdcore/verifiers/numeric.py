r"""Grades numbers: signs, thousands separators, decimals, fractions, percentages, GSM8K's `####`.

It knows no algebra: `2 \sqrt{3}` and `x = y` are `math`'s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from opdcore.verifiers.grading import (
    NO_ANSWER,
    NO_REFERENCE,
    UNREADABLE_REFERENCE,
    Attempt,
    Grade,
    stated_answer,
)

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""
    (?: (?<![\w.)\]}}]) (?P<sign>[-+]) )?          # not the dash of "10-12"; "x - 3" ends in 3
    \$? \s?
    (?: (?P<whole>\d+) (?: \s+ (?=\d+/) | \s* (?=\\frac) ) )?       # mixed: 1 1/2
    (?: \\frac \s* (?: \{{ (?P<top>{_DECIMAL}) \}} | (?P<top1>\d) )
               \s* (?: \{{ (?P<low>{_DECIMAL}) \}} | (?P<low1>\d) )
      | (?<![\d.]) (?P<value>{_DECIMAL}) (?: [eE](?P<power>[-+]?\d{{1,3}})(?!\w) )?
        (?: \s? / \s? (?P<under>{_DECIMAL}) )?
    )
    (?P<percent> \s? % )?
    """,
    re.VERBOSE,
)
_SPELLINGS = (
    ("\u2212", "-"), ("{,}", ","), (r"\,", ""), (r"\!", ""), (r"\$", "$"), (r"\%", "%"),
    (r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"),
)  # fmt: skip


@dataclass(frozen=True)
class _Number:
    """A number as written: 20 % has value 20 and `percent`."""

    value: float
    percent: bool

    def readings(self) -> tuple[float, ...]:
        return (self.value, self.value / 100) if self.percent else (self.value,)


@dataclass(frozen=True)
class Numeric:
    """Correct where the stated number, or else the last one, is the reference's within tolerance."""

    relative_tolerance: float = 1e-6
    name: str = "numeric"

    def grade(self, items: Sequence[Attempt]) -> list[Grade]:
        return [self._grade(item) for item in items]

    def _grade(self, item: Attempt) -> Grade:
        if item.answer is None:
            return Grade(None, NO_REFERENCE)
        wanted = _stated_number(item.answer)
        if wanted is None:
            return Grade(None, UNREADABLE_REFERENCE)
        given = _stated_number(item.response)
        if given is None:
            return Grade(False, NO_ANSWER)
        if _agree(given, wanted, relative_tolerance=self.relative_tolerance):
            return Grade(True, None)
        return Grade(False, f"the answer is {given.value:g}{'%' if given.percent else ''}")


def _agree(given: _Number, wanted: _Number, *, relative_tolerance: float) -> bool:
    """20% equals 20%, 20 (the unit left out) and 0.2; two percentages are compared as written."""
    if given.percent and wanted.percent:
        given, wanted = _Number(given.value, False), _Number(wanted.value, False)
    return any(
        math.isclose(g, w, rel_tol=relative_tolerance, abs_tol=1e-12)
        for g in given.readings()
        for w in wanted.readings()
    )


def _stated_number(text: str) -> _Number | None:
    """The first number of the stated answer (behind its last `=`), or else the text's last one."""
    text = _spelled(text)
    stated = stated_answer(text)
    if stated is None:
        return _last(_numbers(text))
    found = _numbers(stated.rpartition("=")[2])
    return found[0] if found else None


def _last(numbers: list[_Number]) -> _Number | None:
    return numbers[-1] if numbers else None


def _spelled(text: str) -> str:
    for written, plain in _SPELLINGS:
        text = text.replace(written, plain)
    return text


def _numbers(text: str) -> list[_Number]:
    found = (_number(match) for match in _NUMBER.finditer(text))
    return [number for number in found if number is not None]


def _number(match: re.Match[str]) -> _Number | None:
    top = match["top"] or match["top1"] or match["value"]
    low = match["low"] or match["low1"] or match["under"] or "1"
    divisor = _float(low)
    if divisor == 0:
        return None
    value = _float(f"{top}e{match['power']}" if match["power"] else top) / divisor
    value += _float(match["whole"] or "0")
    if not math.isfinite(value):
        return None
    return _Number(-value if match["sign"] == "-" else value, match["percent"] is not None)


def _float(digits: str) -> float:
    return float(digits.replace(",", ""))
