"""Strategies of syntax trees: whatever the language can say."""

from __future__ import annotations

from hypothesis import strategies as st

from tunstack.testing.packetdrill.language import syntax
from tunstack.testing.packetdrill.language.call_parser import FUNCTIONS
from tunstack.testing.packetdrill.language.packet_parser import FLAGS
from tunstack.testing.packetdrill.language.syntax import (
    Code,
    Command,
    Direction,
    Ecn,
    Event,
    EventTime,
    IcmpPacket,
    IpInfo,
    Option,
    Ports,
    Range,
    Script,
    SystemCall,
    TcpPacket,
    TimeKind,
    UdpPacket,
)
from tunstack.testing.packetdrill.language.values import (
    ANY,
    Array,
    Field,
    Function,
    Integer,
    Or,
    String,
    Struct,
    Symbol,
)

numbers = st.integers(0, 0xFFFFFFFF)
shorts = st.integers(0, 0xFFFF)
times = st.integers(0, 10**12)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,11}", fullmatch=True).filter(
    lambda name: name not in FUNCTIONS and name != "define"
)


def optional(strategy):
    return st.none() | strategy


# values

scalars = (
    st.builds(Integer, st.integers(-(2**63), 2**64), st.just(False))
    | st.builds(Integer, st.integers(0, 2**64), st.just(True))
    | st.builds(Symbol, names)
    | st.builds(String, st.text(st.characters(max_codepoint=255)), st.booleans())
    | st.just(ANY)
)


def compound(inner):
    return (
        st.builds(Array, st.lists(inner, max_size=3).map(tuple))
        | st.builds(
            Struct,
            st.lists(
                st.builds(Field, inner)
                | st.builds(Field, inner, names)
                | st.builds(Field, inner, names, inner),
                min_size=1,
                max_size=3,
            ).map(tuple),
        )
        | st.builds(Function, st.sampled_from(sorted(FUNCTIONS)), st.lists(inner, max_size=2).map(tuple))
    )


def terms(inner):
    """Values as they may be or-ed: an or within an or has no spelling of its own."""
    return st.lists(inner, min_size=2, max_size=3).map(lambda parts: Or(tuple(parts)))


plain = st.recursive(scalars, compound, max_leaves=6)
values = plain | terms(plain)

# packets

ip_infos = st.builds(
    IpInfo,
    ecn=optional(st.sampled_from(Ecn)),
    ttl=optional(st.integers(0, 255)),
    flow_label=optional(st.integers(0, 0xFFFFF)),
) | st.builds(IpInfo, tos=optional(st.integers(0, 255)), ttl=optional(st.integers(0, 255)))

cookies = st.binary(max_size=16)
options = st.one_of(
    st.builds(syntax.Mss, shorts),
    st.builds(syntax.WindowScale, st.integers(0, 255)),
    st.builds(syntax.SackPermitted),
    st.builds(syntax.Sack, st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4).map(tuple)),
    st.builds(syntax.Timestamps, numbers, numbers),
    st.builds(syntax.Nop),
    st.builds(syntax.EndOfOptions),
    st.builds(syntax.FastOpen, cookies, st.booleans()),
    st.builds(
        lambda forward, counts: syntax.AccurateEcn(
            tuple(zip(("e0b", "ceb", "e1b")[:: 1 if forward else -1], counts, strict=False))
        ),
        st.booleans(),
        st.lists(st.integers(0, 0xFFFFFF), max_size=3),
    ),
    st.builds(syntax.UnknownOption, st.integers(2, 255), st.binary(max_size=38)),
)
any_stamps = st.builds(syntax.Timestamps, optional(numbers), optional(numbers))

flags = st.sets(st.sampled_from(FLAGS)).map(lambda letters: "".join(c for c in FLAGS if c in letters))
ranges = st.builds(Range, numbers, shorts)
ports = optional(st.builds(Ports, shorts, shorts))

inbound_segments = st.builds(
    TcpPacket,
    st.just(Direction.INBOUND),
    flags,
    ranges,
    ack=optional(numbers),
    window=shorts,
    urgent=optional(shorts),
    options=st.lists(options, max_size=4).map(tuple),
    ip=ip_infos,
    ports=ports,
)
outbound_segments = st.builds(
    TcpPacket,
    st.just(Direction.OUTBOUND),
    flags,
    ranges,
    ack=optional(numbers),
    window=optional(shorts),
    urgent=optional(shorts),
    options=optional(st.lists(options | any_stamps, max_size=4).map(tuple)),
    ip=ip_infos,
    ports=ports,
)


def datagrams(direction):
    return st.builds(UdpPacket, st.just(direction), st.integers(0, 65507), ip_infos, ports)


icmp_names = st.sampled_from(["unreachable", "frag_needed", "time_exceeded", "type 3", "code 4"])


def icmp_messages(direction):
    return st.builds(
        IcmpPacket,
        st.just(direction),
        icmp_names.filter(lambda name: not name.startswith("code")),
        optional(icmp_names.filter(lambda name: not name.startswith("type"))),
        optional(numbers),
        optional(ranges | st.integers(0, 65507)),
        ip_infos,
        optional(shorts),
    )


# events

notes = st.lists(st.from_regex(r"[A-Za-z]{1,8}", fullmatch=True), min_size=1, max_size=4).map(" ".join)
errnos = st.from_regex(r"E[A-Z]{2,10}", fullmatch=True)
calls = st.builds(
    SystemCall, names, st.lists(values, max_size=4).map(tuple), values, optional(errnos), optional(notes)
)
commands = st.builds(Command, st.text(st.characters(exclude_characters="`\\", codec="utf-8")))
code = st.builds(Code, st.text(st.characters(exclude_characters="}", codec="utf-8")))

points = st.builds(EventTime, st.sampled_from([TimeKind.ABSOLUTE, TimeKind.RELATIVE]), times)


def _ranged(kind, ends):
    return EventTime(kind, *sorted(ends))


windows = (
    points
    | st.just(EventTime(TimeKind.ANY))
    | st.builds(
        _ranged,
        st.sampled_from([TimeKind.ABSOLUTE_RANGE, TimeKind.RELATIVE_RANGE]),
        st.tuples(times, times),
    )
)


def _blocking(time, call, length):
    return Event(
        time, SystemCall(call.name, call.arguments, call.result, call.errno, call.note, time.start + length)
    )


events = st.one_of(
    st.builds(
        Event,
        points,
        inbound_segments
        | datagrams(Direction.INBOUND)
        | icmp_messages(Direction.INBOUND)
        | calls
        | commands
        | code,
    ),
    st.builds(
        Event, windows, outbound_segments | datagrams(Direction.OUTBOUND) | icmp_messages(Direction.OUTBOUND)
    ),
    st.builds(_blocking, points.filter(lambda time: time.start < 10**11), calls, st.integers(0, 10**11)),
)
option_values = st.from_regex(r"[A-Za-z0-9_.:/,-]{1,16}", fullmatch=True) | st.text(
    st.sampled_from("ab 1/*"), max_size=6
)
scripts = st.builds(
    Script,
    st.lists(st.builds(Option, names, option_values), max_size=3).map(tuple),
    optional(commands),
    st.lists(events, min_size=1, max_size=3).map(tuple),
    optional(commands),
)
