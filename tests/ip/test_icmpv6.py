"""ICMPv6: totality, round trips, what is quoted, and about what no error is ever sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6PacketTooBig, IPv6
from scapy.packet import Raw

from tunstack.errors import BadPacket, DropReason, LocalError
from tunstack.ip import icmpv6, ipv6
from tunstack.ip.addresses import parse_address
from tunstack.ip.header import IpHeader
from tunstack.ip.icmp import EchoReply, EchoRequest, IcmpError, IcmpErrorKind
from tunstack.testing.packets import formats

from . import wire

GATEWAY = parse_address("fd00::2")
GUEST = parse_address("fd00::100")
OUTSIDE = parse_address("2001:db8::1")

word = st.integers(0, 0xFFFF)
long_word = st.integers(0, 0xFFFFFFFF)
address = st.binary(min_size=16, max_size=16)
kinds = st.sampled_from(IcmpErrorKind)


def received(message: bytes | bytearray, **fields: int) -> IpHeader:
    return ipv6.parse(wire.ipv6(bytes(message), src=GUEST, dst=GATEWAY, next_header=58, **fields))  # type: ignore[arg-type]


@given(st.binary(max_size=100), st.booleans())
def test_any_bytes_are_a_message_none_or_bad_packet(data: bytes, right: bool) -> None:
    header = received(wire.repair_v6(data, GUEST, GATEWAY) if right and len(data) >= 4 else data)
    try:
        message = icmpv6.parse(header)
    except BadPacket as error:
        assert error.reason in (DropReason.BAD_ICMP, DropReason.BAD_ICMP_CHECKSUM)
    else:
        assert message is None or isinstance(message, EchoRequest | EchoReply | IcmpError)


@given(st.integers(0, 5), st.integers(0, 9), st.binary(max_size=90), st.integers(0x60, 0x6F))
def test_any_quote_is_an_error_none_or_bad_packet(kind: int, code: int, quote: bytes, first: int) -> None:
    message = wire.with_checksum_v6(
        formats.ICMPV6_ERROR, GUEST, GATEWAY, type=kind, code=code, word=0, quote=bytes([first]) + quote
    )
    try:
        icmpv6.parse(received(message))
    except BadPacket as error:
        assert error.reason is DropReason.BAD_ICMP


@pytest.mark.rfc("4443", "4 echo")
@given(word, word, st.binary(max_size=100), st.booleans())
def test_echo_agrees_with_the_description_and_comes_back(
    ident: int, seq: int, payload: bytes, request: bool
) -> None:
    emit = icmpv6.emit_echo_request if request else icmpv6.emit_echo_reply
    message = emit(GUEST, GATEWAY, ident, seq, memoryview(payload))
    assert message == wire.with_checksum_v6(
        formats.ECHO,
        GUEST,
        GATEWAY,
        type=128 if request else 129,
        code=0,
        ident=ident,
        seq=seq,
        payload=payload,
    )
    header = received(message, hop_limit=7, traffic_class=46)
    echo = icmpv6.parse(header)
    assert type(echo) is (EchoRequest if request else EchoReply)
    assert (echo.src, echo.dst, echo.ident, echo.seq) == (GUEST, GATEWAY, ident, seq)
    assert echo.payload == payload and echo.quote == header.packet
    assert (echo.hop_limit, echo.traffic_class, echo.dont_fragment) == (7, 46, True)


@pytest.mark.rfc("4443", "2.3 checksum")
@given(st.binary(max_size=40), st.data())
def test_a_flipped_bit_is_noticed_in_the_addresses_too(payload: bytes, data: st.DataObject) -> None:
    message = icmpv6.emit_echo_request(GUEST, GATEWAY, 1, 2, payload)
    packet = bytearray(wire.ipv6(message, src=GUEST, dst=GATEWAY, next_header=58))
    bit = data.draw(st.integers(8 * 8, len(packet) * 8 - 1))
    packet[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadPacket) as caught:
        icmpv6.parse(ipv6.parse(packet))
    assert caught.value.reason is DropReason.BAD_ICMP_CHECKSUM


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_message_of_less_than_8_bytes_is_bad(size: int) -> None:
    with pytest.raises(BadPacket) as caught:
        icmpv6.parse(received(icmpv6.emit_echo_request(GUEST, GATEWAY, 1, 2, b"")[:size]))
    assert caught.value.reason is DropReason.BAD_ICMP


@given(kinds, address, address, word, word, long_word, long_word, st.integers(0, 255))
def test_an_error_about_a_segment_comes_back(
    kind: IcmpErrorKind, src: bytes, dst: bytes, sport: int, dport: int, seq: int, mtu: int, pointer: int
) -> None:
    l4 = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + seq.to_bytes(4, "big")
    quote = wire.ipv6(l4, src=src, dst=dst, next_header=6, payload_length=1460)
    message = icmpv6.emit_error(GUEST, GATEWAY, kind, quote, mtu=mtu, pointer=pointer)
    stated = wire.read(formats.ICMPV6_ERROR, message)
    assert stated.quote == quote and wire.repair_v6(message, GUEST, GATEWAY) == message
    words = {
        IcmpErrorKind.FRAGMENTATION_NEEDED: mtu,
        IcmpErrorKind.PARAMETER_PROBLEM: pointer,
        IcmpErrorKind.PROTOCOL_UNREACHABLE: 6,
    }
    assert stated.word == words.get(kind, 0)
    error = icmpv6.parse(received(message))
    assert isinstance(error, IcmpError)
    assert (error.kind, error.src, error.protocol) == (kind, GUEST, 6)
    assert error.mtu == (mtu if kind is IcmpErrorKind.FRAGMENTATION_NEEDED else 0)
    assert (error.quoted_src, error.quoted_src_port) == (src, sport)
    assert (error.quoted_dst, error.quoted_dst_port, error.quoted_seq) == (dst, dport, seq)


def test_an_error_about_an_echo_and_one_about_a_later_fragment() -> None:
    echo = wire.ipv6(
        icmpv6.emit_echo_request(GATEWAY, GUEST, 77, 5, b""), src=GATEWAY, dst=GUEST, next_header=58
    )
    error = icmpv6.parse(received(icmpv6.emit_error(GUEST, GATEWAY, IcmpErrorKind.TTL_EXCEEDED, echo)))
    assert isinstance(error, IcmpError)
    assert (error.protocol, error.quoted_src_port, error.quoted_dst_port, error.quoted_seq) == (
        58,
        77,
        None,
        5,
    )
    later = wire.ipv6(b"\x11\0\0\x08" + bytes(4) + bytes(20), next_header=44)
    error = icmpv6.parse(received(icmpv6.emit_error(GUEST, GATEWAY, IcmpErrorKind.TTL_EXCEEDED, later)))
    assert isinstance(error, IcmpError) and (error.protocol, error.quoted_src_port) == (17, None)


@pytest.mark.rfc("4443", "3 types and codes")
@pytest.mark.parametrize(
    ("kind", "type_and_code"),
    [
        (IcmpErrorKind.NET_UNREACHABLE, (1, 0)),
        (IcmpErrorKind.ADMIN_PROHIBITED, (1, 1)),
        (IcmpErrorKind.HOST_UNREACHABLE, (1, 3)),
        (IcmpErrorKind.PORT_UNREACHABLE, (1, 4)),
        (IcmpErrorKind.FRAGMENTATION_NEEDED, (2, 0)),
        (IcmpErrorKind.TTL_EXCEEDED, (3, 0)),
        (IcmpErrorKind.REASSEMBLY_TIMEOUT, (3, 1)),
        (IcmpErrorKind.PARAMETER_PROBLEM, (4, 0)),
        (IcmpErrorKind.PROTOCOL_UNREACHABLE, (4, 1)),
    ],
)
def test_types_and_codes(kind: IcmpErrorKind, type_and_code: tuple[int, int]) -> None:
    message = icmpv6.emit_error(GATEWAY, GUEST, kind, wire.ipv6(bytes(8)))
    assert (message[0], message[1]) == type_and_code


@pytest.mark.rfc("4443", "3.1 codes")
@pytest.mark.parametrize("code", range(7))
def test_every_code_of_unreachable_is_understood(code: int) -> None:
    message = wire.repair_v6(bytes([1, code]) + bytes(6) + wire.ipv6(bytes(8)), GUEST, GATEWAY)
    assert isinstance(icmpv6.parse(received(message)), IcmpError)


@pytest.mark.rfc("4443", "3.2 code ignored")
def test_the_code_of_packet_too_big_is_ignored() -> None:
    message = wire.repair_v6(
        bytes([2, 9]) + bytes(2) + (1300).to_bytes(4, "big") + wire.ipv6(bytes(8)), GUEST, GATEWAY
    )
    error = icmpv6.parse(received(message))
    assert isinstance(error, IcmpError)
    assert (error.kind, error.mtu) == (IcmpErrorKind.FRAGMENTATION_NEEDED, 1300)


@pytest.mark.parametrize("kind", [0, 5, 100, 127, 130, 131, 132, 138, 143, 255])
def test_other_types_are_ignored(kind: int) -> None:
    assert icmpv6.parse(received(wire.repair_v6(bytes([kind]) + bytes(60), GUEST, GATEWAY))) is None


@pytest.mark.rfc("4443", "2.4 c size")
@pytest.mark.parametrize("size", [0, 1191, 1192, 1193, 60000])
def test_an_error_never_exceeds_1280_bytes(size: int) -> None:
    message = icmpv6.emit_error(GATEWAY, GUEST, IcmpErrorKind.PORT_UNREACHABLE, wire.ipv6(bytes(size)))
    assert 40 + len(message) == min(1280, 40 + 8 + 40 + size)
    assert len(received(bytes(10), hop_limit=1).quote()) == 50
    assert len(ipv6.parse(wire.ipv6(bytes(4000))).quote()) == 1232


@pytest.mark.parametrize("quote", [b"", wire.ipv6()[:39], wire.ipv4(bytes(40))])
def test_only_ipv6_is_quoted(quote: bytes) -> None:
    with pytest.raises(LocalError):
        icmpv6.emit_error(GATEWAY, GUEST, IcmpErrorKind.PORT_UNREACHABLE, quote)


@pytest.mark.rfc("4443", "2.4 e")
@pytest.mark.parametrize(
    ("packet", "answer"),
    [
        (wire.ipv6(bytes(8)), True),
        (wire.ipv6(b"", next_header=6), True),
        (wire.ipv6(bytes(8), next_header=253), True),
        *((wire.ipv6(bytes([kind]) + bytes(7), next_header=58), True) for kind in (128, 129, 135, 200)),
        *(
            (wire.ipv6(bytes([kind]) + bytes(7), next_header=58), False)
            for kind in (1, 2, 3, 4, 100, 127, 137)
        ),
        (wire.ipv6(b"", next_header=58), False),
        *((wire.ipv6(bytes(8), dst=parse_address(dst)), False) for dst in ("ff02::1", "ff0e::1:2")),
        *(
            (wire.ipv6(bytes(8), src=parse_address(src)), False)
            for src in ("::", "::1", "ff02::1", "::ffff:1.2.3.4")
        ),
        (wire.ipv6(b"\x11\0\0\x01" + bytes(12), next_header=44), True),
        (wire.ipv6(b"\x11\0\0\x09" + bytes(12), next_header=44), False),
    ],
)
def test_may_answer(packet: bytes, answer: bool) -> None:
    assert icmpv6.may_answer(ipv6.parse_quote(packet[:1232])) is answer


@given(kinds, st.binary(min_size=8, max_size=30))
def test_no_error_ever_causes_another(kind: IcmpErrorKind, l4: bytes) -> None:
    message = icmpv6.emit_error(GUEST, GATEWAY, kind, wire.ipv6(l4))
    assert not icmpv6.may_answer(received(message))


def test_scapy_agrees_with_an_error() -> None:
    segment = bytes(
        IPv6(src="fd00::100", dst="2001:db8::1") / TCP(sport=4000, dport=80, seq=123456) / Raw(b"x")
    )
    message = icmpv6.emit_error(GATEWAY, GUEST, IcmpErrorKind.FRAGMENTATION_NEEDED, segment, mtu=1400)
    seen = IPv6(src="fd00::2", dst="fd00::100", nh=58) / message
    parsed = IPv6(bytes(seen))[ICMPv6PacketTooBig]
    assert parsed.mtu == 1400
    again = parsed.copy()
    del again.cksum
    assert IPv6(bytes(IPv6(src="fd00::2", dst="fd00::100") / again))[ICMPv6PacketTooBig].cksum == parsed.cksum
    theirs = bytes(IPv6(src="2001:db8::9", dst="fd00::2") / ICMPv6DestUnreach(code=4) / segment)
    error = icmpv6.parse(ipv6.parse(theirs))
    assert isinstance(error, IcmpError) and error.kind is IcmpErrorKind.PORT_UNREACHABLE
    assert (error.quoted_src, error.quoted_src_port, error.quoted_seq) == (GUEST, 4000, 123456)


def test_scapy_agrees_with_echo() -> None:
    theirs = bytes(IPv6(src="fd00::100", dst="fd00::2") / ICMPv6EchoRequest(id=7, seq=9, data=b"abcd"))
    request = icmpv6.parse(ipv6.parse(theirs))
    assert isinstance(request, EchoRequest) and (request.ident, request.seq) == (7, 9)
    assert bytes(request.payload) == b"abcd"
    assert icmpv6.emit_echo_request(GUEST, GATEWAY, 7, 9, b"abcd") == theirs[40:]
