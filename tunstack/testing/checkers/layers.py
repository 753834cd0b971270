"""The checkers of the layers. A field that is not named is not looked at.

A wanted value is one of: its equal; a predicate (`between`, `any_of`, `not_`, `satisfies`); a function of one
argument; a tuple, which is compared member by member. Addresses may be text or bytes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tunstack.testing.checkers.base import Checker, Difference, Outline, Seen
from tunstack.testing.checkers.fields import (
    CONVERTERS,
    PRESENT,
    Flags,
    finds,
    flag_bits,
    layer_of,
    letters_of,
    read,
)
from tunstack.testing.checkers.predicates import ANY, Predicate, show
from tunstack.testing.packets import Problem


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class _Layer(Checker):
    """One layer and what is wanted of its fields."""

    name: str
    fields: tuple[tuple[str, Any], ...]

    def differences(self, seen: Seen) -> list[Difference]:
        layer = layer_of(seen, self.name)
        if layer is None:
            return [Difference("packet", Predicate(f"{self.name} layer", bool), _layers(seen))]
        found = []
        for field, wanted in self.fields:
            value = read(seen, layer, field)
            if not finds(wanted, value):
                if field == "tcp.flags" and isinstance(value, int):
                    value = Predicate(letters_of(value), bool)
                    wanted = Predicate(letters_of(wanted), bool) if isinstance(wanted, int) else wanted
                found.append(Difference(field, wanted, value))
        return found

    def outlines(self) -> list[Outline]:
        return [{self.name: True, **dict(self.fields)}]

    def __repr__(self) -> str:
        shown = ", ".join(f"{field.partition('.')[2]}={_literal(wanted)}" for field, wanted in self.fields)
        return f"{self.name}({shown})"


def _literal(wanted: Any) -> str:
    """As it would be written in a test."""
    if isinstance(wanted, Flags):
        return repr(wanted)
    if wanted is PRESENT:
        return "True"
    if isinstance(wanted, tuple):
        return f"({', '.join(map(_literal, wanted))}{',' if len(wanted) == 1 else ''})"
    return repr(str(wanted)) if isinstance(wanted, str) else show(wanted)


def _layers(seen: Seen) -> Predicate:
    names = "/".join(type(layer).__name__ for layer in seen.frame.layers) or "nothing"
    return Predicate(names, bool)


def _layer(name: str, fields: dict[str, Any]) -> Checker:
    wanted = []
    for field, value in fields.items():
        if value is not ANY:
            path = f"{name}.{field}"
            wanted.append((path, CONVERTERS.get(path, lambda value: value)(value)))
    return _Layer(name, tuple(wanted))


def ethernet(*, src: Any = ANY, dst: Any = ANY, kind: Any = ANY) -> Checker:
    """Ethernet II: MACs as bytes or text, `kind` the ethertype."""
    return _layer("ethernet", locals())


def arp(
    *,
    operation: Any = ANY,
    sender: Any = ANY,
    sender_mac: Any = ANY,
    target: Any = ANY,
    target_mac: Any = ANY,
) -> Checker:
    """ARP: `operation` 1 asks, 2 answers."""
    return _layer("arp", locals())


def ip(
    *,
    version: Any = ANY,
    src: Any = ANY,
    dst: Any = ANY,
    ttl: Any = ANY,
    protocol: Any = ANY,
    traffic_class: Any = ANY,
    ecn: Any = ANY,
    length: Any = ANY,
    ident: Any = ANY,
    df: Any = ANY,
    mf: Any = ANY,
    offset: Any = ANY,
    options: Any = ANY,
    flow_label: Any = ANY,
    extensions: Any = ANY,
) -> Checker:
    """IP of either version.

    `ttl` is the hop limit too, `ecn` the lower two bits of `traffic_class`, `protocol` what stands above IP
    and behind extension headers, `length` the bytes of the whole packet, `extensions` a tuple of their kinds.
    A field that the version does not have is None.
    """
    return _layer("ip", locals())


def udp(*, src_port: Any = ANY, dst_port: Any = ANY) -> Checker:
    """UDP; the length and the checksum are looked at in any case."""
    return _layer("udp", locals())


def icmp(
    *,
    type: Any = ANY,
    code: Any = ANY,
    rest: Any = ANY,
    ident: Any = ANY,
    number: Any = ANY,
    mtu: Any = ANY,
    quote: Checker | None = None,
) -> Checker:
    """ICMP of either family.

    `ident` and `number` are those of an echo, `mtu` that of a packet too big, `rest` the whole word behind
    the checksum. `quote` checks the packet that an error is about.
    """
    fields = {name: value for name, value in locals().items() if name != "quote"}
    checker = _layer("icmp", fields)
    return checker if quote is None else checker & _Quote(quote)


def tcp(
    *,
    src_port: Any = ANY,
    dst_port: Any = ANY,
    flags: Any = ANY,
    seq: Any = ANY,
    ack: Any = ANY,
    window: Any = ANY,
    urgent: Any = ANY,
    reserved: Any = ANY,
    mss: Any = ANY,
    window_scale: Any = ANY,
    sack_permitted: Any = ANY,
    timestamps: Any = ANY,
    sack: Any = ANY,
    fast_open: Any = ANY,
    no_options: Any = ANY,
    options: Any = ANY,
) -> Checker:
    """TCP.

    `flags`: letters of FSRPAUEC, of which PSH counts only if it is named (`exactly` for all of them), or
    their sum. `seq`, `ack` and the edges of `sack` are relative where `expect` is given the numbering;
    `ack` is None without ACK. `window` is the field, not scaled. `mss`, `window_scale`, `timestamps` (TSval,
    TSecr), `sack` (a tuple of blocks) and `fast_open` (bytes): the value, True for any, False for
    "not there". `options`: the names of all of them in their order, NOPs included.
    """
    return _layer("tcp", locals())


def exactly(letters: str) -> Flags:
    """These flags of TCP and no other, PSH included."""
    return Flags(letters, exact=True)


def flags_with(letters: str) -> Predicate:
    """These flags of TCP, whatever else is set."""
    bits = flag_bits(letters)
    return Predicate(f"flags_with({letters!r})", lambda value: value & bits == bits)


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class _Quote(Checker):
    inner: Checker

    def differences(self, seen: Seen) -> list[Difference]:
        quote = seen.frame.quote
        if quote is None:
            return [Difference("icmp.quote", Predicate("a quoted packet", bool), None)]
        found = self.inner.differences(Seen(quote, seen.relative))
        return [Difference(f"quote.{one.field}", one.wanted, one.got) for one in found]

    def outlines(self) -> list[Outline]:
        return [{"icmp": True, "quote": self.inner}]

    def __repr__(self) -> str:
        return f"quote({self.inner!r})"


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class _Payload(Checker):
    data: Any
    length: Any

    def differences(self, seen: Seen) -> list[Difference]:
        data = seen.frame.payload
        found = []
        if not finds(self.data, data):
            wanted = self.data
            if isinstance(wanted, bytes) and len(wanted) > 20 and data != wanted:
                place = next(
                    (n for n, (a, b) in enumerate(zip(data, wanted, strict=False)) if a != b),
                    min(len(data), len(wanted)),
                )
                found.append(
                    Difference(f"payload (from byte {place} on)", wanted[place:][:20], data[place:][:20])
                )
            else:
                found.append(Difference("payload", wanted, data))
        if not finds(self.length, len(data)):
            found.append(Difference("payload length", self.length, len(data)))
        return found

    def outlines(self) -> list[Outline]:
        length = len(self.data) if isinstance(self.data, bytes) else self.length
        return [{} if length is ANY else {"length": length}]

    def __repr__(self) -> str:
        shown = [] if self.data is ANY else [show(self.data)]
        if self.length is not ANY:
            shown.append(f"length={show(self.length)}")
        return f"payload({', '.join(shown)})"


def payload(data: Any = ANY, *, length: Any = ANY) -> Checker:
    """What follows the last header: its bytes, or how many they are."""
    return _Payload(bytes(data) if isinstance(data, bytearray | memoryview) else data, length)


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Problems(Checker):
    """What is wrong with a packet; see `problems`."""

    wanted: frozenset[Problem]

    def differences(self, seen: Seen) -> list[Difference]:
        found = frozenset(seen.frame.problems)
        if found == self.wanted:
            return []
        return [Difference("problems", _named(self.wanted), _named(found))]

    def outlines(self) -> list[Outline]:
        return [{"problems": _named(self.wanted)}] if self.wanted else [{}]

    def __repr__(self) -> str:
        return f"problems({', '.join(f'Problem.{problem.name}' for problem in sorted(self.wanted))})"


def _named(found: frozenset[Problem]) -> Predicate:
    return Predicate(", ".join(sorted(found)) or "none", bool)


def problems(*wanted: Problem) -> Checker:
    """Exactly these are wrong with the packet. Without this checker `expect` wants a packet that is right."""
    return Problems(frozenset(wanted))
