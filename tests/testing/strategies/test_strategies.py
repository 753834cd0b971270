"""Strategies: what is called right is right, what is called wrong is wrong in one point, and all shrinks."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from tunstack.testing.packets import (
    SYN,
    Arp,
    Ethernet,
    Icmp,
    Ipv4,
    Ipv6,
    Layer,
    Raw,
    Tcp,
    Udp,
    dissect,
    emit,
)
from tunstack.testing.packets.layers import FRAGMENT
from tunstack.testing.peer import StackPeer, Starters
from tunstack.testing.peer.conversation import ADDRESSES, PEER_PORT, STACK_PORT
from tunstack.testing.strategies import (
    Fault,
    Fragmented,
    NearlyRight,
    Shot,
    addresses,
    damaged,
    echoes,
    fragmented,
    frames,
    hostile_packets,
    hostile_segments,
    icmp_errors,
    ipv4_addresses,
    ipv6_addresses,
    macs,
    nearly_right_segments,
    neighbour_messages,
    offsets,
    packets,
    ports,
    segments,
    shots,
    tcp_options,
    udp_datagrams,
)

QUICK = settings(
    max_examples=2000,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)
FIRST, SECOND = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))


@given(packets())
def test_right_packets_are_right(packet: tuple[Layer, ...]) -> None:
    frame = dissect(emit(*packet))
    assert frame.layers == packet and not frame.problems and not frame.trailer


@given(frames())
def test_right_frames_are_right(frame: tuple[Layer, ...]) -> None:
    found = dissect(emit(*frame), l2=True)
    assert found.layers == frame and not found.problems


@given(addresses())
def test_addresses_are_of_hosts(address: bytes) -> None:
    host = ipaddress.ip_address(address)
    assert not (host.is_multicast or host.is_unspecified or host.is_loopback)
    assert address != b"\xff" * 4


@given(ipv4_addresses("10.0.2.0/29"), ipv6_addresses("fd00::/126"), macs(), ports())
def test_addresses_of_a_network(four: bytes, six: bytes, mac: bytes, port: int) -> None:
    assert 1 <= four[3] <= 6 and four[:3] == bytes((10, 0, 2))
    assert 1 <= six[15] <= 3 and six[:15] == b"\xfd" + bytes(14)
    assert len(mac) == 6 and not mac[0] & 1
    assert 1 <= port <= 65535


@given(segments())
def test_right_segments(packet: tuple[Layer, ...]) -> None:
    tcp = packet[1]
    assert isinstance(tcp, Tcp)
    assert not (tcp.flags & SYN and tcp.flags & 5), "SYN with FIN or RST"
    assert tcp.ack == 0 or tcp.flags & 16
    kinds = [option.kind for option in tcp.options if option.kind != 1]
    assert len(kinds) == len(set(kinds))
    assert tcp.flags & SYN or not {2, 3, 4} & set(kinds)


@given(icmp_errors())
def test_errors_go_back_to_whom_they_quote(packet: tuple[Layer, ...]) -> None:
    frame = dissect(emit(*packet))
    quote = frame.quote
    assert quote is not None and quote.ip is not None and frame.ip is not None
    assert (quote.ip.src, quote.ip.dst) == (frame.ip.dst, frame.ip.src)
    assert quote.udp is not None
    assert not isinstance(frame.ip, Ipv6) or len(frame.raw) <= 1280


@given(neighbour_messages())
def test_neighbour_messages(packet: tuple[Layer, ...]) -> None:
    ip, icmp = packet[0], packet[1]
    assert isinstance(ip, Ipv6) and isinstance(icmp, Icmp)
    assert ip.hop_limit == 255 and 133 <= icmp.type <= 136


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name)
def test_nearly_right_is_wrong_in_one_point(fault: Fault) -> None:
    @given(nearly_right_segments(faults=[fault]))
    @settings(max_examples=30)
    def check(nearly: NearlyRight) -> None:
        assert nearly.fault is fault
        assert dissect(emit(*nearly.right)).problems == ()
        assert nearly.raw != emit(*nearly.right)
        found = dissect(nearly.raw).problems
        assert found == (() if fault.problem is None else (fault.problem,))

    check()


@pytest.mark.parametrize("family", [4, 6])
def test_no_packet_that_cannot_be_taken_apart_is_answered(family: int) -> None:
    local, remote = ADDRESSES[family]
    conversation = {"pair": (remote, local), "src_port": PEER_PORT, "dst_port": STACK_PORT}
    broken = [fault for fault in Fault if fault.problem is not None and fault is not Fault.IP_CHECKSUM]

    @given(nearly_right_segments(faults=broken, **conversation))
    def check(nearly: NearlyRight) -> None:
        if nearly.fault in (Fault.OPTION_LENGTH, Fault.OPTION_OVERRUN):
            return  # what comes before the bad option counts
        peer = Starters(StackPeer).established(family=family)
        peer.send_raw(nearly.raw)
        peer.expect_nothing()
        assert sum(peer.drops().values()) == 1

    check()


def units(piece: bytes) -> tuple[int, bytes]:
    """Where a fragment belongs (bytes), and what it carries."""
    frame = dissect(piece)
    ip = frame.ip
    if isinstance(ip, Ipv4):
        return 8 * ip.offset, piece[4 * (piece[0] & 15) :]
    assert ip is not None
    (header,) = [extension for extension in ip.extensions if extension.kind == FRAGMENT]
    length = 40 + sum(2 + len(extension.data) for extension in ip.extensions)
    return int.from_bytes(header.data[:2], "big") & ~7, piece[length:]


LONG = udp_datagrams(least=60, most=200)


@given(fragmented(LONG), fragmented(LONG, overlapping=True), fragmented(LONG, shuffled=False, most=2))
def test_fragments_are_the_datagram(whole: Fragmented, overlapping: Fragmented, two: Fragmented) -> None:
    for found in (whole, overlapping, two):
        assert len(found.pieces) >= 2
        places: dict[int, set[int]] = {}
        for piece in found.pieces:
            assert not dissect(piece).problems
            start, data = units(piece)
            for n, byte in enumerate(data, start):
                places.setdefault(n, set()).add(byte)
        size = len(places)
        body = found.datagram[len(found.datagram) - size :]
        assert sorted(places) == list(range(size))
        assert all(body[n] in values for n, values in places.items())
        assert found.contradicting == any(len(values) > 1 for values in places.values())
    assert not whole.overlapping and len(two.pieces) == 2
    assert units(two.pieces[0])[0] == 0


@given(hostile_packets() | hostile_segments() | damaged(packets()))
def test_hostile_packets_are_bytes_that_can_be_looked_at(raw: bytes) -> None:
    assert dissect(raw).emit() == raw


@given(st.lists(shots(receive_window=5000, in_flight=700), max_size=20))
def test_shots_at_a_live_connection_are_survived(salvo: list[Shot]) -> None:
    peer = Starters(StackPeer).established()
    peer.write(bytes(700))
    for shot in salvo:
        if peer.conn.closed:
            break
        hot = peer.conn.hot
        aim = shot.aim(hot.rcv_nxt - peer.iss, hot.snd_una - (peer.stack_iss or 0))
        peer.send(**aim, data=bytes(shot.size))
        assert len(peer.take()) < 20


# Shrinking: the least example is an ordinary one.


def least(strategy: st.SearchStrategy[Any], wanted: Callable[[Any], bool] = lambda value: True) -> Any:
    return find(strategy, wanted, settings=QUICK)


def layer(packet: tuple[Layer, ...], kind: type) -> Any:
    return next((one for one in packet if isinstance(one, kind)), None)


PLAIN = Ipv4(src=FIRST, dst=SECOND)
PLAIN_TCP = Tcp(src_port=1, dst_port=1, flags=16, window=0)


def test_a_segment_shrinks_to_a_plain_ack() -> None:
    assert least(segments()) == (PLAIN, PLAIN_TCP)


def test_what_does_not_matter_shrinks_away() -> None:
    found = least(packets(), lambda packet: (tcp := layer(packet, Tcp)) is not None and tcp.window > 1000)
    assert layer(found, Tcp) == dataclasses.replace(PLAIN_TCP, window=1001)
    assert len(found) == 2
    found = least(packets(), lambda packet: (udp := layer(packet, Udp)) is not None and udp.dst_port == 53)
    assert found[1:] == (Udp(src_port=1, dst_port=53),)
    found = least(segments(), lambda packet: any(o.kind == 2 for o in packet[1].options))
    assert [option.kind for option in found[1].options] == [2] and found[1].flags == SYN
    found = least(segments(), lambda packet: isinstance(packet[0], Ipv6) and packet[0].extensions != ())
    assert len(found[0].extensions) == 1 and len(found[0].extensions[0].data) == 6
    found = least(segments(), lambda packet: isinstance(packet[-1], Raw) and b"x" in packet[-1].data)
    assert found[-1] == Raw(data=b"x")


def test_addresses_shrink_to_those_of_documentation() -> None:
    assert least(addresses()) == FIRST
    assert least(addresses(6)) == bytes.fromhex("20010db8") + bytes(11) + b"\1"
    assert least(macs()) == b"\x02" + bytes(5)
    assert least(ports()) == 1


def test_faults_and_hostile_packets_shrink() -> None:
    found = least(nearly_right_segments(), lambda nearly: nearly.fault is Fault.RESERVED)
    assert layer(dissect(found.raw).layers, Tcp) == dataclasses.replace(PLAIN_TCP, reserved=1)
    assert least(nearly_right_segments()).fault is Fault.CHECKSUM
    assert least(hostile_packets()) == b""
    assert least(hostile_packets(), lambda raw: len(raw) >= 3) == bytes(3)


def test_shots_and_fragments_shrink() -> None:
    assert least(shots()) == Shot()
    far = least(shots(), lambda shot: shot.seq > 100)
    assert far == Shot(seq=far.seq)
    assert least(offsets(5000), lambda offset: offset > 4000) in range(4001, 5001)
    found = least(fragmented(LONG, overlapping=True))
    assert len(found.pieces) == 3 and not found.contradicting
    assert len(least(tcp_options(), lambda options: len(options) == 2)) == 2


def test_messages_shrink() -> None:
    assert least(echoes())[1:] == (Icmp(type=8),)
    ethernet, arp = least(frames())
    assert isinstance(ethernet, Ethernet) and isinstance(arp, Arp) and arp.operation == 1
    assert least(neighbour_messages())[1].type == 135
    ip, icmp, quoted = least(icmp_errors())
    assert isinstance(ip, Ipv4) and icmp == Icmp(type=3) and len(quoted.data) == 28
