"""Compares values of a test so that a response cannot call its own result right.

`f(x) == 4` asks the result first, and a result whose class says that it equals everything would pass
every test. Here two values are equal only where `==` says so **and** whoever was asked is trusted:
comparisons written in C, a few classes of the standard library, and, where both sides are of one class,
that class itself, since then its own equality is what is tested. It knows no tests and no response.
"""

from __future__ import annotations

import operator
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import PurePath
from types import WrapperDescriptorType
from typing import Any

_TRUSTED = frozenset({Counter, Fraction, PurePath})
_PLAIN = frozenset({int, float, str, bool, bytes, complex, type(None)})
_SEQUENCES: tuple[type, ...] = (list, tuple, deque)
_SETS: tuple[type, ...] = (set, frozenset)
# Classes whose equality asks their items, which are looked at one by one.
_CONTAINERS = frozenset({*_SEQUENCES, *_SETS, dict, defaultdict, OrderedDict, Counter})
_MRO = type.__dict__["__mro__"].__get__
_CONTENT = type.__dict__["__dict__"].__get__
_ORDERS = ("__lt__", "__le__", "__gt__", "__ge__")

# Values of a test are of any type whatever.
Value = Any


def equal(left: Value, right: Value) -> bool:
    """Whether both are equal and only trusted code has said so."""
    return bool(left == right) and _honest(left, right)


def compare(operators: Iterable[str], *values: Value) -> Value:
    """The value of a comparison or of a chain of them, such as `0 < x == y`."""
    result: Value = True
    for name, left, right in zip(operators, values, values[1:], strict=False):
        result = _COMPARISONS[name](left, right)
        if not result:
            return result
    return result


def _honest(left: Value, right: Value) -> bool:
    """Whether the equality of two values that were called equal can be believed."""
    one, other = type(left), type(right)
    if (one in _PLAIN and other in _PLAIN) or (one is other and one not in _CONTAINERS):
        return True
    if not (_trusted(one) and _trusted(other)):
        return False
    for family in _SEQUENCES:
        if _is(one, family) and _is(other, family):
            items = family.__iter__  # type: ignore[attr-defined]
            return _honest_items(items(left), items(right))
    if _is(one, dict) and _is(other, dict):
        return _honest_mapping(left, right)
    if any(_is(one, family) for family in _SETS):
        return all(_trusted(type(item)) for item in [*left, *right])
    return True


def _honest_items(left: Iterable[Value], right: Iterable[Value]) -> bool:
    return all(a is b or _honest(a, b) for a, b in zip(left, right, strict=True))


def _honest_mapping(left: dict[Value, Value], right: dict[Value, Value]) -> bool:
    keys = [*dict.__iter__(left), *dict.__iter__(right)]
    if not all(_trusted(type(key)) for key in keys):
        return False
    get = dict.__getitem__
    return all(_honest(get(left, key), get(right, key)) for key in dict.__iter__(left))


def _is(kind: type, family: type) -> bool:
    return family in _MRO(kind)


def _trusted(kind: type, methods: Iterable[str] = ("__eq__",)) -> bool:
    """Whether the type's methods are those of the interpreter or of a trusted class.

    The type's own dictionaries are read, past any attribute that a metaclass might answer with.
    """
    return all(_trusted_method(kind, name) for name in methods)


def _trusted_method(kind: type, name: str) -> bool:
    for owner in _MRO(kind):
        content = _CONTENT(owner)
        if name in content:
            return owner in _TRUSTED or type(content[name]) is WrapperDescriptorType
    return True


def _unequal(left: Value, right: Value) -> Value:
    return left != right


def _contains(item: Value, container: Value) -> Value:
    found = item in container
    if not found or not any(_is(type(container), one) for one in _CONTAINERS):
        return found
    return _trusted(type(item)) or any(type(one) is type(item) for one in container)


def _lacks(item: Value, container: Value) -> bool:
    return item not in container


def _ordered(by: Callable[[Value, Value], Value]) -> Callable[[Value, Value], Value]:
    def judged(left: Value, right: Value) -> Value:
        one, other = type(left), type(right)
        said = by(left, right)
        if not said or one is other:
            return said
        return said if _trusted(one, _ORDERS) and _trusted(other, _ORDERS) else False

    return judged


_COMPARISONS: dict[str, Callable[[Value, Value], Value]] = {
    "Eq": equal,
    "NotEq": _unequal,
    "Lt": _ordered(operator.lt),
    "LtE": _ordered(operator.le),
    "Gt": _ordered(operator.gt),
    "GtE": _ordered(operator.ge),
    "Is": operator.is_,
    "IsNot": operator.is_not,
    "In": _contains,
    "NotIn": _lacks,
}
