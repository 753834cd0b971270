"""Checkers of packets, which compose, and say what was expected, what came and which field differs.

    expect(packet, ip(ttl=64), tcp(flags="SA", ack=1, mss=1460, window=between(1, 65535)), payload(b""))
    expect_in_order(packets, tcp(flags="S"), tcp(flags="SA") | tcp(flags="RA"))
    expect_nothing(packets, tcp(flags=flags_with("R")))

A checker is a value with a readable `repr`; `&`, `|` and `~` make others of it. A packet is the bytes from
the IP header on, or what `tunstack.testing.packets.dissect` made of a frame.
"""

from tunstack.testing.checkers.base import Checker, Difference, Seen, anything
from tunstack.testing.checkers.expectations import (
    Mismatch,
    expect,
    expect_all,
    expect_in_order,
    expect_nothing,
    matches,
)
from tunstack.testing.checkers.fields import flag_bits
from tunstack.testing.checkers.layers import (
    arp,
    ethernet,
    exactly,
    flags_with,
    icmp,
    ip,
    payload,
    problems,
    tcp,
    udp,
)
from tunstack.testing.checkers.predicates import ANY, Predicate, any_of, between, not_, satisfies

__all__ = [
    "ANY",
    "Checker",
    "Difference",
    "Mismatch",
    "Predicate",
    "Seen",
    "any_of",
    "anything",
    "arp",
    "between",
    "ethernet",
    "exactly",
    "expect",
    "expect_all",
    "expect_in_order",
    "expect_nothing",
    "flag_bits",
    "flags_with",
    "icmp",
    "ip",
    "matches",
    "not_",
    "payload",
    "problems",
    "satisfies",
    "tcp",
    "udp",
]
