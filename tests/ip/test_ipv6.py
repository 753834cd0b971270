"""IPv6 headers: totality, agreement with the description and with scapy, and the layer that uses them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, defragment6
from scapy.packet import Raw

from tunstack.errors import BadPacket, DropCounters, DropReason, LocalError
from tunstack.ip import ipv6, udp
from tunstack.ip.addresses import parse_address
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.ip.layer import IpLayer
from tunstack.limits import Limits
from tunstack.packet import Checksum, GsoType
from tunstack.testing.packets import formats

from . import wire

GATEWAY = parse_address("fd00::2")
GUEST = parse_address("fd00::100")
OUTSIDE = parse_address("2001:db8::1")

byte = st.integers(0, 255)
address = st.binary(min_size=16, max_size=16)
protocols = byte.filter(lambda number: number not in ipv6.EXTENSION_HEADERS)


def make(mtu: int = 1500, **limits: Any) -> tuple[IpLayer, DropCounters]:
    drops = DropCounters()
    return IpLayer(mtu, Limits(**limits), drops, random.Random(7)), drops


# The header.


@given(st.binary(max_size=80), st.integers(0, 20), st.booleans())
def test_any_bytes_are_a_header_or_bad_packet(data: bytes, offset: int, version: bool) -> None:
    if version:
        data = data[:offset] + b"\x60" + data[offset + 1 :]
    for parse in (ipv6.parse, ipv6.parse_quote):
        try:
            header = parse(data, offset)
        except BadPacket as error:
            assert error.reason in (
                DropReason.IP_TRUNCATED,
                DropReason.BAD_IP_VERSION,
                DropReason.EXTENSION_HEADER,
                DropReason.BAD_FRAGMENT,
            )
        else:
            assert len(header.packet) == header.header_length + len(header.payload) <= len(data) - offset


@pytest.mark.rfc("8200", "3 header")
@given(address, address, protocols, byte, byte, st.integers(0, 2**20 - 1), st.binary(max_size=60), byte)
def test_parse_agrees_with_the_description(
    src: bytes, dst: bytes, protocol: int, hops: int, service: int, flow: int, payload: bytes, padding: int
) -> None:
    packet = wire.ipv6(
        payload, src=src, dst=dst, next_header=protocol, hop_limit=hops, traffic_class=service, flow=flow
    )
    for header in (
        ipv6.parse(bytes(3) + packet + bytes(padding), 3),
        ipv6.parse_quote(packet + bytes(padding)),
    ):
        assert (header.version, header.src, header.dst, header.protocol) == (6, src, dst, protocol)
        assert (header.hop_limit, header.traffic_class, header.header_length) == (hops, service, 40)
        assert (header.total_length, header.payload, header.packet) == (len(packet), payload, packet)
        assert (header.dont_fragment, header.more_fragments, header.fragment_offset) == (True, False, 0)
        assert (header.ident, header.options) == (0, False)


@given(address, address, byte, byte, byte, st.integers(0, 65535))
def test_emit_agrees_with_the_description(
    src: bytes, dst: bytes, protocol: int, hops: int, service: int, size: int
) -> None:
    header = ipv6.emit(src, dst, protocol, size, hop_limit=hops, traffic_class=service)
    assert header == wire.ipv6(
        src=src,
        dst=dst,
        next_header=protocol,
        hop_limit=hops,
        traffic_class=service,
        payload_length=size,
    )


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", DropReason.IP_TRUNCATED),
        (wire.ipv6()[:39], DropReason.IP_TRUNCATED),
        (wire.ipv6(b"x", payload_length=2), DropReason.IP_TRUNCATED),
        (wire.ipv6(version=4), DropReason.BAD_IP_VERSION),
        *(
            (wire.ipv6(bytes(8), next_header=n), DropReason.EXTENSION_HEADER)
            for n in (0, 43, 44, 51, 60, 135)
        ),
    ],
)
def test_what_is_refused(packet: bytes, reason: DropReason) -> None:
    with pytest.raises(BadPacket) as caught:
        ipv6.parse(packet)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "arguments",
    [
        {"payload_length": -1},
        {"payload_length": 65536},
        {"hop_limit": 256},
        {"traffic_class": -1},
        {"src": b""},
    ],
)
def test_emit_refuses_what_does_not_fit(arguments: dict[str, Any]) -> None:
    values: dict[str, Any] = {"src": GATEWAY, "dst": GUEST, "protocol": 6, "payload_length": 0}
    with pytest.raises(LocalError):
        ipv6.emit(**values | arguments)


@given(st.integers(0, 0x1FFF), st.booleans(), st.integers(0, 2**32 - 1), st.binary(max_size=20), byte)
def test_a_quote_is_looked_through_a_fragment_header(
    offset: int, more: bool, ident: int, l4: bytes, cut: int
) -> None:
    fragment = formats.FRAGMENT.build(
        {
            "next_header": 17,
            "reserved": 0,
            "place": {"offset": offset, "reserved": 0, "more": more},
            "ident": ident,
        }
    )
    quote = wire.ipv6(fragment + l4, next_header=44)[: 48 + cut]
    header = ipv6.parse_quote(quote)
    assert (header.protocol, header.ident, header.fragment_offset) == (17, ident, offset * 8)
    assert (header.more_fragments, header.payload, header.header_length) == (more, l4[:cut], 48)
    with pytest.raises(BadPacket):
        ipv6.parse_quote(quote[:47])


def test_scapy_agrees() -> None:
    theirs = bytes(
        IPv6(src="fd00::100", dst="2001:db8::1", hlim=3, tc=9, fl=77) / UDP(sport=5, dport=6) / b"xy"
    )
    header = ipv6.parse(theirs)
    assert (header.src, header.dst, header.protocol) == (GUEST, OUTSIDE, 17)
    assert (header.hop_limit, header.traffic_class) == (3, 9)
    assert udp.parse(header).payload == b"xy"
    assert ipv6.emit(GUEST, OUTSIDE, 17, 10, hop_limit=3, traffic_class=9) == bytes(
        IPv6(src="fd00::100", dst="2001:db8::1", hlim=3, tc=9, nh=17, plen=10)
    )


# The layer.


@given(st.binary(max_size=80), st.integers(0, 20))
def test_any_bytes_are_received_or_counted(data: bytes, offset: int) -> None:
    layer, drops = make()
    data = data[:offset] + b"\x60" + data[offset + 1 :]
    header = layer.receive(data, offset, 0.0)
    assert (header is not None) + drops.total == 1


@pytest.mark.rfc("4291", "2.5.2, 2.5.3, 2.7 source address")
@pytest.mark.parametrize(
    ("src", "dst", "protocol", "reason"),
    [
        ("fd00::100", "2001:db8::1", 17, None),
        ("fe80::1", "fd00::2", 17, None),
        ("::2", "fd00::2", 17, None),
        ("::", "ff02::1:ff00:2", 58, None),
        ("::", "ff02::1:ff00:2", 17, "bad-source"),
        ("::", "fd00::2", 58, "bad-source"),
        ("::1", "fd00::2", 17, "bad-source"),
        ("::1", "::1", 17, "bad-source"),
        ("ff02::1", "fd00::2", 17, "bad-source"),
        ("ff0e::1", "ff02::1", 58, "bad-source"),
        ("::ffff:10.0.2.100", "fd00::2", 17, "bad-source"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", 6, "bad-source"),
    ],
)
def test_sources(src: str, dst: str, protocol: int, reason: str | None) -> None:
    layer, drops = make()
    packet = wire.ipv6(bytes(8), src=parse_address(src), dst=parse_address(dst), next_header=protocol)
    assert (layer.receive(packet, 0, 0.0) is not None) == (reason is None)
    assert drops.as_dict() == ({reason: 1} if reason else {})


@given(
    address, address, byte, st.binary(max_size=60), st.lists(st.binary(max_size=300), max_size=4), byte, byte
)
def test_a_packet_agrees_with_the_description(
    src: bytes, dst: bytes, protocol: int, l4: bytes, views: list[bytes], hops: int, service: int
) -> None:
    layer, _ = make()
    for dont_fragment in (True, False):  # the second one comes from the kept template
        (packet,) = layer.build(
            src,
            dst,
            protocol,
            l4,
            [memoryview(view) for view in views],
            hop_limit=hops,
            traffic_class=service,
            dont_fragment=dont_fragment,
        )
        assert packet.tobytes() == wire.ipv6(
            l4 + b"".join(views),
            src=src,
            dst=dst,
            next_header=protocol,
            hop_limit=hops,
            traffic_class=service,
        )
        assert packet.head == packet.tobytes()[: 40 + len(l4)] and packet.checksum == Checksum.UNKNOWN


def test_a_train_is_not_cut() -> None:
    layer, drops = make()
    views = (memoryview(bytes(60000)),)
    (train,) = layer.build(
        GATEWAY, GUEST, 6, bytes(32), views, gso_size=1428, gso_type=GsoType.TCPV6, csum_offset=16
    )
    assert (train.gso_size, train.gso_type, train.csum_start, train.csum_offset) == (1428, 4, 40, 16)
    assert ipv6.parse(train.tobytes()).total_length == 60072
    assert drops.total == 0


@pytest.mark.rfc("8200", "4.5 fragments of the source")
@given(st.integers(0, 5000), st.integers(1280, 1500), st.integers(0, 2))
def test_what_is_too_large_is_cut_with_its_checksum_complete(size: int, mtu: int, views: int) -> None:
    """Scapy puts it together again."""
    layer, drops = make(mtu)
    body = random.Random(size).randbytes(size)
    payload = wire.in_views(body, views)
    l4 = udp.emit(GATEWAY, 53, GUEST, 4000, len(body))
    packets = layer.build(
        GATEWAY, GUEST, 17, l4, payload, dont_fragment=False, csum_offset=6, hop_limit=3, traffic_class=8
    )
    assert drops.total == 0 and (len(packets) > 1) == (48 + len(body) > mtu)
    if len(packets) == 1:
        assert packets[0].checksum == Checksum.PARTIAL
        return
    pieces = [IPv6(packet.tobytes()) for packet in packets]
    assert all(len(packet) <= mtu and packet.checksum == Checksum.UNKNOWN for packet in packets)
    assert {(p.hlim, p.tc, p.nh) for p in pieces} == {(3, 8, 44)}
    assert [p[IPv6ExtHdrFragment].m for p in pieces] == [1] * (len(pieces) - 1) + [0]
    assert len({p[IPv6ExtHdrFragment].id for p in pieces}) == 1
    whole = defragment6(pieces)  # type: ignore[no-untyped-call]
    assert bytes(whole.payload) == wire.udp(GATEWAY, 53, GUEST, 4000, body)


# Fragments of others.


def fragment(
    offset: int, payload: bytes, *, more: bool, protocol: int = 17, ident: int = 7, traffic_class: int = 0
) -> bytes:
    """A packet with a fragment header; `offset` in bytes."""
    place = {"offset": offset // 8, "reserved": 0, "more": more}
    head = formats.FRAGMENT.build({"next_header": protocol, "reserved": 0, "place": place, "ident": ident})
    return wire.ipv6(head + payload, src=GUEST, dst=OUTSIDE, next_header=44, traffic_class=traffic_class)


def datagram(body: bytes) -> bytes:
    return wire.udp(GUEST, 1000, OUTSIDE, 53, body)


@pytest.mark.rfc("8200", "4.5 reassembly")
@given(st.integers(1500, 9000), st.integers(1280, 1500), st.randoms(use_true_random=False))
def test_what_is_cut_comes_back_whole_in_any_order(size: int, mtu: int, rng: random.Random) -> None:
    body = random.Random(size).randbytes(size)
    sender, _ = make(mtu)
    l4 = udp.emit(GUEST, 1000, OUTSIDE, 53, len(body))
    packets = sender.build(
        GUEST, OUTSIDE, 17, l4, (body,), dont_fragment=False, csum_offset=6, hop_limit=3, traffic_class=8
    )
    receiver, drops = make()
    rng.shuffle(packets)
    headers = [receiver.receive(packet.tobytes(), 0, 0.0) for packet in packets]
    assert headers[:-1] == [None] * (len(packets) - 1)
    header = headers[-1]
    assert header is not None and drops.total == 0
    assert (header.src, header.dst, header.protocol, header.hop_limit) == (GUEST, OUTSIDE, 17, 3)
    assert (header.traffic_class, header.header_length, header.ident) == (8, 40, 0)
    assert header.payload == datagram(body) and not header.more_fragments
    assert receiver.next_timeout() is None


@pytest.mark.rfc("6946", "4 atomic fragments")
def test_a_fragment_that_is_whole_disturbs_no_others() -> None:
    layer, drops = make()
    whole = datagram(b"x" * 40)
    assert layer.receive(fragment(0, whole[:24], more=True), 0, 0.0) is None
    atomic = layer.receive(fragment(0, datagram(b"atomic"), more=False), 0, 0.0)
    assert atomic is not None and atomic.payload == datagram(b"atomic")
    header = layer.receive(fragment(24, whole[24:], more=False), 0, 0.0)
    assert header is not None and header.payload == whole and drops.total == 0


@pytest.mark.rfc("7112", "5 first fragment")
@pytest.mark.parametrize(("protocol", "least"), [(17, 8), (6, 24), (58, 8)])
def test_a_first_fragment_holds_the_header_of_its_protocol(protocol: int, least: int) -> None:
    layer, drops = make()
    if least > 8:
        assert layer.receive(fragment(0, bytes(least - 8), more=True, protocol=protocol), 0, 0.0) is None
        assert drops.as_dict() == {"bad-fragment": 1}
    assert layer.receive(fragment(0, bytes(least), more=True, protocol=protocol), 0, 0.0) is None
    assert drops.total == (least > 8)
    assert layer.next_timeout() is not None


@pytest.mark.rfc("6980", "5 neighbour discovery")
@pytest.mark.parametrize("kind", [133, 134, 135, 136, 137])
@pytest.mark.parametrize("more", [False, True])
def test_neighbour_discovery_does_not_come_in_fragments(kind: int, more: bool) -> None:
    layer, drops = make()
    message = bytes((kind,)) + bytes(23)
    assert layer.receive(fragment(0, message, more=more, protocol=58), 0, 0.0) is None
    assert drops.as_dict() == {"bad-fragment": 1} and layer.next_timeout() is None


@pytest.mark.rfc("8200", "4.5 reassembly")
def test_the_first_fragment_says_which_protocol_it_is() -> None:
    layer, _ = make()
    whole = datagram(b"x" * 40)
    assert layer.receive(fragment(24, whole[24:], more=False, protocol=6), 0, 0.0) is None
    header = layer.receive(fragment(0, whole[:24], more=True), 0, 0.0)
    assert header is not None and header.protocol == 17 and header.payload == whole


@pytest.mark.rfc("5722", "4 overlap")
def test_fragments_that_overlap_are_an_end_of_their_datagram() -> None:
    layer, drops = make()
    whole = datagram(b"x" * 40)
    for offset, piece, more in ((0, whole[:24], True), (16, whole[16:32], True), (24, whole[24:], False)):
        assert layer.receive(fragment(offset, piece, more=more), 0, 0.0) is None
    assert drops.as_dict() == {"fragment-overlap": 3}


@pytest.mark.rfc("3168", "5.3")
def test_a_mark_on_one_fragment_is_one_on_the_datagram() -> None:
    layer, _ = make()
    whole = datagram(b"x" * 40)
    assert layer.receive(fragment(0, whole[:24], more=True, traffic_class=2), 0, 0.0) is None
    header = layer.receive(fragment(24, whole[24:], more=False, traffic_class=3), 0, 0.0)
    assert header is not None and header.traffic_class == 3


@pytest.mark.rfc("8200", "4.5 reassembly")
def test_a_datagram_that_is_too_long_is_dropped() -> None:
    layer, drops = make()
    for offset in range(0, 65528, 1024):
        piece = bytes(min(1024, 65528 - offset))
        assert layer.receive(fragment(offset, piece, more=True), 0, 0.0) is None
    assert layer.receive(fragment(65528, bytes(8), more=False), 0, 0.0) is None
    assert drops.as_dict() == {"bad-fragment": 1}


@pytest.mark.rfc("8200", "4.5 reassembly time exceeded")
def test_a_datagram_that_is_never_whole_leaves_a_quote_of_its_first_fragment() -> None:
    layer, drops = make()
    first = fragment(0, datagram(b"x" * 40)[:24], more=True)
    layer.receive(first, 0, 0.0)
    layer.handle_timeout(60.0)
    assert layer.poll_errors() == [(first, IcmpErrorKind.REASSEMBLY_TIMEOUT)]
    assert drops.as_dict() == {"fragment-timeout": 1}


@pytest.mark.rfc("7739", "identification")
def test_identifications_of_cut_datagrams_are_unpredictable_and_do_not_repeat() -> None:
    layer, _ = make()

    def ident(dst: bytes) -> int:
        packet = layer.build(GATEWAY, dst, 17, bytes(1500), dont_fragment=False)[0]
        return int.from_bytes(packet.tobytes()[44:48], "big")

    first = ident(GUEST)
    assert [ident(GUEST) for _ in range(5)] == [(first + n) % 2**32 for n in range(1, 6)]
    starts = {ident(parse_address(f"fd00::{n:x}")) - first for n in range(200)}
    assert len(starts) == 200
    assert max(starts) - min(starts) > 1 << 28


def test_what_is_too_large_and_may_not_be_cut_is_counted() -> None:
    layer, drops = make()
    assert layer.build(GATEWAY, GUEST, 17, bytes(8), (bytes(1453),)) == []
    assert drops.as_dict() == {"packet-too-big": 1}
    assert len(layer.build(GATEWAY, GUEST, 17, bytes(8), (bytes(1452),))) == 1
    assert layer.build(GATEWAY, GUEST, 17, bytes(8), (bytes(65528),), dont_fragment=False) == []
    assert drops[DropReason.PACKET_TOO_BIG] == 2
    assert len(layer.build(GATEWAY, GUEST, 17, bytes(8), (bytes(65527),), dont_fragment=False)) == 46
    with pytest.raises(LocalError):
        layer.build(GATEWAY, GUEST, 6, bytes(32), (bytes(65500),), gso_size=1428, gso_type=GsoType.TCPV6)


@pytest.mark.rfc("8200", "5 minimum MTU")
def test_on_a_link_below_1280_nothing_is_cut_for_ipv6() -> None:
    layer, drops = make(1279)
    assert layer.build(GATEWAY, GUEST, 17, bytes(1300), dont_fragment=False) == []
    assert drops.as_dict() == {"packet-too-big": 1}


def test_the_fragmenter_refuses_what_cannot_be_cut() -> None:
    template = ipv6.HeaderTemplate(GATEWAY, GUEST, 17, 64, 0)
    for payload, mtu in ((bytes(10), 1279), (bytes(65536), 1500)):
        with pytest.raises(LocalError):
            ipv6.fragment(template, payload, mtu, 1)


def test_scapy_sees_the_raw_payload() -> None:
    layer, _ = make()
    (packet,) = layer.build(GATEWAY, GUEST, 17, udp.emit(GATEWAY, 1, GUEST, 2, 3), (b"abc",))
    seen = IPv6(packet.tobytes())
    assert (seen.src, seen.dst, seen.plen, seen.hlim, seen.fl) == ("fd00::2", "fd00::100", 11, 64, 0)
    assert bytes(seen[Raw]) == b"abc"
