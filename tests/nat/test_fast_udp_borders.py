"""What C does with established UDP by itself, and where its common case ends: single schedules.

The gateway is that of `test_fast_udp`, where it is compared with one that has no fast path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import socket

import pytest

from tests.nat.test_fast_udp import (
    CLOSED,
    GUEST,
    OTHER_MAC,
    Frame,
    Plan,
    Side,
    free_ports,
    make_frames,
    payload_of,
    side,
)
from tunstack import native
from tunstack.errors import DropReason
from tunstack.link.devices.vnet_header import parse_frame
from tunstack.nat.udp import OFFER_AFTER
from tunstack.native import fastpath

from .conftest import Namespace
from .pair_device import PairDevice, turn

pytestmark = pytest.mark.skipif(not fastpath.available, reason="the fast path was not built")

LINKS = pytest.mark.parametrize("link", [(4, True), (6, True), (4, False), (6, False)])


def establish(s: Side, guests: int = 1) -> None:
    """Send until all destinations that may be carried are."""
    for guest in range(guests):
        for _ in range(OFFER_AFTER):
            s.send_frame(Frame(guest=guest), 0)
    s.settle(True)
    s.at_host()


@LINKS
def test_established_destinations_are_carried_in_both_directions(link: tuple[int, bool]) -> None:
    with side(Plan(*link), True, free_ports()) as s:
        establish(s)
        assert s.fast is not None
        c = s.fast.fast.c
        for number in range(100):
            s.send_frame(Frame(size=1400), number)
            s.answer(0, 0, 1400, 0, 0, number)
            s.settle(True)
        assert (c.udp.datagrams_up, c.udp.datagrams_down) == (100, 100)
        assert [payload for payload, _ in s.at_host()[0, 5000]] == [payload_of(n, 1400) for n in range(100)]
        (packets,) = s.to_guest().values()
        assert [packet[-1400:] for packet in packets] == [payload_of(n, 1400) for n in range(100)]


@LINKS
def test_fragments_are_put_together_and_made(link: tuple[int, bool]) -> None:
    with side(Plan(*link), True, free_ports()) as s:
        establish(s)
        assert s.fast is not None
        c = s.fast.fast.c
        frames = c.frames_fast
        for number in range(100):
            s.send_frame(Frame(size=8192, cut=1500), number)
            s.answer(0, 0, 8192, 0, 0, number)
            s.settle(True)
        assert (c.udp.datagrams_up, c.udp.assembled) == (100, 100)
        assert (c.udp.datagrams_down, c.udp.cut) == (100, 100)
        assert c.frames_fast - frames == 600
        assert [payload for payload, _ in s.at_host()[0, 5000]] == [payload_of(n, 8192) for n in range(100)]


@LINKS
def test_a_datagram_whose_fragments_do_not_come_soon_is_pythons(link: tuple[int, bool]) -> None:
    with side(Plan(*link), True, free_ports()) as s:
        establish(s)
        first, *others = make_frames(s.plan, Frame(size=8192, cut=1500), s.ports, 1)
        s.device.guest.send(first)
        assert s.fast is not None
        turn(s.engine, s.fast, s.now, True)
        assert s.fast.next_timeout() == pytest.approx(s.now + 0.001)
        assert s.stack.ip._reassembler.held_fragments == 0
        s.now += 0.002
        turn(s.engine, s.fast, s.now, True)
        assert s.fast.next_timeout() == math.inf
        assert s.stack.ip._reassembler.held_fragments == 1
        for other in others:
            s.device.guest.send(other)
        s.settle(True)
        assert s.fast.fast.c.udp.assembled == 0
        assert [payload for payload, _ in s.at_host()[0, 5000]] == [payload_of(1, 8192)]


@pytest.mark.parametrize("how", ["taken back", "forgotten", "closed"])
def test_fragments_that_c_has_are_not_lost_with_the_path(how: str) -> None:
    with side(Plan(), True, free_ports()) as s:
        establish(s)
        first, *others = make_frames(s.plan, Frame(size=8192, cut=1500), s.ports, 1)
        s.device.guest.send(first)
        assert s.fast is not None
        turn(s.engine, s.fast, s.now, True)
        if how == "taken back":
            s.take_back()
        elif how == "closed":
            s.engine._fast, s.fast = s.fast, None
            s.nat.set_carrier(None)
            s.engine._close_fast(s.now)
        else:
            s.fast.datagrams.recall()
            turn(s.engine, s.fast, s.now, True)
        assert s.stack.ip._reassembler.held_fragments == 1
        for other in others:
            s.device.guest.send(other)
        s.settle(True)
        assert [payload for payload, _ in s.at_host()[0, 5000]] == [payload_of(1, 8192)]


def test_more_datagrams_at_once_than_c_has_room_for_are_pythons() -> None:
    with side(Plan(), True, free_ports()) as s:
        establish(s)
        cut = [make_frames(s.plan, Frame(size=4000, cut=1500), s.ports, number) for number in range(20)]
        for place in range(3):
            for frames in cut:
                s.device.guest.send(frames[place])
        s.settle(True)
        assert s.fast is not None
        assert s.fast.fast.c.udp.assembled < 20
        arrived = {payload for payload, _ in s.at_host()[0, 5000]}
        assert arrived == {payload_of(number, 4000) for number in range(20)}


@pytest.mark.rfc("6864", "4.2 unique")
@pytest.mark.parametrize("uso", [False, True])
def test_identifications_are_counted_also_in_trains(uso: bool) -> None:
    with side(Plan(4, False, uso), True, free_ports()) as s:
        establish(s)
        frames = []
        for size, segment in ((100, 0), (2500, 1000), (3000, 0), (100, 0)):
            s.answer(0, 0, size, 0, segment, 1)
            s.settle(True)
            while True:
                try:
                    frames.append(s.device.guest.recv(1 << 17))
                except BlockingIOError:
                    break
        assert len(frames) == (6 if uso else 8)
        wires = [wire for frame in frames for wire in native.segment(parse_frame(memoryview(frame)), False)]
        idents = [int.from_bytes(wire[4:6], "big") for wire in wires]
        assert idents == [(idents[0] + index) & 0xFFFF for index in (0, 1, 2, 3, 4, 4, 4, 5)]
        assert all(not wire[6] & 0x40 for wire in wires)


@pytest.mark.parametrize("odd", [Frame(spoil="options"), Frame(df=True), Frame(spoil="trailing")])
def test_nothing_overtakes_what_goes_to_python(odd: Frame) -> None:
    with side(Plan(), True, free_ports()) as s:
        establish(s)
        for number, frame in enumerate([Frame(), odd, Frame(), odd, Frame()]):
            s.send_frame(frame, number)
        s.settle(False)
        assert [payload for payload, _ in s.at_host()[0, 5000]] == [payload_of(n, 100) for n in range(5)]
        assert s.fast is not None
        assert s.fast.fast.c.udp.datagrams_up == 1


@pytest.mark.parametrize("family", [4, 6])
def test_nothing_overtakes_what_has_to_be_cut(family: int) -> None:
    with side(Plan(family, l2=False), True, free_ports()) as s:
        establish(s)
        for number, size in enumerate([100, 3000, 200]):
            s.answer(0, 0, size, 0, 0, number)
        s.settle(False)
        sizes = []
        with contextlib.suppress(BlockingIOError):
            while True:
                sizes.append(len(s.device.guest.recv(1 << 17)) - 10 - (20 if family == 4 else 40))
        assert sizes[0] == 108
        assert len(sizes) == 5
        assert sizes[-1] == 208
        assert s.fast is not None
        assert s.fast.fast.c.udp.datagrams_down == 3


@LINKS
def test_a_checksum_is_looked_at_unless_it_is_known(link: tuple[int, bool]) -> None:
    with side(Plan(*link), True, free_ports()) as s:
        establish(s)
        for number, trust in enumerate([0, 1, 2]):
            s.send_frame(Frame(trust=trust, spoil="checksum"), number)
            s.settle(False)
        assert [payload for payload, _ in s.at_host()[0, 5000]] == [payload_of(n, 100) for n in (1, 2)]
        assert s.stack.drops[DropReason.BAD_UDP_CHECKSUM] == 1
        s.send_frame(Frame(trust=3), 3)
        s.settle(False)
        assert len(s.at_host()) == (1 if link[0] == 4 else 0)


@LINKS
def test_an_error_that_makes_a_send_fail_is_about_what_was_sent_before(link: tuple[int, bool]) -> None:
    plan = Plan(*link)
    with side(plan, True, free_ports()) as s:
        assert s.fast is not None
        for number in (1, 2, 3):
            s.send_frame(Frame(server=CLOSED), number)
            s.settle(True)
        assert s.fast.fast.c.udp.datagrams_up == 1
        s.to_guest()
        (mapping,) = s.nat.udp._mappings.values()
        mapping.socket.sock.sendto(b"x", (s.loopback, s.ports[CLOSED]))
        s.send_frame(Frame(server=CLOSED), 4)
        s.settle(True)
        errors = s.to_guest()["other"]
        quoted = sorted(number for number in (3, 4) for error in errors if payload_of(number, 40) in error)
        assert quoted == [3, 4]


def test_port_53_is_never_carried() -> None:
    ports = free_ports()
    with side(Plan(), True, ports) as s:
        s.ports[CLOSED] = 53
        for number in range(5):
            s.send_frame(Frame(server=CLOSED), number)
            s.settle(True)
        assert s.fast is not None
        assert len(s.nat.udp) == 1
        assert len(s.fast.datagrams) == 0


def test_a_frame_with_another_mac_never_touches_the_path() -> None:
    with side(Plan(), True, free_ports()) as s:
        establish(s)
        assert s.fast is not None
        c = s.fast.fast.c
        s.send_frame(Frame(spoil="mac"), 1)
        s.settle(False)
        assert c.udp.datagrams_up == 0
        assert c.frame_count == 0
        assert len(s.at_host()[0, 5000]) == 1  # Python's rules let it pass


def test_a_neighbour_that_moves_takes_its_paths_along() -> None:
    with side(Plan(), True, free_ports()) as s:
        establish(s)
        assert s.fast is not None
        for _ in range(3):  # the claim, the question about the old one, belief
            s.stack.link.neighbour_heard(GUEST[4], OTHER_MAC, s.now, solicited=True, create=True)
            s.now += 1.5
            s.settle(False)
        assert len(s.fast.datagrams) == 0
        s.to_guest()
        s.answer(0, 0, 100, 0, 0, 1)
        s.settle(True)
        (frame,) = [f for group in s.to_guest().values() for f in group]
        assert frame[:6] == OTHER_MAC


def test_paths_in_use_outlive_their_neighbours_confirmation_and_idle_ones_do_not() -> None:
    with side(Plan(), True, free_ports()) as s:
        establish(s)
        assert s.fast is not None
        for _ in range(12):
            s.now += 5.0
            s.send_frame(Frame(guest=0), 1)
            s.settle(False)
            s.to_guest()  # answers questions
        c = s.fast.fast.c
        assert c.udp.datagrams_up == 12
        assert len(s.fast.datagrams) == 1
        for _ in range(12):
            s.now += 5.0
            s.settle(False)
            s.to_guest()
        assert len(s.fast.datagrams) == 0
        assert len(s.nat.udp) == 1


def block(device: PairDevice) -> int:
    """Fill the device's socket; how many frames are in it."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            device.sock.send(bytes(100))
            count += 1
    return count


def test_what_the_device_refuses_waits_in_line() -> None:
    with side(Plan(l2=False), True, free_ports()) as s:
        establish(s)
        filled = block(s.device)
        for number in range(40):
            s.answer(0, 0, 1000, 0, 0, number)
        for _ in range(8):
            assert s.fast is not None
            s.fast.fast.c.fixed_now = s.now
            s.engine.fast_turn(s.fast, 0.0)
        assert s.fast.fast.c.udp.datagrams_down == 40
        assert len(s.port.queue) == 40
        for _ in range(filled):
            s.device.guest.recv(1 << 17)
        payloads = []
        while len(s.port.queue):
            s.engine.fast_turn(s.fast, 0.0)
            payloads += [packet[-1000:] for group in s.to_guest().values() for packet in group]
        payloads += [packet[-1000:] for group in s.to_guest().values() for packet in group]
        assert payloads == [payload_of(number, 1000) for number in range(40)]


def test_what_the_device_refuses_in_one_call_is_bounded() -> None:
    guests = 40
    with side(Plan(l2=False), True, free_ports()) as s:
        establish(s, guests)
        assert s.fast is not None
        assert len(s.fast.datagrams) == guests
        block(s.device)
        for number in range(2):
            for guest in range(guests):
                s.answer(0, guest, 60_000, 0, 1400, number)
        c = s.fast.fast.c
        c.fixed_now = s.now
        while s.fast.fast.run(0.0, s.now + 1, 1):
            s.fast.datagrams.decide(s.now)
            assert c.refused.length <= (4 << 20) + (1 << 16)
            if c.udp.queue_full:
                break
        assert c.udp.queue_full
        s.fast.after_flush(s.now)
        assert s.stack.drops[DropReason.TRANSMIT_QUEUE_FULL] >= 1
        assert c.udp.queue_full == 0


@pytest.mark.netns
def test_a_socket_that_is_full_drops_and_counts(namespace: Namespace) -> None:
    """A slow interface holds what was sent against the socket's buffer."""
    namespace.ip("link", "add", "slow", "type", "veth", "peer", "name", "far")
    namespace.ip("link", "set", "far", "up")
    namespace.ip("link", "set", "slow", "up")
    namespace.ip("address", "add", "198.18.0.1/24", "dev", "slow")
    namespace.ip("neighbour", "add", "198.18.0.2", "lladdr", "02:00:00:00:00:09", "dev", "slow")
    namespace.ip("route", "add", "203.0.113.0/24", "via", "198.18.0.2")
    namespace.command(
        "tc", "qdisc", "add", "dev", "slow", "root", "tbf", "rate", "8kbit", "burst", "2000", "limit", "1mb"
    )

    def scenario() -> tuple[int, int, int]:
        with side(Plan(), True, free_ports()) as s:
            assert s.fast is not None
            outside = Frame(alias=2)
            for _ in range(OFFER_AFTER):
                s.send_frame(outside, 0)
            s.settle(True)
            (mapping,) = s.nat.udp._mappings.values()
            mapping.socket.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            for number in range(50):
                s.send_frame(dataclasses.replace(outside, size=1400), number)
            s.settle(True)
            c = s.fast.fast.c
            return c.udp.datagrams_up, s.stack.drops[DropReason.UDP_SOCKET_FULL], c.udp.socket_full

    carried, dropped, uncounted = namespace.call(scenario)
    assert carried >= 1
    assert dropped >= 1
    assert (carried + dropped, uncounted) == (50, 0)
