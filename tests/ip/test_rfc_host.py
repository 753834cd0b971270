"""The stack as an IP host for its own addresses and as a router for all others (RFC 1122, RFC 1812)."""

from __future__ import annotations

import random

import pytest

from tunstack.errors import DropCounters, DropReason
from tunstack.ip import icmp, ipv4, udp
from tunstack.ip.addresses import Prefix, parse_address
from tunstack.ip.header import IpHeader
from tunstack.ip.icmp import EchoReply, EchoRequest, IcmpError, IcmpErrorKind
from tunstack.ip.layer import IpLayer
from tunstack.limits import Limits
from tunstack.packet import Packet
from tunstack.stack import Stack
from tunstack.testing.packets import formats

from . import wire

GATEWAY = parse_address("10.0.2.2")
GUEST = parse_address("10.0.2.100")
OUTSIDE = parse_address("192.0.2.1")
BROADCAST = parse_address("10.0.2.255")
ETHERNET = bytes.fromhex("020000000002 020000000064 0800".replace(" ", ""))


def make(l2: bool = False, **limits: int) -> Stack:
    return Stack(
        mac=bytes.fromhex("020000000002"),
        mtu=1500,
        prefixes=[Prefix.parse("10.0.2.0/24")],
        own_addresses=[GATEWAY],
        rng=random.Random(1),
        l2=l2,
        limits=Limits(**limits),
    )


def answers(stack: Stack, packet: bytes) -> list[IpHeader]:
    """What the stack sends at once when `packet` comes."""
    stack.receive(Packet(memoryview(bytearray(packet))), 1.0)
    found = [ipv4.parse(sent.tobytes(), 0) for sent in stack.poll_transmit(1.0)]
    assert all(header.hop_limit > 0 for header in found), "a TTL of zero is never sent (RFC 1122 3.2.1.7)"
    return found


def error(stack: Stack, packet: bytes) -> IcmpError:
    (header,) = answers(stack, packet)
    assert (header.src, header.dst) == (GATEWAY, GUEST)
    message = icmp.parse(header)
    assert isinstance(message, IcmpError)
    return message


def datagram(dst: bytes = OUTSIDE, **fields: int) -> bytes:
    return wire.ipv4(wire.udp(GUEST, 5000, dst, 53, b"hello"), src=GUEST, dst=dst, protocol=17, **fields)


@pytest.mark.rfc("1812", "5.3.1")
@pytest.mark.rfc("1122", "3.2.1.7")
@pytest.mark.parametrize("ttl", [0, 1])
def test_a_ttl_that_runs_out_is_reported_and_goes_no_further(ttl: int) -> None:
    stack = make()
    message = error(stack, datagram(ttl=ttl))
    assert message.kind is IcmpErrorKind.TTL_EXCEEDED
    assert (message.quoted_src, message.quoted_src_port) == (GUEST, 5000)
    assert (message.quoted_dst, message.quoted_dst_port) == (OUTSIDE, 53)
    assert stack.poll_events() == []
    assert stack.drops.as_dict() == {"ttl-exceeded": 1}


@pytest.mark.rfc("1812", "5.3.1")
@pytest.mark.parametrize("ttl", [2, 64, 255])
def test_a_ttl_falls_by_one(ttl: int) -> None:
    stack = make()
    assert answers(stack, datagram(ttl=ttl)) == []
    (event,) = stack.poll_events()
    assert isinstance(event, udp.UdpDatagram) and event.hop_limit == ttl - 1


@pytest.mark.rfc("1812", "4.2.2.9")
@pytest.mark.rfc("1122", "3.2.1.7")
@pytest.mark.parametrize("ttl", [0, 1])
def test_for_an_own_address_the_ttl_does_not_matter(ttl: int) -> None:
    stack = make()
    assert answers(stack, datagram(GATEWAY, ttl=ttl)) == []
    assert len(stack.poll_events()) == 1


@pytest.mark.rfc("1122", "3.2.2.1 protocol")
@pytest.mark.parametrize("protocol", [0, 2, 41, 47, 58, 132, 255])
@pytest.mark.parametrize("dst", [GATEWAY, OUTSIDE])
def test_an_unknown_protocol_is_reported(protocol: int, dst: bytes) -> None:
    stack = make()
    message = error(stack, wire.ipv4(bytes(20), src=GUEST, dst=dst, protocol=protocol))
    assert message.kind is IcmpErrorKind.PROTOCOL_UNREACHABLE
    assert (message.protocol, message.quoted_dst) == (protocol, dst)


@pytest.mark.rfc("1122", "3.2.2 no error about")
@pytest.mark.parametrize("dst", ["10.0.2.255", "255.255.255.255", "224.0.0.1"])
def test_no_error_about_what_went_to_many(dst: str) -> None:
    stack = make()
    packet = wire.ipv4(bytes(20), src=GUEST, dst=parse_address(dst), protocol=99, ttl=1)
    assert answers(stack, packet) == []


def echo(dst: bytes, payload: bytes = b"abc", **fields: int) -> bytes:
    message = wire.with_checksum(formats.ECHO, type=8, code=0, ident=7, seq=9, payload=payload)
    return wire.ipv4(message, src=GUEST, dst=dst, protocol=1, **fields)


@pytest.mark.rfc("1122", "3.2.2.6 echo")
@pytest.mark.rfc("3168", "5")
@pytest.mark.parametrize("size", [0, 1, 56, 1472, 4000])
def test_echo_comes_back_from_the_address_that_was_asked_with_its_data(size: int) -> None:
    stack = make()
    payload = random.Random(size).randbytes(size)
    packet = echo(GATEWAY, payload, ecn=3, dscp=10)
    stack.receive(Packet(memoryview(bytearray(packet))), 1.0)
    back = IpLayer(1500, Limits(), DropCounters(), random.Random(2))
    headers = [back.receive(sent.tobytes(), 0, 1.0) for sent in stack.poll_transmit(1.0)]
    (header,) = filter(None, headers)
    assert (header.src, header.dst) == (GATEWAY, GUEST)
    assert header.traffic_class == 10 << 2, "no ECN transport: the mark is not echoed"
    reply = icmp.parse(header)
    assert isinstance(reply, EchoReply)
    assert (reply.ident, reply.seq, bytes(reply.payload)) == (7, 9, payload)


@pytest.mark.rfc("1122", "3.2.2.6 echo to many")
@pytest.mark.parametrize("dst", ["10.0.2.255", "255.255.255.255", "224.0.0.1"])
def test_echo_to_many_is_left_to_others(dst: str) -> None:
    stack = make()
    assert answers(stack, echo(parse_address(dst))) == []
    assert all(isinstance(event, EchoRequest) for event in stack.poll_events())


@pytest.mark.rfc("1122", "3.2.2.2")
@pytest.mark.rfc("1122", "3.2.2 unknown type")
@pytest.mark.parametrize("kind", [1, 2, 4, 5, 7, 9, 10, 13, 15, 17, 30, 200, 255])
def test_redirects_and_unknown_types_are_dropped_in_silence(kind: int) -> None:
    stack = make()
    quote = wire.ipv4(bytes(8), src=GATEWAY, dst=GUEST, protocol=6)
    body = bytes([kind, 0, 0, 0]) + OUTSIDE + quote
    body = body[:2] + wire.checksum(body).to_bytes(2, "big") + body[4:]
    assert answers(stack, wire.ipv4(body, src=GUEST, dst=GATEWAY, protocol=1)) == []
    assert stack.poll_events() == []
    assert stack.drops.as_dict() == {"icmp-ignored": 1}


@pytest.mark.rfc("1122", "3.3.6 link broadcast")
@pytest.mark.parametrize("group", [b"\xff" * 6, bytes.fromhex("01005e000001")])
def test_what_came_to_all_for_one_is_dropped(group: bytes) -> None:
    stack = make(l2=True)
    for dst in (OUTSIDE, GUEST, GATEWAY):
        stack.receive(Packet(memoryview(bytearray(group + ETHERNET[6:] + datagram(dst)))), 1.0)
    assert stack.poll_events() == [] and stack.poll_transmit(1.0) == []
    assert stack.drops[DropReason.BAD_DESTINATION] == 3
    stack.receive(Packet(memoryview(bytearray(group + ETHERNET[6:] + datagram(BROADCAST)))), 1.0)
    stack.receive(Packet(memoryview(bytearray(ETHERNET + datagram(OUTSIDE)))), 1.0)
    assert len(stack.poll_events()) == 2


@pytest.mark.rfc("1812", "4.3.2.8")
def test_errors_are_limited_in_rate() -> None:
    stack = make(icmp_errors_burst=10)
    sent = sum(len(answers(stack, datagram(ttl=1))) for _ in range(100))
    assert sent == 10
    assert stack.drops[DropReason.ICMP_RATE_LIMIT] == 90


@pytest.mark.rfc("6864", "4.3 retransmission")
def test_a_copy_of_a_datagram_has_another_identification() -> None:
    layer = IpLayer(1500, Limits(), DropCounters(), random.Random(1))
    idents = []
    for _ in range(50):
        (packet,) = layer.build(GATEWAY, GUEST, 17, bytes(8), (b"the same",), dont_fragment=False)
        idents.append(ipv4.parse(packet.tobytes(), 0).ident)
    assert len(set(idents)) == 50


@pytest.mark.rfc("1122", "4.1.3.4 checksum")
def test_udp_leaves_with_a_checksum() -> None:
    stack = make()
    stack.send_udp(GATEWAY, 53, GUEST, 5000, b"answer", 1.0)
    (packet,) = stack.poll_transmit(1.0)
    from tunstack import native

    whole = native.complete_checksum(packet).tobytes()
    assert whole[20:] == wire.udp(GATEWAY, 53, GUEST, 5000, b"answer")
    assert whole[26:28] != b"\0\0"
