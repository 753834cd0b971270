"""How the value of each field is found in a packet, and how a wanted value is written."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

from tunstack.testing.checkers.base import Seen
from tunstack.testing.checkers.predicates import Predicate, holds, show
from tunstack.testing.packets import (
    ACK,
    CWR,
    ECE,
    FIN,
    PSH,
    RST,
    SYN,
    URG,
    Icmp,
    Ipv4,
    Ipv6,
    Ports,
    Tcp,
    TcpOption,
    Udp,
)
from tunstack.testing.packets.tcp_options import (
    KIND_EOL,
    KIND_FAST_OPEN,
    KIND_MSS,
    KIND_NOP,
    KIND_SACK,
    KIND_SACK_PERMITTED,
    KIND_TIMESTAMPS,
    KIND_WINDOW_SCALE,
)

Layer = Any
Reader = Callable[[Seen, Layer], Any]
MOD = 1 << 32

LETTERS = {
    "F": FIN,
    "S": SYN,
    "R": RST,
    "P": PSH,
    "A": ACK,
    ".": ACK,
    "U": URG,
    "E": ECE,
    "C": CWR,
    "W": CWR,
}

PRESENT = Predicate("present", lambda value: value is not None)
"""An option with whatever value."""

OPTION_NAMES = {
    KIND_EOL: "eol",
    KIND_NOP: "nop",
    KIND_MSS: "mss",
    KIND_WINDOW_SCALE: "window_scale",
    KIND_SACK_PERMITTED: "sack_permitted",
    KIND_SACK: "sack",
    KIND_TIMESTAMPS: "timestamps",
    KIND_FAST_OPEN: "fast_open",
}


def flag_bits(letters: str) -> int:
    """The sum of the flags that `letters` name: FSRPAUEC, or as in tcpdump `.` for ACK and `W` for CWR."""
    try:
        return sum({LETTERS[letter] for letter in letters})
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} is no flag; flags are {''.join(LETTERS)}") from None


def letters_of(bits: int) -> str:
    """As in tests: `SA`, not `S.`."""
    return "".join(letter for letter in "FSRPAUEC" if bits & LETTERS[letter]) or "none"


class Flags(Predicate):
    """Flags by letters. PSH counts only if it is named or `exact`: when it is set is the sender's choice."""

    __slots__ = ("exact",)
    exact: bool

    def __init__(self, letters: str, *, exact: bool = False) -> None:
        bits = flag_bits(letters)
        ignored = 0 if exact or bits & PSH else PSH
        super().__init__(letters or "none", lambda value: value & ~ignored == bits)
        object.__setattr__(self, "exact", exact)

    def __repr__(self) -> str:
        return f"exactly({self.text!r})" if self.exact else repr(self.text)


class _Text(str):
    """Printed without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def address(wanted: Any) -> Any:
    """An address as text, whichever way it was given."""
    if isinstance(wanted, bytes):
        return _Text(ipaddress.ip_address(wanted))
    return _Text(ipaddress.ip_address(wanted)) if isinstance(wanted, str) else wanted


def hardware(wanted: Any) -> Any:
    """A MAC as text, whichever way it was given."""
    if isinstance(wanted, bytes):
        return _Text(wanted.hex(":"))
    return _Text(wanted.lower()) if isinstance(wanted, str) else wanted


def number(wanted: Any) -> Any:
    """A sequence number: -1 is the one before 0."""
    return wanted % MOD if isinstance(wanted, int) else wanted


def blocks(wanted: Any) -> Any:
    """SACK blocks, edges as numbers."""
    if isinstance(wanted, tuple | list):
        return tuple(tuple(map(number, block)) if isinstance(block, tuple) else block for block in wanted)
    return wanted


def flags(wanted: Any) -> Any:
    """Letters, or the exact sum."""
    return Flags(wanted) if isinstance(wanted, str) else wanted


def order(wanted: Any) -> Any:
    """The names of options in their order."""
    return tuple(_Text(name) for name in wanted) if isinstance(wanted, tuple | list) else wanted


def present(wanted: Any) -> Any:
    """True for an option that is there with any value, False or None for one that is not."""
    if wanted is True:
        return PRESENT
    return None if wanted is False else wanted


CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "ip.src": address,
    "ip.dst": address,
    "arp.sender": address,
    "arp.target": address,
    "arp.sender_mac": hardware,
    "arp.target_mac": hardware,
    "ethernet.src": hardware,
    "ethernet.dst": hardware,
    "tcp.seq": number,
    "tcp.ack": number,
    "tcp.flags": flags,
    "tcp.sack": lambda wanted: blocks(present(wanted)),
    "tcp.mss": present,
    "tcp.window_scale": present,
    "tcp.timestamps": present,
    "tcp.fast_open": present,
    "tcp.options": order,
}


def _option(layer: Tcp, kind: int) -> TcpOption | None:
    return next((option for option in layer.options if option.kind == kind), None)


def _value(kind: int, attribute: str) -> Reader:
    def read(seen: Seen, layer: Tcp) -> Any:
        option = _option(layer, kind)
        if option is None:
            return None
        value = getattr(option, attribute) if option.length is None else None
        return option if value is None else value

    return read


def _sack(seen: Seen, layer: Tcp) -> Any:
    option = _option(layer, KIND_SACK)
    if option is None or option.blocks is None:
        return option
    ip = seen.frame.ip
    assert ip is not None
    return tuple(tuple(seen.relative.ack(ip, layer, edge) for edge in block) for block in option.blocks)


def _seq(seen: Seen, layer: Tcp | Ports) -> int:
    ip = seen.frame.ip
    assert ip is not None
    ports = Tcp(src_port=layer.src_port, dst_port=layer.dst_port)
    return seen.relative.seq(ip, ports, layer.seq)


def _ack(seen: Seen, layer: Tcp) -> int | None:
    ip = seen.frame.ip
    assert ip is not None
    return seen.relative.ack(ip, layer, layer.ack) if layer.flags & ACK else None


def _either(four: str, six: str) -> Reader:
    return lambda seen, layer: getattr(layer, four if isinstance(layer, Ipv4) else six)


def _ipv4_only(name: str) -> Reader:
    return lambda seen, layer: getattr(layer, name) if isinstance(layer, Ipv4) else None


def _ipv6_only(name: str) -> Reader:
    return lambda seen, layer: getattr(layer, name) if isinstance(layer, Ipv6) else None


def _icmp_mtu(seen: Seen, layer: Icmp) -> int:
    return layer.rest & 0xFFFF if isinstance(seen.frame.ip, Ipv4) else layer.rest


READERS: dict[str, Reader] = {
    "ethernet.kind": lambda seen, layer: int.from_bytes(seen.frame.raw[12:14], "big"),
    "ethernet.src": lambda seen, layer: hardware(layer.src),
    "ethernet.dst": lambda seen, layer: hardware(layer.dst),
    "arp.sender": lambda seen, layer: address(layer.sender),
    "arp.target": lambda seen, layer: address(layer.target),
    "arp.sender_mac": lambda seen, layer: hardware(layer.sender_mac),
    "arp.target_mac": lambda seen, layer: hardware(layer.target_mac),
    "ip.version": lambda seen, layer: 4 if isinstance(layer, Ipv4) else 6,
    "ip.src": lambda seen, layer: address(layer.src),
    "ip.dst": lambda seen, layer: address(layer.dst),
    "ip.protocol": lambda seen, layer: seen.frame.protocol,
    "ip.ttl": _either("ttl", "hop_limit"),
    "ip.ecn": lambda seen, layer: layer.traffic_class & 3,
    "ip.ident": _ipv4_only("ident"),
    "ip.df": _ipv4_only("df"),
    "ip.mf": _ipv4_only("mf"),
    "ip.offset": _ipv4_only("offset"),
    "ip.options": _ipv4_only("options"),
    "ip.flow_label": _ipv6_only("flow_label"),
    "ip.extensions": lambda seen, layer: (
        tuple(extension.kind for extension in layer.extensions) if isinstance(layer, Ipv6) else None
    ),
    "ip.length": lambda seen, layer: (
        len(seen.frame.raw) - (14 if seen.frame.ethernet else 0) - len(seen.frame.trailer)
    ),
    "icmp.ident": lambda seen, layer: layer.rest >> 16,
    "icmp.number": lambda seen, layer: layer.rest & 0xFFFF,
    "icmp.mtu": _icmp_mtu,
    "tcp.seq": _seq,
    "tcp.ack": _ack,
    "tcp.mss": _value(KIND_MSS, "mss"),
    "tcp.window_scale": _value(KIND_WINDOW_SCALE, "shift"),
    "tcp.sack_permitted": lambda seen, layer: _option(layer, KIND_SACK_PERMITTED) is not None,
    "tcp.timestamps": _value(KIND_TIMESTAMPS, "stamps"),
    "tcp.fast_open": _value(KIND_FAST_OPEN, "data"),
    "tcp.sack": _sack,
    "tcp.no_options": lambda seen, layer: not layer.options,
    "tcp.options": lambda seen, layer: tuple(
        _Text(OPTION_NAMES.get(option.kind, str(option.kind))) for option in layer.options
    ),
}
"""Where the value is not simply the attribute of that name."""


def read(seen: Seen, layer: Layer, field: str) -> Any:
    """The value of `field` ("tcp.mss") in `layer`."""
    reader = READERS.get(field)
    if isinstance(layer, Ports) and field not in ("tcp.seq", "tcp.src_port", "tcp.dst_port"):
        return _Text("not quoted")
    if reader is not None:
        return reader(seen, layer)
    return getattr(layer, field.partition(".")[2])


def shown(field: str, value: Any) -> str:
    """`value` of `field` as reports print it."""
    if field == "tcp.flags" and isinstance(value, int):
        return letters_of(value)
    return show(value)


def finds(wanted: Any, value: Any) -> bool:
    """Whether a field is as wanted; something that cannot be compared is not."""
    try:
        return holds(wanted, value)
    except TypeError:
        return False


def layer_of(seen: Seen, name: str) -> Layer | None:
    """The layer that the checker `name` looks at."""
    frame = seen.frame
    if name == "tcp":
        return frame.tcp or next((layer for layer in frame.layers if isinstance(layer, Ports)), None)
    found: Ipv4 | Ipv6 | Udp | Icmp | None = getattr(frame, name)
    return found
