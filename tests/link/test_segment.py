"""The shared segment as a device, in Python and lent to the fast path: guests get the same frames."""

from __future__ import annotations

import contextlib
import random
import select
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.link.segments import (
    GATEWAY_IP,
    GATEWAY_MAC,
    KINDS,
    GuestEnd,
    arp_frame,
    ip6_of,
    ip_frame,
    ip_of,
    mac_of,
    udp,
)
from tunstack.errors import DropCounters, DropReason
from tunstack.limits import MAX_FRAME, Limits
from tunstack.link.devices.datagram import DatagramDevice
from tunstack.link.devices.framed import FramedDevice, lent_offloads
from tunstack.link.devices.port import Port
from tunstack.link.devices.segment import TRUST, SegmentDevice
from tunstack.link.devices.stream import StreamDevice
from tunstack.link.ethernet import BROADCAST
from tunstack.link.guard import AGE
from tunstack.link.switch import Switch
from tunstack.nat.poller import new_poller
from tunstack.native import fastpath
from tunstack.packet import Packet

MTU = 1500
HANDS = [False, True] if fastpath.available else [False]
"""Whether a fast path has the segment."""


class World:
    """A segment with guests at the ends of socket pairs."""

    def __init__(self, is_lent: bool, *, limits: Limits | None = None) -> None:
        self.now = 100.0
        self.drops = DropCounters()
        switch = Switch(GATEWAY_MAC, {GATEWAY_IP}, limits or Limits(), self.drops)
        self.segment = SegmentDevice(
            switch, lambda: self.now, new_poller(), mtu=MTU, limits=limits or Limits()
        )
        self.fast: fastpath.FastPath | None = None
        self.guests: dict[int, GuestEnd] = {}
        self.gone: list[str] = []
        self._epoll = select.epoll()
        self._epoll.register(self.segment.fileno(), select.EPOLLIN)
        if is_lent:
            self.lend()

    def lend(self) -> None:
        self.fast = fastpath.FastPath(
            7, epoll_fd=self._epoll.fileno(), device_fd=self.segment.fileno(), mac=GATEWAY_MAC
        )
        assert self.segment.lend(self.fast)
        assert not self.segment.lend(self.fast)

    def take_back(self) -> None:
        self.segment.take_back()
        self.fast = None

    def connect(self, kind: str = "stream", *, is_isolated: bool = False, is_guarded: bool = True) -> Port:
        guest = GuestEnd(kind)
        device: FramedDevice
        if guest.framing is None:
            device = DatagramDevice(guest.theirs, mtu=MTU, drops=self.drops)
        else:
            offloads = lent_offloads(MTU) if guest.header else None  # all of them
            device = StreamDevice(
                guest.theirs, mtu=MTU, drops=self.drops, framing=guest.framing, offloads=offloads
            )
        port = self.segment.connect(device, is_isolated=is_isolated, is_guarded=is_guarded)
        port.on_closed = self.gone.append
        self.guests[port.number] = guest
        return port

    def leave(self, port: Port) -> None:
        self.segment.disconnect(port)
        self.guests.pop(port.number).close()

    def read(self) -> list[bytes]:
        """What has come for the gateway."""
        frames: list[bytes] = []
        if self.fast is None:
            for _ in range(30):
                if not select.select([self.segment], [], [], 0)[0]:
                    break
                frames += [packet.tobytes() for packet in self.segment.read_batch(16)]
            return frames
        self.fast.c.fixed_now = self.now
        for _ in range(100):
            status = self.fast.run(0, self.now + 1, 3)
            raw, numbers = self.fast.frames(), self.fast.frame_ports()
            strange = [(one, number) for one, number in zip(raw, numbers, strict=True) if number]
            packets = self.segment.sort_frames([one for one, _ in strange], [number for _, number in strange])
            known = [one for one, number in zip(raw, numbers, strict=True) if not number]
            frames += [packet.tobytes() for packet in (*packets, *self.segment.take_frames(known))]
            self.fast.flush()
            self.segment.flush()
            if not status:
                break
        return frames

    def write(self, *frames: bytes) -> None:
        """What the gateway sends."""
        assert self.segment.write_batch(list(map(Packet, frames))) == len(frames)
        assert self.segment.flush()

    def received(self) -> dict[int, list[bytes]]:
        return {number: frames for number, guest in self.guests.items() if (frames := guest.received())}

    def close(self) -> None:
        self.segment.take_back()
        self.segment.close()
        self._epoll.close()
        for guest in self.guests.values():
            guest.close()


@contextlib.contextmanager
def world(is_lent: bool, *kinds: str, limits: Limits | None = None) -> Iterator[World]:
    made = World(is_lent, limits=limits)
    with contextlib.closing(made):
        for kind in kinds:
            made.connect(kind)
        yield made


hands = pytest.mark.parametrize("is_lent", HANDS, ids=lambda is_lent: "lent" if is_lent else "python")


def introduce(made: World) -> None:
    """Each guest says who it is."""
    for number, guest in made.guests.items():
        guest.send(arp_frame(mac_of(number), ip_of(number), GATEWAY_IP))
    made.read()
    made.received()


@hands
@pytest.mark.parametrize("kind", KINDS)
def test_frames_go_between_guests_and_to_the_gateway(is_lent: bool, kind: str) -> None:
    with world(is_lent, kind, kind, "stream") as made:
        introduce(made)
        for number in range(10):
            frame = ip_frame(
                mac_of(2), mac_of(1), ip_of(1), ip_of(2), 6, bytes((number,)) * (20 + 100 * number)
            )
            made.guests[1].send(frame)
            assert made.read() == []
            assert made.received() == {2: [frame]}
            frame = ip_frame(GATEWAY_MAC, mac_of(2), ip_of(2), GATEWAY_IP, 6, bytes((number,)) * 30)
            made.guests[2].send(frame)
            assert made.read() == [frame]
            frame = ip_frame(mac_of(2), GATEWAY_MAC, GATEWAY_IP, ip_of(2), 6, bytes((number,)) * 40)
            made.write(frame)
            assert made.received() == {2: [frame]}
        made.write(frame := ip_frame(BROADCAST, GATEWAY_MAC, GATEWAY_IP, ip_of(2)))
        assert made.received() == {1: [frame], 2: [frame], 3: [frame]}
        assert made.drops.total == 0


@pytest.mark.skipif(not fastpath.available, reason="the fast path was not built")
def test_what_is_known_does_not_come_to_python() -> None:
    with world(True, "stream", "datagram") as made:
        assert made.fast is not None
        introduce(made)
        frame = ip_frame(mac_of(2), mac_of(1), ip_of(1), ip_of(2))
        switch = made.fast.c.sw
        for number in range(20):
            made.guests[1].send(frame)
            made.read()
            assert switch.forwarded == number  # but for the first
        made.now += TRUST
        made.guests[1].send(frame)
        made.read()
        assert switch.forwarded == 19
        made.guests[1].send(frame)
        made.read()
        assert switch.forwarded == 20
        made.connect()
        made.guests[1].send(frame)
        made.read()
        assert switch.forwarded == 20
        assert made.received()[2] == [frame] * 23


@hands
@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.integers(0, 70_000) | st.integers(0, 80), max_size=8), st.integers(0, 2**32))
def test_frames_of_any_length_harm_nobody(is_lent: bool, kind: str, lengths: list[int], seed: int) -> None:
    rng = random.Random(seed)
    with world(is_lent, kind, "stream") as made:
        introduce(made)
        guest = made.guests[1]
        for length in lengths:
            limit = 0xFFFF if kind == "vpnkit" else 70_000
            guest.send(rng.randbytes(min(length, limit)))
            made.read()
            made.received()
        for sender, receiver in ((1, 2), (2, 1)):
            macs = mac_of(receiver), mac_of(sender)
            made.guests[sender].send(frame := ip_frame(*macs, ip_of(sender), ip_of(receiver)))
            made.read()
            assert made.received()[receiver][-1:] == [frame]
        assert made.gone == []
        counted = made.drops[DropReason.FRAME_TOO_LONG] + made.drops[DropReason.FRAME_TOO_SHORT]
        assert counted == sum(length < 14 or length > MAX_FRAME for length in lengths) - (
            kind == "vpnkit" and sum(length > MAX_FRAME for length in lengths)
        )


@hands
@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_that_does_not_read_is_nobody_elses_concern(is_lent: bool, kind: str) -> None:
    limits = Limits(port_queue=1 << 18)
    with world(is_lent, "stream", kind, "stream", limits=limits) as made:
        introduce(made)
        flood = ip_frame(mac_of(2), mac_of(1), ip_of(1), ip_of(2), 6, bytes(1400))
        other = ip_frame(mac_of(3), mac_of(1), ip_of(1), ip_of(3), 6, bytes(100))
        sent = 0
        while not made.drops[DropReason.PORT_QUEUE_FULL] or sent < 1000:
            for _ in range(10):
                made.guests[1].send(flood)
            sent += 10
            made.guests[1].send(other)
            made.read()
            assert made.guests[3].received() == [other]
            assert sent < 50_000, "what waits is not bounded"
        lost = made.drops[DropReason.PORT_QUEUE_FULL]
        got = []
        for _ in range(1000):
            got += made.guests[2].received()
            made.read()
        assert got == [flood] * (sent - lost)
        made.guests[1].send(flood)
        made.read()
        assert made.guests[2].received() == [flood]


@hands
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "datagram"])
def test_a_guest_that_goes_is_told_of_and_may_come_back(is_lent: bool, kind: str) -> None:
    with world(is_lent, kind, "stream") as made:
        for turn in range(3):
            introduce(made)
            made.guests[1].send(frame := ip_frame(mac_of(2), mac_of(1), ip_of(1), ip_of(2)))
            made.guests[1].close()
            del made.guests[1]
            made.read()
            assert made.received() == {2: [frame]}
            made.read()
            assert len(made.gone) == turn + 1
            assert made.segment.ports[0].number == 2
            assert made.connect(kind).number == 1


@hands
def test_isolated_guests_reach_the_gateway_alone(is_lent: bool) -> None:
    with world(is_lent) as made:
        made.connect(is_isolated=True)
        made.connect(is_isolated=True)
        introduce(made)
        for _ in range(3):
            made.guests[1].send(ip_frame(mac_of(2), mac_of(1), ip_of(1), ip_of(2)))
            made.guests[1].send(frame := ip_frame(GATEWAY_MAC, mac_of(1), ip_of(1), GATEWAY_IP))
            assert made.read() == [frame]
            assert made.received() == {}
        assert made.drops[DropReason.PORT_ISOLATED] == 3


def frames_of(number: int, kind: int, to: int, as_number: int) -> bytes:
    """A frame of the guest at port `number`, who may lie."""
    dst = GATEWAY_MAC if not to else mac_of(to)
    mac, ip = mac_of(number), ip_of(as_number)
    return [
        ip_frame(dst, mac, ip, ip_of(to)),
        ip_frame(dst, mac, ip, ip_of(to), 17, udp(4, 5, b"x")),
        ip_frame(dst, mac_of(as_number), ip, ip_of(to)),
        ip_frame(dst, mac, ip6_of(as_number), ip6_of(to)),
        ip_frame(dst, mac, ip, ip_of(to), 17, udp(67, 68, b"x")),
        ip_frame(dst, mac, ip, ip_of(to), 1, b"\x08\0\0\0"),
        arp_frame(mac, ip, ip_of(to)),
        ip_frame(dst, mac, ip, ip_of(to))[: 14 + to],
    ][kind]


operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("send"),
            st.integers(1, 3),
            st.integers(0, 7),
            st.integers(0, 3),
            st.integers(1, 3) | st.just(0),
        ),
        st.tuples(st.just("write"), st.integers(1, 4)),
        st.tuples(st.just("wait"), st.sampled_from((0.5, TRUST, AGE))),
        st.tuples(st.just("again"), st.integers(1, 3)),
        st.tuples(st.just("hands")),
    ),
    max_size=40,
)


@pytest.mark.skipif(not fastpath.available, reason="the fast path was not built")
@given(st.tuples(*[st.sampled_from(KINDS)] * 3), st.tuples(*[st.booleans()] * 3), operations)
def test_c_does_what_python_does(
    kinds: tuple[str, ...], isolated: tuple[bool, ...], program: list[tuple[object, ...]]
) -> None:
    """The same frames in both worlds, one at a time; guests lie, go and come, and so does the fast path."""
    with world(False) as plain, world(True) as lent:
        both = (plain, lent)
        for made in both:
            for kind, is_isolated in zip(kinds, isolated, strict=True):
                made.connect(kind, is_isolated=is_isolated)
        for step in program:
            match step:
                case ("send", int(number), int(kind), int(to), int(liar)):
                    for made in both:
                        made.guests[number].send(frames_of(number, kind, to, liar or number))
                case ("write", int(number)):
                    for made in both:
                        made.write(ip_frame(mac_of(number), GATEWAY_MAC, GATEWAY_IP, ip_of(number)))
                case ("wait", float(seconds)):
                    for made in both:
                        made.now += seconds
                case ("again", int(number)):
                    for made in both:
                        port = next(port for port in made.segment.ports if port.number == number)
                        made.leave(port)
                        made.connect(kinds[number - 1], is_isolated=isolated[number - 1])
                case _:
                    lent.take_back() if lent.fast is not None else lent.lend()
            assert plain.read() == lent.read()
            assert plain.received() == lent.received()
            assert plain.drops.as_dict() == lent.drops.as_dict()
            assert plain.segment.switch.stations() == lent.segment.switch.stations()
