"""UDP: totality, round trips, checksums of both families."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from tunstack import native
from tunstack.errors import BadPacket, DropReason, LocalError
from tunstack.ip import ipv4, udp
from tunstack.ip.addresses import parse_address
from tunstack.ip.header import IpHeader
from tunstack.packet import Checksum, Packet

from . import wire

GATEWAY = parse_address("10.0.2.2")
GUEST = parse_address("10.0.2.100")

port = st.integers(1, 0xFFFF)
states = st.sampled_from(Checksum)


def received(data: bytes | bytearray, **fields: int) -> IpHeader:
    return ipv4.parse(wire.ipv4(bytes(data), src=GUEST, dst=GATEWAY, **fields))  # type: ignore[arg-type]


def received_v6(data: bytes | bytearray, src: bytes, dst: bytes) -> IpHeader:
    """What an IPv6 parser gives: the same class with longer addresses."""
    view = memoryview(bytes(40) + data)
    return IpHeader(6, src, dst, 17, 64, 0, 40, len(view), 0, True, False, 0, False, view[40:], view)


def refusal(header: IpHeader) -> DropReason:
    with pytest.raises(BadPacket) as caught:
        udp.parse(header, Checksum.UNKNOWN)
    return caught.value.reason


@given(st.binary(max_size=40), st.integers(0, 60), states)
def test_any_bytes_are_a_datagram_or_bad_packet(data: bytes, length: int, state: int) -> None:
    for candidate in (data, data[:4] + length.to_bytes(2, "big") + data[6:]):
        try:
            datagram = udp.parse(received(candidate), state)
        except BadPacket as error:
            assert error.reason in (DropReason.BAD_UDP, DropReason.BAD_UDP_CHECKSUM)
        else:
            assert len(datagram.payload) <= len(candidate) - 8


@given(port | st.just(0), port, st.binary(max_size=100), st.binary(max_size=10), states)
def test_parse_agrees_with_the_description(
    sport: int, dport: int, payload: bytes, behind: bytes, state: int
) -> None:
    data = wire.udp(GUEST, sport, GATEWAY, dport, payload)
    header = received(data + behind, ttl=3, dscp=1, ecn=2, df=1)
    datagram = udp.parse(header, state)
    assert (datagram.src, datagram.src_port) == (GUEST, sport)
    assert (datagram.dst, datagram.dst_port) == (GATEWAY, dport)
    assert datagram.payload == payload and datagram.quote == header.packet
    assert (datagram.hop_limit, datagram.traffic_class, datagram.dont_fragment) == (3, 6, True)
    assert datagram.gso_size == 0


@given(st.sampled_from([4, 16]), port, port, st.binary(max_size=100), st.data())
def test_emit_completed_agrees_with_the_description_and_verifies(
    size: int, sport: int, dport: int, payload: bytes, data: st.DataObject
) -> None:
    src, dst = (data.draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    head = udp.emit(src, sport, dst, dport, len(payload))
    assert len(head) == 8
    space = bytes(40)
    packet = Packet(
        space + head, (payload,), checksum=Checksum.PARTIAL, csum_start=40, csum_offset=udp.CSUM_OFFSET
    )
    whole = native.complete_checksum(packet).tobytes()[40:]
    assert whole == wire.udp(src, sport, dst, dport, payload)
    if size == 16:
        assert udp.parse(received_v6(whole, src, dst), Checksum.UNKNOWN).payload == payload


@given(st.binary(max_size=40), st.data())
def test_a_flipped_bit_is_noticed(payload: bytes, data: st.DataObject) -> None:
    """In ports, length, checksum or payload; a bit that makes the checksum zero would turn it off."""
    whole = bytearray(wire.udp(GUEST, 5, GATEWAY, 6, payload))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    if whole[6:8] == b"\0\0":
        return
    with pytest.raises(BadPacket):
        udp.parse(received(whole), Checksum.UNKNOWN)


@pytest.mark.rfc("1122", "4.1.3.4 checksum")
def test_a_wrong_checksum_is_refused_unless_it_is_not_to_be_looked_at() -> None:
    whole = bytearray(wire.udp(GUEST, 5, GATEWAY, 6, b"hello"))
    whole[7] ^= 1
    assert refusal(received(whole)) is DropReason.BAD_UDP_CHECKSUM
    assert udp.parse(received(whole), Checksum.VALID).payload == b"hello"


@given(st.binary(max_size=40), st.sampled_from((4, 16)), st.integers(0, 0xFFFF))
def test_what_was_left_to_be_finished_is_right_on_a_link_that_cannot_tell(
    payload: bytes, size: int, checksum: int
) -> None:
    src, dst = (GUEST, GATEWAY) if size == 4 else (bytes(15) + b"\1", bytes(15) + b"\2")
    whole = bytearray(wire.udp(src, 5, dst, 6, payload))
    right = bytes(whole[6:8])
    unfinished = ipv4.pseudo_header_sum(src, dst, 17, len(whole)).to_bytes(2, "big")
    for field in (right, unfinished, checksum.to_bytes(2, "big")):
        whole[6:8] = field
        header = received(whole) if size == 4 else received_v6(whole, src, dst)
        if field in (right, unfinished) or (size == 4 and field == bytes(2)):
            assert udp.parse(header, Checksum.UNTOLD).payload == payload
        else:
            with pytest.raises(BadPacket):
                udp.parse(header, Checksum.UNTOLD)
        if field == unfinished != right:
            with pytest.raises(BadPacket):
                udp.parse(header, Checksum.UNKNOWN)


@pytest.mark.rfc("768", "checksum 0")
@pytest.mark.rfc("8200", "8.1 checksum 0")
def test_no_checksum_is_right_in_ipv4_and_wrong_in_ipv6() -> None:
    whole = bytearray(wire.udp(GUEST, 5, GATEWAY, 6, b"hello"))
    whole[6:8] = bytes(2)
    assert udp.parse(received(whole), Checksum.UNKNOWN).payload == b"hello"
    assert (
        refusal(received_v6(whole, bytes(15) + b"\x01", bytes(15) + b"\x02")) is DropReason.BAD_UDP_CHECKSUM
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        b"\0\5\0\6\0\7\0\0",
        b"\0\5\0\6\0\0\0\0",
        b"\0\5\0\6\0\x0a\0\0x",
        b"\0\5\0\0\0\x08\0\0",
    ],
)
def test_bad_datagrams(data: bytes) -> None:
    assert refusal(received(data)) is DropReason.BAD_UDP


def test_the_quote_is_cut_and_borrowed() -> None:
    header = received(wire.udp(GUEST, 5, GATEWAY, 6, bytes(1000)))
    quote = udp.parse(header, Checksum.UNKNOWN).quote
    assert quote == header.packet[:576] and isinstance(quote, memoryview)


@pytest.mark.parametrize(("sport", "dport", "size"), [(65536, 1, 0), (1, -1, 0), (1, 1, 65528), (1, 1, -1)])
def test_emit_refuses_what_does_not_fit(sport: int, dport: int, size: int) -> None:
    with pytest.raises(LocalError):
        udp.emit(GATEWAY, sport, GUEST, dport, size)


def test_scapy_agrees() -> None:
    theirs = bytes(IP(src="10.0.2.100", dst="10.0.2.2") / UDP(sport=5, dport=6) / Raw(b"hello"))
    datagram = udp.parse(ipv4.parse(theirs), Checksum.UNKNOWN)
    assert (datagram.src_port, datagram.dst_port, bytes(datagram.payload)) == (5, 6, b"hello")
    assert theirs[20:] == wire.udp(GUEST, 5, GATEWAY, 6, b"hello")
