"""What a checker can ask of a value, besides being equal to another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Predicate:
    """A question about a value, with the text that reports show for it."""

    text: str
    test: Callable[[Any], bool]

    def __repr__(self) -> str:
        return self.text


ANY = Predicate("*", lambda value: True)
"""Holds for every value; what a field that was not named is compared with."""


def between(low: Any, high: Any) -> Predicate:
    """Not less than `low`, not more than `high`. Nothing that is absent lies between two values."""
    return Predicate(f"between({low}, {high})", lambda value: value is not None and low <= value <= high)


def any_of(*wanted: Any) -> Predicate:
    """At least one of `wanted`, which may be predicates themselves."""
    text = f"any_of({', '.join(map(show, wanted))})"
    return Predicate(text, lambda value: any(holds(one, value) for one in wanted))


def not_(wanted: Any) -> Predicate:
    """Anything but `wanted`."""
    return Predicate(f"not_({show(wanted)})", lambda value: not holds(wanted, value))


def satisfies(test: Callable[[Any], object], name: str | None = None) -> Predicate:
    """Whatever `test` says is true; `name` is what reports show, by default the name of the function."""
    return Predicate(name or str(getattr(test, "__name__", repr(test))), lambda value: bool(test(value)))


def holds(wanted: Any, value: Any) -> bool:
    """Whether `value` is as `wanted`: a predicate, a function, a tuple (member by member), or its equal."""
    if isinstance(wanted, Predicate):
        return wanted.test(value)
    if callable(wanted):
        return bool(wanted(value))
    if isinstance(wanted, tuple) and isinstance(value, tuple):
        return len(wanted) == len(value) and all(map(holds, wanted, value))
    return bool(wanted == value)


def show(value: Any) -> str:
    """`value` as reports print it."""
    if isinstance(value, Predicate):
        return value.text
    if isinstance(value, tuple):
        return f"({', '.join(map(show, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, bytes) and len(value) > 40:
        return f"{value[:40]!r}… ({len(value)} bytes)"
    if callable(value):
        return str(getattr(value, "__name__", repr(value)))
    return repr(value)
