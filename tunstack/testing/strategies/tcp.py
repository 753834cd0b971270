"""TCP segments that are right, and segments with one thing wrong."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from tunstack.testing.checkers import flag_bits
from tunstack.testing.packets import (
    ACK,
    EOL,
    FIN,
    NOP,
    RST,
    SACK_PERMITTED,
    SYN,
    URG,
    Ipv4,
    Ipv6,
    Problem,
    Raw,
    Tcp,
    TcpOption,
    emit,
    mss,
    sack,
    timestamps,
    window_scale,
)
from tunstack.testing.packets.tcp_options import emit_options
from tunstack.testing.strategies.addresses import ports
from tunstack.testing.strategies.ip import ip_headers
from tunstack.testing.strategies.memory import remembered
from tunstack.testing.strategies.messages import Packet, payloads, with_payload

MAX_OPTIONS = 40
"""Bytes (RFC 9293 3.1)."""

U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)

RIGHT_FLAGS = ("A", "S", "SA", "PA", "FA", "FPA", "R", "RA", "UA", "PUA")
"""The combinations of flags that TCP sends."""
WRONG_FLAGS = ("", "F", "P", "U", "SF", "SR", "SFRPAU", "FPU", "SFA", "FR")
"""Combinations that no TCP sends, known from port scanners."""


@remembered
def flags(*, right: bool = False) -> st.SearchStrategy[str]:
    """Letters of flags; `right`: only combinations that TCP sends. Shrinks to "A"."""
    if right:
        return st.sampled_from(RIGHT_FLAGS)
    return st.one_of(st.just("A"), st.sampled_from(RIGHT_FLAGS + WRONG_FLAGS))


@remembered
def sequence_numbers() -> st.SearchStrategy[int]:
    """Numbers of 32 bits, those about to wrap and those at half of the space more often."""
    edges = st.sampled_from([0, 2**31, 2**32]).flatmap(
        lambda edge: st.integers(-3, 3).map(lambda n: (edge + n) % 2**32)
    )
    return U32 | edges


@remembered
def tcp_options(*, syn: bool | None = None) -> st.SearchStrategy[tuple[TcpOption, ...]]:
    """Well-formed lists that fit a header. `syn`: those of SYNs (True), of other segments (False), of any."""
    anywhere = [
        st.just(NOP),
        st.tuples(U32, U32).map(lambda stamps: timestamps(*stamps)),
        st.tuples(st.integers(35, 255), st.binary(max_size=6)).map(lambda parts: TcpOption(*parts)),
    ]
    on_syn = [U16.map(mss), st.integers(0, 14).map(window_scale), st.just(SACK_PERMITTED)]
    elsewhere = [st.lists(st.tuples(U32, U32), min_size=1, max_size=4).map(lambda blocks: sack(*blocks))]
    chosen = anywhere + (on_syn if syn is not False else []) + (elsewhere if syn is not True else [])
    return st.lists(st.one_of(chosen), max_size=6).map(_fitting)


def _fitting(options: Sequence[TcpOption]) -> tuple[TcpOption, ...]:
    """One of a kind, and not more than fit."""
    kept: list[TcpOption] = []
    for option in options:
        again = option != NOP and any(option.kind == other.kind for other in kept)
        if not again and len(emit_options([*kept, option])) <= MAX_OPTIONS:
            kept.append(option)
    return tuple(kept)


@st.composite
def tcp_headers(draw: st.DrawFn, *, src_port: int | None = None, dst_port: int | None = None) -> Tcp:
    """Right headers: flags as TCP sends them, SYN options on SYNs only, 0 in fields that do not count."""
    bits = flag_bits(draw(flags(right=True)))
    seq, ack = draw(sequence_numbers()), draw(sequence_numbers())
    return Tcp(
        src_port=draw(ports()) if src_port is None else src_port,
        dst_port=draw(ports()) if dst_port is None else dst_port,
        seq=seq,
        ack=ack if bits & ACK else 0,
        flags=bits,
        window=draw(U16),
        urgent=draw(st.integers(1, 0xFFFF)) if bits & URG else 0,
        options=draw(tcp_options(syn=bool(bits & SYN))),
    )


@st.composite
def segments(
    draw: st.DrawFn,
    family: int | None = None,
    *,
    pair: tuple[bytes, bytes] | None = None,
    src_port: int | None = None,
    dst_port: int | None = None,
    most: int = 60,
) -> Packet:
    """Right packets with a segment, of up to `most` bytes of payload; as layers.

    `pair`: source and destination; any of `family` unless they and the ports are given.
    """
    ip = draw(ip_headers(family, pair=pair))
    tcp = draw(tcp_headers(src_port=src_port, dst_port=dst_port))
    return with_payload((ip, tcp), draw(payloads(most)))


class Fault(enum.Enum):
    """What is wrong with a segment that is nearly right."""

    CHECKSUM = "the checksum is wrong"
    IP_CHECKSUM = "the checksum of the IPv4 header is wrong"
    SHORT_OFFSET = "the data offset points into the fixed header"
    LONG_OFFSET = "the data offset points behind the end"
    CUT = "the packet ends before IP says that it does"
    CUT_HEADER = "IP carries less than a TCP header"
    OPTION_LENGTH = "an option has a length below 2"
    OPTION_OVERRUN = "an option is longer than the header"
    FLAGS = "a combination of flags that no TCP sends"
    RESERVED = "reserved bits are set"
    STRAY_OPTION = "an option of SYNs on a segment that is none, or the reverse"
    WRONG_SIZE = "a known option has another length than it must have"
    PADDING = "something follows the end of the options"
    SHIFT = "a window scale above 14"
    SOURCE = "the source is no host"

    @property
    def problem(self) -> Problem | None:
        """The problem that `dissect` finds, None where all can be taken apart."""
        return _PROBLEMS.get(self)


_PROBLEMS = {
    Fault.CHECKSUM: Problem.BAD_CHECKSUM,
    Fault.IP_CHECKSUM: Problem.BAD_IP_CHECKSUM,
    Fault.SHORT_OFFSET: Problem.BAD_HEADER_LENGTH,
    Fault.LONG_OFFSET: Problem.BAD_HEADER_LENGTH,
    Fault.CUT: Problem.TRUNCATED,
    Fault.CUT_HEADER: Problem.TRUNCATED,
    Fault.OPTION_LENGTH: Problem.BAD_OPTIONS,
    Fault.OPTION_OVERRUN: Problem.BAD_OPTIONS,
}


@dataclasses.dataclass(frozen=True, slots=True)
class NearlyRight:
    """A packet with one thing wrong: its bytes, what it is, and the right packet that was spoilt."""

    raw: bytes
    fault: Fault
    right: Packet


@st.composite
def nearly_right_segments(
    draw: st.DrawFn,
    /,
    family: int | None = None,
    *,
    faults: Sequence[Fault] = tuple(Fault),
    **options: Any,
) -> NearlyRight:
    """Packets with a segment that is right but for one of `faults`; `options` as for `segments`.

    Shrinks to the first of `faults`. Only IPv4 has an IP_CHECKSUM.
    """
    fault = draw(st.sampled_from(list(faults)))
    version = 4 if fault is Fault.IP_CHECKSUM and "pair" not in options else family
    packet = draw(segments(version, **options))
    ip, tcp = packet[0], packet[1]
    assert isinstance(ip, Ipv4 | Ipv6) and isinstance(tcp, Tcp)
    return NearlyRight(_SPOILERS[fault](draw, ip, tcp, packet[2:]), fault, packet)


_Spoiler = Callable[[st.DrawFn, Ipv4 | Ipv6, Tcp, Packet], bytes]


def _checksum(draw: st.DrawFn, ip: Ipv4 | Ipv6, tcp: Tcp, rest: Packet) -> bytes:
    raw = bytearray(emit(ip, tcp, *rest))
    start = len(raw) - len(emit(dataclasses.replace(tcp, checksum=0), *rest))
    raw[start + draw(st.sampled_from([16, 17]))] ^= 1 << draw(st.integers(0, 7))
    return bytes(raw)


def _ip_checksum(draw: st.DrawFn, ip: Ipv4 | Ipv6, tcp: Tcp, rest: Packet) -> bytes:
    raw = bytearray(emit(ip, tcp, *rest))
    raw[10 + draw(st.integers(0, 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(raw)


def _offset(low: int, high: int) -> _Spoiler:
    def spoil(draw: st.DrawFn, ip: Ipv4 | Ipv6, tcp: Tcp, rest: Packet) -> bytes:
        tcp = dataclasses.replace(tcp, options=(), data_offset=draw(st.integers(low, high)))
        return emit(ip, tcp, *(Raw(data=layer.data[:3]) for layer in rest if isinstance(layer, Raw)))

    return spoil


def _cut(draw: st.DrawFn, ip: Ipv4 | Ipv6, tcp: Tcp, rest: Packet) -> bytes:
    raw = emit(ip, tcp, *rest)
    carried = len(emit(dataclasses.replace(tcp, checksum=0), *rest)) - 20
    if not carried or tcp.options:
        raw = emit(ip, dataclasses.replace(tcp, options=()), Raw(data=b"data"))
        carried = 4
    return raw[: len(raw) - draw(st.integers(1, carried))]


def _cut_header(draw: st.DrawFn, ip: Ipv4 | Ipv6, tcp: Tcp, rest: Packet) -> bytes:
    segment = emit(dataclasses.replace(tcp, checksum=0))[: draw(st.integers(0, 19))]
    if isinstance(ip, Ipv4):
        return emit(dataclasses.replace(ip, protocol=6), Raw(data=segment))
    return emit(dataclasses.replace(ip, next_header=6), Raw(data=segment))


def _option_length(draw: st.DrawFn, ip: Ipv4 | Ipv6, tcp: Tcp, rest: Packet) -> bytes:
    bad = TcpOption(draw(st.integers(2, 255)), b"", draw(st.integers(0, 1)))
    return emit(ip, dataclasses.replace(tcp, options=(bad,)), *rest)


def _option_overrun(draw: st.DrawFn, ip: Ipv4 | Ipv6, tcp: Tcp, rest: Packet) -> bytes:
    bad = TcpOption(draw(st.integers(2, 255)), bytes(2), draw(st.integers(5, 255)))
    return emit(ip, dataclasses.replace(tcp, options=(bad,)), *rest)


def _flags(draw: st.DrawFn, ip: Ipv4 | Ipv6, tcp: Tcp, rest: Packet) -> bytes:
    bits = flag_bits(draw(st.sampled_from(WRONG_FLAGS)))
    return emit(ip, dataclasses.replace(tcp, flags=bits), *rest)


def _reserved(draw: st.DrawFn, ip: Ipv4 | Ipv6, tcp: Tcp, rest: Packet) -> bytes:
    return emit(ip, dataclasses.replace(tcp, reserved=draw(st.integers(1, 15))), *rest)


def _stray(draw: st.DrawFn, ip: Ipv4 | Ipv6, tcp: Tcp, rest: Packet) -> bytes:
    option = sack((tcp.ack, tcp.ack + 1)) if tcp.flags & SYN else mss(draw(U16))
    return emit(ip, dataclasses.replace(tcp, options=(option,)), *rest)


def _wrong_size(draw: st.DrawFn, ip: Ipv4 | Ipv6, tcp: Tcp, rest: Packet) -> bytes:
    kind, right = draw(st.sampled_from([(2, 2), (3, 1), (4, 0), (8, 8)]))
    size = draw(st.integers(0, 12).filter(lambda size: size != right))
    return emit(ip, dataclasses.replace(tcp, options=(TcpOption(kind, bytes(size)),)), *rest)


def _padding(draw: st.DrawFn, ip: Ipv4 | Ipv6, tcp: Tcp, rest: Packet) -> bytes:
    text = draw(st.binary(min_size=3, max_size=3).filter(any))
    return emit(ip, dataclasses.replace(tcp, options=(EOL._replace(data=text),)), *rest)


def _shift(draw: st.DrawFn, ip: Ipv4 | Ipv6, tcp: Tcp, rest: Packet) -> bytes:
    option = window_scale(draw(st.integers(15, 255)))
    header = dataclasses.replace(tcp, flags=tcp.flags & ~(FIN | RST) | SYN, options=(option,))
    return emit(ip, header, *rest)


def _source(draw: st.DrawFn, ip: Ipv4 | Ipv6, tcp: Tcp, rest: Packet) -> bytes:
    four = [bytes((224, 0, 0, 1)), b"\xff" * 4, bytes(4), bytes((127, 0, 0, 1))]
    six = [bytes.fromhex("ff02") + bytes(13) + b"\1", bytes(16), bytes(15) + b"\1"]
    src = draw(st.sampled_from(four if isinstance(ip, Ipv4) else six))
    return emit(dataclasses.replace(ip, src=src), tcp, *rest)


_SPOILERS: dict[Fault, _Spoiler] = {
    Fault.CHECKSUM: _checksum,
    Fault.IP_CHECKSUM: _ip_checksum,
    Fault.SHORT_OFFSET: _offset(0, 4),
    Fault.LONG_OFFSET: _offset(6, 15),
    Fault.CUT: _cut,
    Fault.CUT_HEADER: _cut_header,
    Fault.OPTION_LENGTH: _option_length,
    Fault.OPTION_OVERRUN: _option_overrun,
    Fault.FLAGS: _flags,
    Fault.RESERVED: _reserved,
    Fault.STRAY_OPTION: _stray,
    Fault.WRONG_SIZE: _wrong_size,
    Fault.PADDING: _padding,
    Fault.SHIFT: _shift,
    Fault.SOURCE: _source,
}
