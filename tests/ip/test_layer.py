"""The IP layer: what it lets in, what it sends, and what bounds it; scapy gives a second opinion."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.packet import Raw

from tunstack.errors import DropCounters, DropReason, LocalError
from tunstack.ip import ipv4, udp
from tunstack.ip.addresses import format_address, parse_address
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.ip.layer import IpLayer
from tunstack.limits import Limits
from tunstack.packet import Checksum, GsoType

from . import wire

GATEWAY = parse_address("10.0.2.2")
GUEST = parse_address("10.0.2.100")
OUTSIDE = parse_address("192.0.2.1")


def make(mtu: int = 1500, **limits: Any) -> tuple[IpLayer, DropCounters]:
    drops = DropCounters()
    return IpLayer(mtu, Limits(**limits), drops, random.Random(7)), drops


# Input.


@given(st.binary(max_size=80), st.integers(0, 20))
def test_any_bytes_are_a_header_or_a_counted_drop(data: bytes, offset: int) -> None:
    layer, drops = make()
    header = layer.receive(data, offset, 0.0)
    held = layer.next_timeout() is not None
    assert (header is not None) + drops.total + held == 1


@given(st.integers(0, 159), st.integers(0, 255), st.integers(0, 8))
def test_a_mutated_packet_is_a_header_or_a_counted_drop(place: int, value: int, padding: int) -> None:
    """With the checksum made right again, so that mutations reach behind it."""
    packet = bytearray(wire.ipv4(bytes(40), options=b"\x07\x07\x04\0\0\0\0\0") + bytes(padding))
    packet[place % len(packet)] = value
    length = max(20, min((packet[0] & 15) * 4, len(packet)))
    packet[10:12] = bytes(2)
    packet[10:12] = wire.checksum(bytes(packet[:length])).to_bytes(2, "big")
    layer, drops = make()
    header = layer.receive(packet, 0, 0.0)
    held = layer.next_timeout() is not None
    assert (header is not None) + drops.total + held == 1


@pytest.mark.parametrize("first", [0x00, 0x35, 0x50, 0x70, 0xF5])
def test_other_versions_are_counted(first: int) -> None:
    layer, drops = make()
    assert layer.receive(bytes([first]) + bytes(60), 0, 0.0) is None
    assert drops.as_dict() == {"bad-ip-version": 1}


@pytest.mark.rfc("1122", "3.2.1.3 source address")
@pytest.mark.parametrize(
    ("src", "dst", "good"),
    [
        ("10.0.2.100", "192.0.2.1", True),
        ("240.0.0.1", "192.0.2.1", True),
        ("255.255.255.254", "192.0.2.1", True),
        ("0.0.0.0", "255.255.255.255", True),
        ("0.0.0.0", "10.0.2.2", False),
        ("0.0.0.1", "255.255.255.255", False),
        ("0.1.2.3", "192.0.2.1", False),
        ("127.0.0.1", "192.0.2.1", False),
        ("127.255.255.255", "127.0.0.1", False),
        ("224.0.0.1", "192.0.2.1", False),
        ("239.255.255.255", "192.0.2.1", False),
        ("255.255.255.255", "192.0.2.1", False),
        ("10.0.2.255", "192.0.2.1", False),
        ("10.0.2.255", "255.255.255.255", False),
    ],
)
def test_sources(src: str, dst: str, good: bool) -> None:
    layer, drops = make()
    layer.broadcasts.add(parse_address("10.0.2.255"))
    packet = wire.ipv4(b"x", src=parse_address(src), dst=parse_address(dst))
    assert (layer.receive(packet, 0, 0.0) is not None) == good
    assert drops.as_dict() == ({} if good else {"bad-source": 1})


@pytest.mark.parametrize("dst", ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255"])
def test_destinations_are_left_to_the_policy(dst: str) -> None:
    layer, _ = make()
    header = layer.receive(wire.ipv4(b"x", dst=parse_address(dst)), 0, 0.0)
    assert header is not None and format_address(header.dst) == dst


def test_ethernet_padding_is_gone() -> None:
    layer, _ = make()
    header = layer.receive(bytes(14) + wire.ipv4(b"x") + bytes(25), 14, 0.0)
    assert header is not None and bytes(header.payload) == b"x" and len(header.packet) == 21


@pytest.mark.rfc("1122", "3.2.1.7")
def test_time_to_live_zero_is_received() -> None:
    """RFC 1122 3.2.1.7: a host must not drop what is for it; whether it goes on is for others to say."""
    layer, _ = make()
    header = layer.receive(wire.ipv4(b"x", ttl=0), 0, 0.0)
    assert header is not None and header.hop_limit == 0


@given(st.binary(min_size=1500, max_size=4000), st.integers(68, 1500), st.randoms())
def test_scapy_fragments_come_back_whole(payload: bytes, mtu: int, shuffler: random.Random) -> None:
    datagram = IP(src="10.0.2.100", dst="192.0.2.1", id=77, ttl=9) / UDP(sport=5, dport=6) / Raw(payload)
    pieces = [bytes(piece) for piece in fragment(datagram, (mtu - 20) // 8 * 8)]  # type: ignore[no-untyped-call]
    shuffler.shuffle(pieces)
    layer, drops = make()
    for piece in pieces[:-1]:
        assert layer.receive(piece, 0, 0.0) is None
    header = layer.receive(pieces[-1], 0, 0.0)
    assert header is not None and drops.total == 0
    assert header.packet == bytes(datagram)
    assert udp.parse(header).payload == payload


def test_a_datagram_made_too_long_by_options_of_its_first_fragment_is_dropped() -> None:
    layer, drops = make()
    body = bytes(65512)
    assert layer.receive(wire.ipv4(body[:32000], mf=1, options=b"\x01" * 8), 0, 0.0) is None
    assert layer.receive(wire.ipv4(body[32000:], offset=4000), 0, 0.0) is None
    assert drops.as_dict() == {"bad-fragment": 2}


@pytest.mark.rfc("1122", "3.3.2 Time Exceeded")
def test_reassembly_errors_are_polled_once() -> None:
    layer, drops = make()
    packet = wire.ipv4(bytes(8), mf=1)
    assert layer.receive(packet, 0, 5.0) is None
    assert layer.next_timeout() == 65.0
    layer.handle_timeout(65.0)
    assert layer.poll_errors() == [(packet, IcmpErrorKind.REASSEMBLY_TIMEOUT)]
    assert layer.poll_errors() == [] and layer.next_timeout() is None
    assert drops.as_dict() == {"fragment-timeout": 1}


# Output.


@given(
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=4, max_size=4),
    st.integers(0, 255),
    st.binary(max_size=60),
    st.lists(st.binary(max_size=300), max_size=4),
    st.integers(0, 255),
    st.integers(0, 255),
)
def test_an_atomic_packet_agrees_with_the_description(
    src: bytes, dst: bytes, protocol: int, l4: bytes, views: list[bytes], hops: int, service: int
) -> None:
    layer, _ = make()
    for _ in range(2):  # the second one comes from the kept template
        (packet,) = layer.build(
            src, dst, protocol, l4, [memoryview(v) for v in views], hop_limit=hops, traffic_class=service
        )
        assert packet.tobytes() == wire.ipv4(
            l4 + b"".join(views),
            src=src,
            dst=dst,
            protocol=protocol,
            ttl=hops,
            dscp=service >> 2,
            ecn=service & 3,
            df=1,
        )
        assert packet.head == packet.tobytes()[: 20 + len(l4)] and packet.checksum == Checksum.UNKNOWN


def test_a_partial_checksum_is_described_and_left_alone() -> None:
    layer, _ = make()
    payload = (b"hello",)
    l4 = udp.emit(GATEWAY, 53, GUEST, 4000, 5)
    (packet,) = layer.build(GATEWAY, GUEST, 17, l4, payload, csum_offset=udp.CSUM_OFFSET)
    assert packet.checksum == Checksum.PARTIAL and (packet.csum_start, packet.csum_offset) == (20, 6)
    assert packet.head[20:] == l4 and packet.payload is payload


@pytest.mark.rfc("6864", "4.1 atomic")
def test_atomic_datagrams_carry_zero_and_scapy_finds_no_fault() -> None:
    layer, _ = make()
    (packet,) = layer.build(GATEWAY, GUEST, 17, udp.emit(GATEWAY, 1, GUEST, 2, 3), (b"abc",))
    seen = IP(packet.tobytes())
    assert seen.id == 0 and seen.flags == "DF" and seen.ttl == 64 and seen.len == 31
    again = seen.copy()
    del again.chksum
    assert IP(bytes(again)).chksum == seen.chksum
    assert seen[UDP].sport == 1 and bytes(seen[UDP].payload) == b"abc"


@pytest.mark.rfc("6864", "4.2 unique")
def test_identifications_of_non_atomic_datagrams_do_not_repeat() -> None:
    layer, _ = make()

    def ident(dst: bytes, protocol: int = 17) -> int:
        (packet,) = layer.build(GATEWAY, dst, protocol, bytes(8), dont_fragment=False)
        header = ipv4.parse(packet.tobytes())
        assert not header.dont_fragment
        return header.ident

    assert len({ident(GUEST) for _ in range(65536)}) == 65536
    starts = {(ident(parse_address(f"10.0.3.{n}")) - ident(GUEST)) & 0xFFFF for n in range(200)}
    assert len(starts) > 190, "destinations do not share a counter"
    assert ident(GUEST, 6) != (ident(GUEST, 17) + 1) & 0xFFFF


@given(st.integers(0, 4000), st.integers(68, 1500), st.integers(0, 2), st.binary(max_size=30))
def test_what_is_too_large_is_cut_with_its_checksum_complete(
    size: int, mtu: int, views: int, start: bytes
) -> None:
    layer, drops = make(mtu)
    receiver, refused = make()
    body = start + random.Random(size).randbytes(size)
    payload = wire.in_views(body, views)
    l4 = udp.emit(GATEWAY, 53, GUEST, 4000, len(body))
    packets = layer.build(
        GATEWAY, GUEST, 17, l4, payload, dont_fragment=False, csum_offset=6, hop_limit=3, traffic_class=8
    )
    assert drops.total == 0 and (len(packets) > 1) == (28 + len(body) > mtu)
    if len(packets) == 1:
        assert packets[0].checksum == Checksum.PARTIAL
        return
    for packet in packets:
        assert len(packet) <= mtu and packet.checksum == Checksum.UNKNOWN
        header = receiver.receive(packet.tobytes(), 0, 0.0)
    assert header is not None and refused.total == 0
    assert header.hop_limit == 3 and header.traffic_class == 8
    assert header.payload == wire.udp(GATEWAY, 53, GUEST, 4000, body)


@pytest.mark.rfc("1812", "5.2.6")
def test_what_is_too_large_and_may_not_be_cut_is_counted() -> None:
    layer, drops = make()
    assert layer.build(GATEWAY, GUEST, 17, bytes(8), (bytes(1473),)) == []
    assert drops.as_dict() == {"packet-too-big": 1}
    assert len(layer.build(GATEWAY, GUEST, 17, bytes(8), (bytes(1472),))) == 1
    assert layer.build(GATEWAY, GUEST, 17, bytes(8), (bytes(65508),), dont_fragment=False) == []
    assert drops[DropReason.PACKET_TOO_BIG] == 2
    assert len(layer.build(GATEWAY, GUEST, 17, bytes(8), (bytes(65507),), dont_fragment=False)) == 45


def test_a_train_is_not_cut() -> None:
    layer, drops = make()
    views = (memoryview(bytes(60000)),)
    (train,) = layer.build(
        GATEWAY, GUEST, 6, bytes(32), views, gso_size=1448, gso_type=GsoType.TCPV4, csum_offset=16
    )
    assert (train.gso_size, train.gso_type, train.csum_start, train.csum_offset) == (1448, 1, 20, 16)
    assert ipv4.parse(train.tobytes()).total_length == 60052
    assert drops.total == 0
    with pytest.raises(LocalError):
        layer.build(GATEWAY, GUEST, 6, bytes(32), (bytes(65500),), gso_size=1448, gso_type=GsoType.TCPV4)


def test_a_train_that_is_not_atomic_takes_an_identification_for_each_packet() -> None:
    layer, _ = make()

    def ident(size: int) -> int:
        (train,) = layer.build(
            GATEWAY,
            GUEST,
            17,
            bytes(8),
            (bytes(size),),
            gso_size=100,
            gso_type=GsoType.UDP_L4,
            dont_fragment=False,
        )
        return ipv4.parse(train.tobytes()).ident

    first = ident(1001)
    assert (ident(1000) - first) & 0xFFFF == 11
    assert (ident(1) - first) & 0xFFFF == 21


def test_tables_are_bounded() -> None:
    layer, _ = make(ip_header_templates=8, ip_idents=4)
    for number in range(50):
        layer.build(GATEWAY, bytes([10, 0, 3, number]), 17, bytes(8), dont_fragment=False)
        assert len(layer._templates) <= 8 and len(layer._idents) <= 4


def test_the_least_recently_used_identification_counter_is_forgotten() -> None:
    layer, _ = make(ip_idents=2)

    def ident(last: int) -> int:
        (packet,) = layer.build(GATEWAY, bytes([10, 0, 3, last]), 17, bytes(8), dont_fragment=False)
        return ipv4.parse(packet.tobytes()).ident

    kept = ident(1)
    for other in range(2, 40):
        ident(other)
        assert ident(1) == (kept := kept + 1 & 0xFFFF)


@pytest.mark.parametrize(
    "arguments",
    [
        {"src": bytes(16)},
        {"dst": bytes(16)},
        {"src": bytes(3), "dst": bytes(3)},
        {"hop_limit": 256},
        {"traffic_class": -1},
        {"src": bytes(16), "dst": bytes(16), "hop_limit": 256},
    ],
)
def test_build_refuses_what_fits_no_header(arguments: dict[str, Any]) -> None:
    layer, _ = make()
    values: dict[str, Any] = {"src": GATEWAY, "dst": GUEST, "protocol": 6, "l4": bytes(20)}
    with pytest.raises(LocalError):
        layer.build(**values | arguments)


def test_an_mtu_that_no_link_has_is_refused() -> None:
    with pytest.raises(LocalError):
        make(67)


def test_scapy_reads_our_fragments() -> None:
    layer, _ = make(576)
    body = random.Random(3).randbytes(1400)
    message = bytes(ICMP(type=8, id=4, seq=5) / Raw(body))
    packets = layer.build(GATEWAY, GUEST, 1, message, dont_fragment=False)
    seen = [IP(packet.tobytes()) for packet in packets]
    assert [(p.frag, str(p.flags)) for p in seen] == [(0, "MF"), (69, "MF"), (138, "")]
    assert len({p.id for p in seen}) == 1
    assert b"".join(bytes(p.payload) for p in seen) == message
