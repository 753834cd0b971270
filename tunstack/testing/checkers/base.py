"""What a checker is, and how checkers compose.

A checker looks at a packet and names the fields that differ. `a & b` wants both, `a | b` one of them and
`~a` the contrary. It prints itself in two ways: `repr` is how it is written, and `outline` is the packet that
it wants, as far as it is determined, from which the report draws a line in the manner of tcpdump.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from tunstack.testing.checkers.predicates import Predicate, show
from tunstack.testing.packets import Frame, Relative


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """A packet as checkers see it: taken apart, with the numbering of its flow."""

    frame: Frame
    relative: Relative


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not as it should be; `field` as `tcp.mss`."""

    field: str
    wanted: Any
    got: Any

    def __str__(self) -> str:
        return f"{self.field}: expected {show(self.wanted)}, got {show(self.got)}"


Outline = Mapping[str, Any]
"""What is determined of a packet: `tcp.mss` and so on to the value, or to what is asked of it."""


class Checker(abc.ABC):
    """A question about a packet; made by the functions of this package."""

    __slots__ = ()

    @abc.abstractmethod
    def differences(self, seen: Seen) -> list[Difference]:
        """What is not as it should be; empty for a packet that passes."""

    @abc.abstractmethod
    def outlines(self) -> list[Outline]:
        """The packets that pass, one for each alternative."""

    def parts(self) -> Iterator[Checker]:
        """This checker and those that it is made of."""
        yield self

    def __and__(self, other: Checker) -> Checker:
        return _Both(self, other)

    def __or__(self, other: Checker) -> Checker:
        return _Either(self, other)

    def __invert__(self) -> Checker:
        return _Not(self)


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class _Both(Checker):
    left: Checker
    right: Checker

    def differences(self, seen: Seen) -> list[Difference]:
        return self.left.differences(seen) + self.right.differences(seen)

    def outlines(self) -> list[Outline]:
        return [{**left, **right} for left in self.left.outlines() for right in self.right.outlines()]

    def parts(self) -> Iterator[Checker]:
        yield self
        yield from self.left.parts()
        yield from self.right.parts()

    def __repr__(self) -> str:
        return f"{self.left!r} & {self.right!r}"


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class _Either(Checker):
    left: Checker
    right: Checker

    def differences(self, seen: Seen) -> list[Difference]:
        """Those of the alternative that comes nearer."""
        left, right = self.left.differences(seen), self.right.differences(seen)
        return left if len(left) <= len(right) else right

    def outlines(self) -> list[Outline]:
        return [*self.left.outlines(), *self.right.outlines()]

    def parts(self) -> Iterator[Checker]:
        yield self
        yield from self.left.parts()
        yield from self.right.parts()

    def __repr__(self) -> str:
        return f"({self.left!r} | {self.right!r})"


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class _Not(Checker):
    inner: Checker

    def differences(self, seen: Seen) -> list[Difference]:
        if self.inner.differences(seen):
            return []
        return [Difference("packet", self, Predicate("a packet that is so", bool))]

    def outlines(self) -> list[Outline]:
        return [{"not": repr(self.inner)}]

    def parts(self) -> Iterator[Checker]:
        yield self
        yield from self.inner.parts()

    def __repr__(self) -> str:
        return f"~({self.inner!r})"


EVERYTHING: Outline = {}


class _Packet(Checker):
    """Nothing is asked."""

    __slots__ = ()

    def differences(self, seen: Seen) -> list[Difference]:
        return []

    def outlines(self) -> list[Outline]:
        return [EVERYTHING]

    def __repr__(self) -> str:
        return "anything()"


def anything() -> Checker:
    """Passes every packet."""
    return _Packet()


def together(checkers: tuple[Checker, ...]) -> Checker:
    """One checker that wants all of `checkers`."""
    if not checkers:
        return anything()
    whole = checkers[0]
    for checker in checkers[1:]:
        whole = whole & checker
    return whole
