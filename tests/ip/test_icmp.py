"""ICMP: totality, round trips, what is quoted, and about what no error is ever sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, IPerror, TCPerror
from scapy.packet import Raw

from tunstack.errors import BadPacket, DropReason, LocalError
from tunstack.ip import icmp, ipv4
from tunstack.ip.addresses import parse_address
from tunstack.ip.header import IpHeader
from tunstack.ip.icmp import EchoReply, EchoRequest, IcmpError, IcmpErrorKind
from tunstack.testing.packets import formats

from . import wire

GATEWAY = parse_address("10.0.2.2")
GUEST = parse_address("10.0.2.100")
OUTSIDE = parse_address("192.0.2.1")

word = st.integers(0, 0xFFFF)
address = st.binary(min_size=4, max_size=4)
kinds = st.sampled_from(IcmpErrorKind)


def received(message: bytes | bytearray, **fields: int) -> IpHeader:
    return ipv4.parse(wire.ipv4(bytes(message), src=GUEST, dst=GATEWAY, protocol=1, **fields))  # type: ignore[arg-type]


def repair(message: bytes) -> bytes:
    """The message with a right checksum."""
    zeroed = message[:2] + bytes(2) + message[4:]
    return zeroed[:2] + wire.checksum(zeroed).to_bytes(2, "big") + zeroed[4:]


@given(st.binary(max_size=100), st.booleans())
def test_any_bytes_are_a_message_none_or_bad_packet(data: bytes, right: bool) -> None:
    header = received(repair(data) if right and len(data) >= 4 else data)
    try:
        message = icmp.parse(header)
    except BadPacket as error:
        assert error.reason in (DropReason.BAD_ICMP, DropReason.BAD_ICMP_CHECKSUM)
    else:
        assert message is None or isinstance(message, EchoRequest | EchoReply | IcmpError)


@given(st.sampled_from([3, 11, 12]), st.integers(0, 16), st.binary(max_size=60), st.integers(0x40, 0x4F))
def test_any_quote_is_an_error_none_or_bad_packet(kind: int, code: int, quote: bytes, first: int) -> None:
    quote = bytes([first]) + quote
    message = wire.with_checksum(
        formats.ICMP_ERROR, type=kind, code=code, pointer=0, unused=0, mtu=0, quote=quote
    )
    try:
        icmp.parse(received(message))
    except BadPacket as error:
        assert error.reason is DropReason.BAD_ICMP


@pytest.mark.rfc("1122", "3.2.2.6 echo")
@given(word, word, st.binary(max_size=100), st.booleans())
def test_echo_agrees_with_the_description_and_comes_back(
    ident: int, seq: int, payload: bytes, request: bool
) -> None:
    emit = icmp.emit_echo_request if request else icmp.emit_echo_reply
    message = emit(ident, seq, memoryview(payload))
    assert message == wire.with_checksum(
        formats.ECHO, type=8 if request else 0, code=0, ident=ident, seq=seq, payload=payload
    )
    header = received(message, ttl=7, dscp=46, df=1)
    echo = icmp.parse(header)
    assert type(echo) is (EchoRequest if request else EchoReply)
    assert (echo.src, echo.dst, echo.ident, echo.seq) == (GUEST, GATEWAY, ident, seq)
    assert echo.payload == payload and echo.quote == header.packet[:576]
    assert (echo.hop_limit, echo.traffic_class, echo.dont_fragment) == (7, 46 << 2, True)


@pytest.mark.rfc("792", "checksum")
@given(st.binary(max_size=40), st.data())
def test_a_flipped_bit_is_noticed(payload: bytes, data: st.DataObject) -> None:
    message = bytearray(icmp.emit_echo_request(1, 2, payload))
    bit = data.draw(st.integers(0, len(message) * 8 - 1))
    message[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadPacket) as caught:
        icmp.parse(received(message))
    assert caught.value.reason is DropReason.BAD_ICMP_CHECKSUM


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_message_of_less_than_8_bytes_is_bad(size: int) -> None:
    with pytest.raises(BadPacket) as caught:
        icmp.parse(received(icmp.emit_echo_request(1, 2, b"")[:size]))
    assert caught.value.reason is DropReason.BAD_ICMP


@given(kinds, address, address, word, word, st.integers(0, 2**32 - 1), word, st.integers(0, 255))
def test_an_error_about_a_segment_comes_back(
    kind: IcmpErrorKind, src: bytes, dst: bytes, sport: int, dport: int, seq: int, mtu: int, pointer: int
) -> None:
    l4 = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + seq.to_bytes(4, "big")
    quote = wire.ipv4(l4, src=src, dst=dst, protocol=6, df=1, total_length=1500)
    message = icmp.emit_error(kind, quote, mtu=mtu, pointer=pointer)
    stated = wire.read(formats.ICMP_ERROR, message)
    assert stated.quote == quote and wire.checksum(message) == 0
    assert stated.mtu == (mtu if kind is IcmpErrorKind.FRAGMENTATION_NEEDED else 0)
    assert stated.pointer == (pointer if kind is IcmpErrorKind.PARAMETER_PROBLEM else 0)
    error = icmp.parse(received(message))
    assert isinstance(error, IcmpError)
    assert (error.kind, error.mtu, error.src, error.protocol) == (kind, stated.mtu, GUEST, 6)
    assert (error.quoted_src, error.quoted_src_port) == (src, sport)
    assert (error.quoted_dst, error.quoted_dst_port, error.quoted_seq) == (dst, dport, seq)


@pytest.mark.parametrize(
    ("kind", "type_and_code"),
    [
        (IcmpErrorKind.NET_UNREACHABLE, (3, 0)),
        (IcmpErrorKind.HOST_UNREACHABLE, (3, 1)),
        (IcmpErrorKind.PROTOCOL_UNREACHABLE, (3, 2)),
        (IcmpErrorKind.PORT_UNREACHABLE, (3, 3)),
        (IcmpErrorKind.FRAGMENTATION_NEEDED, (3, 4)),
        (IcmpErrorKind.ADMIN_PROHIBITED, (3, 13)),
        (IcmpErrorKind.TTL_EXCEEDED, (11, 0)),
        (IcmpErrorKind.REASSEMBLY_TIMEOUT, (11, 1)),
        (IcmpErrorKind.PARAMETER_PROBLEM, (12, 0)),
    ],
)
def test_types_and_codes(kind: IcmpErrorKind, type_and_code: tuple[int, int]) -> None:
    message = icmp.emit_error(kind, wire.ipv4(bytes(8)))
    assert (message[0], message[1]) == type_and_code


@pytest.mark.rfc("1122", "3.2.2.1 codes")
@pytest.mark.parametrize("code", range(16))
def test_every_code_of_unreachable_is_understood(code: int) -> None:
    message = repair(bytes([3, code]) + bytes(6) + wire.ipv4(bytes(8)))
    assert isinstance(icmp.parse(received(message)), IcmpError)


@pytest.mark.rfc("1122", "3.2.2 unknown type")
@pytest.mark.rfc("1122", "3.2.2.2")
@pytest.mark.parametrize(
    ("kind", "code"), [(4, 0), (5, 1), (9, 0), (10, 0), (13, 0), (17, 0), (3, 16), (11, 2), (40, 0), (255, 0)]
)
def test_what_is_ignored(kind: int, code: int) -> None:
    """Source quench (RFC 6633), redirects, timestamps, router discovery, unknown types and codes."""
    assert icmp.parse(received(repair(bytes([kind, code]) + bytes(6) + wire.ipv4(bytes(8))))) is None


@pytest.mark.parametrize(
    ("quote", "expected"),
    [
        (wire.ipv4(b"\x00\x35\x01\x00\0\0\0\0", protocol=17), (53, 256, None)),
        (wire.ipv4(b"\x00\x35\x01\x00\0\0\0\0", protocol=17, options=b"\x01" * 12), (53, 256, None)),
        (wire.ipv4(b"\x00\x35\x01\x00\0\0\0\0", protocol=6, mf=1), (53, 256, 0)),
        (wire.ipv4(b"\x00\x35\x01\x00\0\0\0\0", protocol=6, offset=1), (None, None, None)),
        (wire.ipv4(b"\x00\x35\x01\x00\0\0\0", protocol=6), (None, None, None)),
        (wire.ipv4(b"\x00\x35\x01\x00\0\0\0\0", protocol=47), (None, None, None)),
        (wire.ipv4(b"\x08\0\0\0\x01\x02\x03\x04", protocol=1), (0x102, None, 0x304)),
        (wire.ipv4(b"\x0d\0\0\0\x01\x02\x03\x04", protocol=1), (None, None, None)),
        (wire.ipv4(b"", protocol=6), (None, None, None)),
    ],
)
def test_what_is_read_from_a_quote(quote: bytes, expected: tuple[int | None, ...]) -> None:
    error = icmp.parse(received(icmp.emit_error(IcmpErrorKind.PORT_UNREACHABLE, quote)))
    assert isinstance(error, IcmpError)
    assert (error.quoted_src_port, error.quoted_dst_port, error.quoted_seq) == expected


@pytest.mark.parametrize("quote", [b"", wire.ipv4()[:19], b"\x46" + wire.ipv4()[1:], b"\x60" + bytes(60)])
def test_a_quote_without_a_whole_header_is_bad(quote: bytes) -> None:
    with pytest.raises(BadPacket) as caught:
        icmp.parse(received(repair(bytes([3, 3]) + bytes(6) + quote)))
    assert caught.value.reason is DropReason.BAD_ICMP


@pytest.mark.rfc("1812", "4.3.2.3")
@pytest.mark.parametrize("size", [28, 575, 576, 577, 1500, 65535])
def test_an_error_has_at_most_576_bytes_and_quotes_all_that_fits(size: int) -> None:
    quote = wire.ipv4(bytes(size - 20))
    message = icmp.emit_error(IcmpErrorKind.TTL_EXCEEDED, quote)
    assert 20 + len(message) == min(576, 28 + size)
    assert quote.startswith(message[8:])


@pytest.mark.parametrize("quote", [b"", wire.ipv4()[:19], b"\x60" + bytes(60)])
def test_an_error_about_nothing_is_refused(quote: bytes) -> None:
    with pytest.raises(LocalError):
        icmp.emit_error(IcmpErrorKind.TTL_EXCEEDED, quote)


ECHO = icmp.emit_echo_request(1, 1, b"")


@pytest.mark.rfc("1122", "3.2.2 no error about")
@pytest.mark.rfc("1812", "4.3.2.7")
@pytest.mark.parametrize(
    ("packet", "answer"),
    [
        (wire.ipv4(bytes(8)), True),
        (wire.ipv4(bytes(8), protocol=6), True),
        (wire.ipv4(bytes(8), protocol=99), True),
        (wire.ipv4(bytes(8), mf=1), True),
        (wire.ipv4(bytes(8), offset=1), False),
        (wire.ipv4(bytes(8), offset=1, mf=1), False),
        (wire.ipv4(ECHO, protocol=1), True),
        (wire.ipv4(icmp.emit_echo_reply(1, 1, b""), protocol=1), True),
        *((wire.ipv4(bytes([kind]) + bytes(7), protocol=1), False) for kind in (3, 4, 5, 11, 12, 40, 200)),
        (wire.ipv4(b"", protocol=1), False),
        *(
            (wire.ipv4(bytes(8), dst=parse_address(dst)), False)
            for dst in ("224.0.0.1", "239.1.2.3", "255.255.255.255", "10.0.2.255")
        ),
        *(
            (wire.ipv4(bytes(8), src=parse_address(src)), False)
            for src in ("0.0.0.0", "0.0.0.5", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.0.2.255")
        ),
    ],
)
def test_may_answer(packet: bytes, answer: bool) -> None:
    broadcasts = {parse_address("10.0.2.255")}
    assert icmp.may_answer(ipv4.parse(packet), broadcasts) is answer
    assert icmp.may_answer(ipv4.parse_quote(packet[:576]), broadcasts) is answer


@given(kinds, st.binary(min_size=8, max_size=30))
def test_no_error_ever_causes_another(kind: IcmpErrorKind, l4: bytes) -> None:
    assert not icmp.may_answer(received(icmp.emit_error(kind, wire.ipv4(l4))))


@pytest.mark.rfc("1812", "4.3.2.8")
@given(
    st.floats(0.1, 1000),
    st.integers(1, 50),
    st.lists(st.floats(-0.5, 3), min_size=1, max_size=200),
)
def test_no_window_of_time_sees_more_than_rate_and_burst_allow(
    rate: float, burst: int, pauses: list[float]
) -> None:
    """The clock may even step back: that never earns tokens."""
    limiter = icmp.RateLimiter(rate, burst)
    now = 100.0
    latest = float("-inf")
    allowed: list[float] = []
    for pause in pauses:
        now += pause
        latest = max(latest, now)  # the limiter's own clock: the latest time that it was told
        if limiter.allow(now):
            allowed.append(latest)
    for first in range(len(allowed)):
        for last in range(first, len(allowed)):
            assert last - first + 1 <= burst + (allowed[last] - allowed[first]) * rate + 1e-6


@pytest.mark.rfc("1812", "4.3.2.8")
def test_the_bucket_starts_full_and_refills() -> None:
    limiter = icmp.RateLimiter(10.0, 3)
    assert [limiter.allow(5.0) for _ in range(4)] == [True, True, True, False]
    assert not limiter.allow(5.05)
    assert limiter.allow(5.11)
    assert not limiter.allow(5.11)
    assert [limiter.allow(60.0) for _ in range(4)] == [True, True, True, False]


def test_a_clock_that_steps_back_neither_earns_nor_costs() -> None:
    limiter = icmp.RateLimiter(10.0, 2)
    assert [limiter.allow(now) for now in (5.0, 4.0, 3.0)] == [True, True, False]
    assert not limiter.allow(5.0), "the second between 4.0 and 5.0 was spent before"
    assert limiter.allow(5.15)


def test_scapy_agrees_with_an_error() -> None:
    segment = bytes(IP(src="10.0.2.100", dst="192.0.2.1") / TCP(sport=4000, dport=80, seq=123456) / Raw(b"x"))
    message = icmp.emit_error(IcmpErrorKind.FRAGMENTATION_NEEDED, segment, mtu=1400)
    seen = ICMP(message)
    assert (seen.type, seen.code, seen.nexthopmtu) == (3, 4, 1400)
    assert seen[IPerror].dst == "192.0.2.1" and seen[TCPerror].seq == 123456
    again = seen.copy()
    del again.chksum
    assert ICMP(bytes(again)).chksum == seen.chksum
    theirs = bytes(IP(src="192.0.2.9", dst="10.0.2.2") / ICMP(type=3, code=3) / segment)
    error = icmp.parse(ipv4.parse(theirs))
    assert isinstance(error, IcmpError) and error.kind is IcmpErrorKind.PORT_UNREACHABLE
    assert (error.quoted_src, error.quoted_src_port, error.quoted_seq) == (GUEST, 4000, 123456)


def test_scapy_agrees_with_echo() -> None:
    theirs = bytes(IP(src="10.0.2.100", dst="10.0.2.2") / ICMP(id=7, seq=9) / Raw(b"abcd"))
    request = icmp.parse(ipv4.parse(theirs))
    assert isinstance(request, EchoRequest) and (request.ident, request.seq) == (7, 9)
    reply = icmp.emit_echo_reply(request.ident, request.seq, request.payload)
    assert reply == bytes(ICMP(type=0, id=7, seq=9) / Raw(b"abcd"))
