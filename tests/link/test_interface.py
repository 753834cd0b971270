"""The link ends: what passes, what ARP says and learns, and two of them back to back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import DropCounters, DropReason
from tunstack.limits import Limits
from tunstack.link import arp, ethernet
from tunstack.link.interface import EthernetLink, IpLink
from tunstack.link.neighbour import NeighbourState, Solicitation
from tunstack.packet import Packet

OUR_MAC = bytes.fromhex("020000000001")
GUEST_MAC = bytes.fromhex("020000000099")
OTHER_MAC = bytes.fromhex("020000000077")
GATEWAY, DNS, GUEST = (bytes([10, 0, 2, n]) for n in (2, 3, 100))


def make() -> tuple[EthernetLink, DropCounters]:
    drops = DropCounters()
    link = EthernetLink(OUR_MAC, 1500, Limits(), drops)
    link.own_addresses.update((GATEWAY, DNS))
    return link, drops


def arp_frame(
    operation: int,
    sender_mac: bytes,
    sender: bytes,
    target: bytes,
    *,
    dst: bytes = ethernet.BROADCAST,
    target_mac: bytes = ethernet.ZERO,
) -> Packet:
    message = arp.ArpMessage(operation, sender_mac, sender, target_mac, target)
    return Packet(memoryview(ethernet.header(dst, GUEST_MAC, 0x0806) + arp.emit(message) + bytes(18)))


def arp_sent(link: EthernetLink) -> list[tuple[bytes, arp.ArpMessage]]:
    """Destination and message of the frames that leave; all must be ARP from our MAC."""
    sent = []
    for packet in link.poll_transmit():
        dst, src, ethertype = ethernet.parse(packet.head)
        assert (src, ethertype) == (link.mac, 0x0806)
        sent.append((dst, arp.parse(packet.head, 14)))
    return sent


@given(
    st.sampled_from([OUR_MAC, GUEST_MAC, ethernet.BROADCAST, b"\x33\x33\0\0\0\1"]) | st.binary(max_size=6),
    st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00"]),
    st.binary(max_size=64),
)
def test_any_frame_is_passed_up_or_consumed_and_dropped_once_at_most(
    dst: bytes, ethertype: bytes, rest: bytes
) -> None:
    link, drops = make()
    frame = dst + GUEST_MAC + ethertype + rest
    offset = link.receive(Packet(memoryview(frame)), 0.0)
    for_us = frame[:6] == OUR_MAC or (frame[:1] and frame[0] & 1)
    up = len(frame) >= 14 and for_us and frame[12:14] in (b"\x08\x00", b"\x86\xdd")
    assert offset == (14 if up else -1)
    assert drops.total <= (0 if up else 1)
    if len(frame) < 14:
        assert drops[DropReason.FRAME_TOO_SHORT] == 1
    elif not for_us:
        assert drops[DropReason.NOT_FOR_US] == 1
    elif frame[12:14] not in (b"\x08\x00", b"\x86\xdd", b"\x08\x06"):
        assert drops[DropReason.UNKNOWN_ETHERTYPE] == 1


@pytest.mark.parametrize("target", [GATEWAY, DNS])
@pytest.mark.parametrize("dst", [ethernet.BROADCAST, OUR_MAC])
def test_a_request_is_answered_and_its_sender_learnt(target: bytes, dst: bytes) -> None:
    link, drops = make()
    assert link.receive(arp_frame(arp.REQUEST, GUEST_MAC, GUEST, target, dst=dst), 0.0) == -1
    assert arp_sent(link) == [
        (GUEST_MAC, arp.ArpMessage(arp.REPLY, OUR_MAC, target, GUEST_MAC, GUEST)),
    ]
    assert link.neighbours.mac(GUEST) == GUEST_MAC
    assert drops.total == 0


def test_a_request_for_somebody_else_is_neither_answered_nor_learnt() -> None:
    link, _ = make()
    link.receive(arp_frame(arp.REQUEST, GUEST_MAC, GUEST, bytes([10, 0, 2, 50])), 0.0)
    assert arp_sent(link) == []
    assert len(link.neighbours) == 0


def test_an_address_probe_is_answered_and_nothing_learnt() -> None:
    """RFC 5227 2.1.1: so a guest notices that it was given our address."""
    link, drops = make()
    link.receive(arp_frame(arp.REQUEST, GUEST_MAC, bytes(4), GATEWAY), 0.0)
    assert arp_sent(link) == [(GUEST_MAC, arp.ArpMessage(arp.REPLY, OUR_MAC, GATEWAY, GUEST_MAC, bytes(4)))]
    assert len(link.neighbours) == 0
    assert drops.total == 0


@pytest.mark.parametrize("operation", [arp.REQUEST, arp.REPLY])
@pytest.mark.parametrize(
    ("mac", "sender"),
    [
        (ethernet.ZERO, GUEST),
        (ethernet.BROADCAST, GUEST),
        (bytes.fromhex("01005e000001"), GUEST),
        (OUR_MAC, GUEST),
        (GUEST_MAC, GATEWAY),
        (GUEST_MAC, DNS),
        (GUEST_MAC, bytes([127, 0, 0, 1])),
        (GUEST_MAC, bytes([0, 0, 0, 1])),
        (GUEST_MAC, bytes([224, 0, 0, 1])),
        (GUEST_MAC, bytes([255, 255, 255, 255])),
    ],
)
def test_broken_arp_is_counted_not_answered_not_learnt(operation: int, mac: bytes, sender: bytes) -> None:
    link, drops = make()
    link.send(Packet(b"waits"), sender, 0.0)  # where it is no group address this asks
    link.poll_transmit()
    link.receive(arp_frame(operation, mac, sender, GATEWAY, dst=OUR_MAC), 0.1)
    assert arp_sent(link) == []
    assert link.neighbours.mac(sender) is None
    assert drops.as_dict() == {"bad-arp": 1}


def test_a_reply_that_nobody_asked_for_creates_nothing() -> None:
    link, _ = make()
    link.receive(arp_frame(arp.REPLY, GUEST_MAC, GUEST, GATEWAY, dst=OUR_MAC), 0.0)
    assert len(link.neighbours) == 0


def test_only_a_reply_to_our_mac_confirms() -> None:
    for dst, state in ((ethernet.BROADCAST, NeighbourState.PROBE), (OUR_MAC, NeighbourState.REACHABLE)):
        link, _ = make()
        link.send(Packet(b"waits"), GUEST, 0.0)
        link.receive(arp_frame(arp.REPLY, GUEST_MAC, GUEST, GATEWAY, dst=dst), 0.1)
        assert link.neighbours.state(GUEST) is state


def test_a_packet_waits_for_the_answer_and_then_goes_framed() -> None:
    link, _ = make()
    head = bytearray(b"E" * 40)
    link.send(Packet(memoryview(head), (b"data",), csum_start=20, csum_offset=16), GUEST, 0.0)
    head[:] = bytes(40)
    question = arp.ArpMessage(arp.REQUEST, OUR_MAC, DNS, ethernet.ZERO, GUEST)
    assert arp_sent(link) in (
        [(ethernet.BROADCAST, question)],
        [(ethernet.BROADCAST, question._replace(sender=GATEWAY))],
    )
    link.receive(arp_frame(arp.REPLY, GUEST_MAC, GUEST, GATEWAY, dst=OUR_MAC), 0.1)
    (packet,) = link.poll_transmit()
    assert packet.tobytes() == ethernet.header(GUEST_MAC, OUR_MAC, 0x0800) + b"E" * 40 + b"data"
    assert (packet.csum_start, packet.csum_offset) == (34, 16)
    assert link.poll_transmit() == []


def test_silence_gives_the_packets_back() -> None:
    link, drops = make()
    link.send(Packet(b"IP packet"), GUEST, 0.0)
    while (due := link.next_timeout()) is not None:
        link.handle_timeout(due)
    assert [packet.tobytes() for packet in link.poll_failures()] == [b"IP packet"]
    assert len(arp_sent(link)) == 3
    assert drops.as_dict() == {"neighbour-unreachable": 1}


def test_the_question_comes_from_the_own_address_nearest_to_the_target() -> None:
    link, _ = make()
    link.own_addresses.update((bytes([192, 168, 127, 1]), b"\xfd" + bytes(15)))
    for target, sender in (
        (bytes([192, 168, 127, 9]), bytes([192, 168, 127, 1])),
        (bytes([10, 0, 2, 0]), GATEWAY),
    ):
        link.send(Packet(b""), target, 0.0)
        ((_, message),) = arp_sent(link)
        assert message.sender == sender


def test_without_an_own_address_the_question_is_a_probe() -> None:
    link = EthernetLink(OUR_MAC, 1500, Limits(), DropCounters())
    link.send(Packet(b""), GUEST, 0.0)
    ((_, message),) = arp_sent(link)
    assert message.sender == bytes(4)


@pytest.mark.parametrize(
    ("next_hop", "ethertype"),
    [(b"\xff" * 4, 0x0800), (bytes([224, 0, 0, 1]), 0x0800), (b"\xff\x02" + bytes(13) + b"\1", 0x86DD)],
)
def test_group_addresses_need_no_question(next_hop: bytes, ethertype: int) -> None:
    link, _ = make()
    link.send(Packet(b"IP"), next_hop, 0.0)
    (packet,) = link.poll_transmit()
    assert packet.head == ethernet.header(ethernet.group_mac(next_hop) or b"", OUR_MAC, ethertype) + b"IP"
    assert len(link.neighbours) == 0


def test_ipv6_questions_are_handed_out_and_their_answers_taken() -> None:
    link, _ = make()
    guest = b"\xfd" + bytes(14) + b"\x64"
    link.send(Packet(b"IPv6"), guest, 0.0)
    assert link.poll_transmit() == []
    assert link.poll_solicitations() == [Solicitation(guest, None)]
    assert link.poll_solicitations() == []
    link.neighbour_heard(guest, GUEST_MAC, 0.1, solicited=True, create=False)
    (packet,) = link.poll_transmit()
    assert packet.head == ethernet.header(GUEST_MAC, OUR_MAC, 0x86DD) + b"IPv6"


def test_ipv6_questions_that_nobody_takes_are_bounded() -> None:
    link = EthernetLink(OUR_MAC, 1500, Limits(neighbours=4), DropCounters())
    for n in range(100):
        link.send(Packet(b""), b"\xfd" + n.to_bytes(15, "big"), float(n))
        link.handle_timeout(float(n))
    assert 0 < len(link.poll_solicitations()) <= 4


@given(st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=20)), max_size=60))
def test_two_links_find_each_other_and_lose_nothing(sends: list[tuple[bool, bytes]]) -> None:
    limits, drops = Limits(neighbour_queue=100), DropCounters()
    ends = EthernetLink(OUR_MAC, 1500, limits, drops), EthernetLink(GUEST_MAC, 1500, limits, drops)
    addresses = GATEWAY, GUEST
    for link, address in zip(ends, addresses, strict=True):
        link.own_addresses.add(address)
    got: tuple[list[bytes], list[bytes]] = ([], [])

    def exchange(now: float) -> None:
        while any(frames := [link.poll_transmit() for link in ends]):
            for side in (0, 1):
                for packet in frames[side]:
                    offset = ends[1 - side].receive(packet, now)
                    if offset >= 0:
                        got[1 - side].append(bytes(packet.head[offset:]))

    for n, (side, data) in enumerate(sends):
        now = float(n * 10)
        for link in ends:
            link.handle_timeout(now)
        ends[side].send(Packet(data), addresses[1 - side], now)
        if n % 3 == 0:
            exchange(now)
    exchange(len(sends) * 10.0)
    for end in (0, 1):
        assert got[1 - end] == [data for sender, data in sends if sender == end]
    assert drops.total == 0


def test_ip_link_passes_everything() -> None:
    drops = DropCounters()
    link = IpLink(b"", 1500, Limits(), drops)
    assert link.receive(Packet(memoryview(b"E...")), 0.0) == 0
    assert link.receive(Packet(b""), 0.0) == -1
    assert drops.as_dict() == {"frame-too-short": 1}
    packet = Packet(b"E", csum_start=20)
    link.send(packet, GUEST, 0.0)
    assert link.poll_transmit() == [packet]
    assert packet.csum_start == 20
    assert not (link.poll_transmit() or link.poll_failures() or link.poll_solicitations())
    link.handle_timeout(1.0)
    assert link.next_timeout() is None
