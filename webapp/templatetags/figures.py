"""Figures as people read them: a dash for what is missing, units that fit the size."""

from __future__ import annotations

from datetime import timedelta

from django import template

register = template.Library()

MISSING = "\u2013"
_SIZES = ("bytes", "kB", "MB", "GB", "TB")


@register.filter
def figure(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals."""
    return MISSING if value is None else f"{value:.{digits}f}"


@register.filter
def short(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits."""
    return MISSING if value is None else f"{value:.{digits}g}"


@register.filter
def percent(value: float | None) -> str:
    """A share as per cent."""
    return MISSING if value is None else f"{100 * value:.1f} %"


@register.filter
def signed_percent(value: float | None) -> str:
    """A difference of shares in percentage points."""
    return MISSING if value is None else f"{100 * value:+.1f}"


@register.filter
def size(value: float | None) -> str:
    """Bytes in the unit that suits them, in powers of 1000."""
    if value is None:
        return MISSING
    power = 0
    amount = float(value)
    while amount >= 1000 and power < len(_SIZES) - 1:
        amount, power = amount / 1000, power + 1
    return f"{amount:.0f} {_SIZES[power]}" if power == 0 or amount >= 100 else (
        f"{amount:.1f} {_SIZES[power]}"
    )  # fmt: skip


@register.filter
def lasting(value: timedelta | float | None) -> str:
    """A duration in its two largest units."""
    if value is None:
        return MISSING
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"


@register.filter
def short_hash(value: str) -> str:
    """The start of a SHA-256, enough to compare by eye."""
    return value[:12]
