"""A shaped link in the fast path, beside the same shaping in Python: what either side receives, and when."""

from __future__ import annotations

import contextlib
import random
import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.native.frames import Tcp
from tunstack.errors import BadPacket, DropCounters, DropReason
from tunstack.limits import DEFAULT_LIMITS
from tunstack.link.devices.vnet_header import VNET_HEADER, parse_frame
from tunstack.link.shaping.shaper import Shaper
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.native import fastpath
from tunstack.packet import GsoType

pytestmark = pytest.mark.skipif(not fastpath.available, reason="the fast path was not built")

MAC = b"\x02\0\0\0\0\x01"
CHECKSUM = 16
"""Where it stands in a TCP header."""
BATCH = 16
"""TS_FAST_FRAMES."""


class Side:
    """A shaped link, by C or by Python; `up` and `down` are what has come out of it since the last look."""

    def __init__(self, words: tuple[str, str], l2: bool, seed: int) -> None:
        self.l2 = l2
        self.drops = DropCounters()
        specs = [ShapeSpec.parse(one) if one else None for one in words]
        self.shaper = Shaper(*specs, seed, DEFAULT_LIMITS, self.drops)
        self.shaper.attach(l2)
        self.up: list[bytes] = []
        self.down: list[bytes] = []

    def take(self) -> tuple[list[bytes], list[bytes]]:
        out = self.up, self.down
        self.up, self.down = [], []
        return out


class InPython(Side):
    def send_up(self, frame: bytes, now: float) -> None:
        try:
            packet = parse_frame(memoryview(frame))
        except BadPacket:
            self.drops.add(DropReason.BAD_VNET_HEADER)
            return
        if self.shaper.up is None:
            self.up.append(packet.tobytes())
        else:
            self.shaper.push_up([packet], self.l2, now)

    def send_down(self, frame: bytes, now: float) -> None:
        assert self.shaper.down is not None
        self.shaper.push_down([parse_frame(memoryview(frame))], self.l2, now)

    def run(self, now: float) -> None:
        for pipeline, out in ((self.shaper.up, self.up), (self.shaper.down, self.down)):
            if pipeline is not None:
                out += [packet.tobytes() for packet in pipeline.pop(now)]

    def next_timeout(self) -> float | None:
        return self.shaper.next_timeout()


class InC(Side):
    """Its device is one end of a socket pair; `guest` is the other."""

    def __init__(self, words: tuple[str, str], l2: bool, seed: int) -> None:
        super().__init__(words, l2, seed)
        self.device, self.guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.device, self.guest):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        self.epoll = select.epoll()
        self.epoll.register(self.device, select.EPOLLIN)
        number = self.device.fileno()
        self.fast = fastpath.FastPath(
            1, epoll_fd=self.epoll.fileno(), device_fd=number, mac=MAC if l2 else None
        )
        self.natives = self.shaper.lend()
        self.shape = self.fast.open_shape(*(native.c for native in self.natives))

    def close(self) -> None:
        self.device.close()
        self.guest.close()
        self.epoll.close()

    def send_up(self, frame: bytes, now: float) -> None:
        self.guest.send(frame)
        self.run(now)

    def send_down(self, frame: bytes, now: float) -> None:
        self.shape.put(frame, now)

    def run(self, now: float) -> None:
        self.fast.c.fixed_now = now
        while self.fast.run(0.0, float("inf"), 1 << 16):
            self.up += [bytes(frame[VNET_HEADER.size :]) for frame in self.fast.frames()]
            self.fast.flush()
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self.guest.recv(1 << 17)
                assert frame[: VNET_HEADER.size] == bytes(VNET_HEADER.size)
                self.down.append(frame[VNET_HEADER.size :])

    def next_timeout(self) -> float | None:
        deadline = self.fast.next_timeout()
        return None if deadline == float("inf") else deadline

    def restore(self) -> None:
        """Python shapes from now on."""
        self.shaper.count_drops(self.natives)
        self.drops.add(DropReason.BAD_VNET_HEADER, self.shape.take_bad())
        self.shape.close()
        self.shaper.restore(self.natives)


@contextlib.contextmanager
def shaped_in_c(words: tuple[str, str], l2: bool = False, seed: int = 0) -> Iterator[InC]:
    side = InC(words, l2, seed)
    with contextlib.closing(side):
        yield side


def make_frame(rng: random.Random, l2: bool, *, sound: bool) -> bytes:
    """A packet behind a virtio-net header: whole, without its checksum, a train, or (not `sound`) a lie."""
    kind = rng.choice(["whole", "partial", "train"])
    version = rng.choice([4, 6])
    size = rng.choice([0, 1, 700, 1448]) if kind != "train" else rng.choice([1449, 5000, 40_000])
    tcp = Tcp(version=version, l2=l2, payload=rng.randbytes(size), seq=rng.randrange(2**32))
    start, gso_size, gso_type = len(tcp.ethernet) + len(tcp.ip), 0, int(GsoType.NONE)
    if kind == "train":
        gso_size, gso_type = 1448, int(GsoType.TCPV4 if version == 4 else GsoType.TCPV6)
    if not sound and rng.random() < 0.3:
        lie = rng.choice(["start", "type", "size", "version"])
        if lie == "start":
            kind, start = "partial", 65535
        elif lie == "type":
            gso_size, gso_type = 100, rng.choice([2, 3, 7])
        elif lie == "size":
            gso_size, gso_type = 0, int(GsoType.TCPV4)
        else:
            gso_size, gso_type = 1448, int(GsoType.TCPV6 if version == 4 else GsoType.TCPV4)
    return VNET_HEADER.pack(kind != "whole", gso_type, 0, gso_size, start, CHECKSUM) + bytes(tcp)


UP = st.sampled_from(["delay 3ms", "delay 1ms rate 20mbit limit 40 loss 10%", "loss 50%", ""])
DOWN = st.sampled_from(["delay 3ms", "rate 10mbit queue fq_codel target 1ms interval 5ms", "delay 0s"])
STEPS = st.lists(
    st.tuples(st.sampled_from(["up", "down", "none"]), st.sampled_from([0.0, 0.0, 0.0003, 0.002, 0.02])),
    max_size=40,
)


@given(st.tuples(UP, DOWN), st.booleans(), st.integers(0, 2**32), STEPS)
def test_both_shape_alike(
    words: tuple[str, str], l2: bool, seed: int, steps: list[tuple[str, float]]
) -> None:
    rng = random.Random(seed)
    twin = InPython(words, l2, seed)
    now = 10.0
    with shaped_in_c(words, l2, seed) as side:
        for way, gap in steps:
            if way == "up":
                frame = make_frame(rng, l2, sound=words[0] == "")
                twin.send_up(frame, now)
                side.send_up(frame, now)
            elif way == "down":
                frame = make_frame(rng, l2, sound=True)
                twin.send_down(frame, now)
                side.send_down(frame, now)
            now += gap
            for one in (twin, side):
                one.run(now)
            if words[0]:
                assert side.take() == twin.take()
            else:
                assert side.take()[1] == twin.take()[1]
            assert side.next_timeout() == twin.next_timeout()
        side.restore()
        assert side.drops.as_dict() == twin.drops.as_dict()
        for mine, theirs in ((side.shaper.up, twin.shaper.up), (side.shaper.down, twin.shaper.down)):
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs is not None:
                assert mine.statistics() == theirs.statistics()


def test_what_a_direction_without_stages_carries_is_cut_and_complete() -> None:
    train, single = Tcp(l2=False, payload=bytes(range(250)) * 20), Tcp(l2=False, payload=b"x")
    header = VNET_HEADER.pack(1, GsoType.TCPV4, 0, 1448, 20, CHECKSUM)
    expected = [
        train.but(
            payload=train.payload[start : start + 1448], seq=train.seq + start, ident=train.ident + number
        )
        for number, start in enumerate(range(0, 5000, 1448))
    ]
    with shaped_in_c(("", "delay 1ms")) as side:
        side.send_up(header + bytes(train), 1.0)
        side.send_up(bytes(VNET_HEADER.size) + bytes(single), 1.0)
        assert side.up == [*map(bytes, expected), bytes(single)]


def test_nothing_is_read_while_what_has_left_waits_for_python() -> None:
    frames = [bytes(VNET_HEADER.size) + number.to_bytes(2, "big") * 30 for number in range(300)]
    with shaped_in_c(("delay 0s", "delay 0s")) as side:
        side.fast.c.fixed_now = 1.0
        for frame in frames:
            side.guest.send(frame)
        seen: list[bytes] = []
        held = []
        while side.fast.run(0.0, float("inf"), 1 << 16):
            got = [bytes(frame) for frame in side.fast.frames()]
            assert len(got) <= BATCH
            seen += got
            side.fast.flush()
            stage = side.natives[0].counts("delay")
            held.append(stage.received - len(seen))
        assert seen == frames
        assert max(held) <= fastpath.lib.TS_SHAPE_READ


def test_what_the_device_does_not_take_is_pythons_to_send_in_order() -> None:
    with shaped_in_c(("", "delay 1ms")) as side:
        side.device.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        frames = [bytes(VNET_HEADER.size) + bytes((number,)) * 1000 for number in range(20)]
        for frame in frames:
            side.send_down(frame, 1.0)
        side.fast.c.fixed_now = 1.001
        assert side.fast.run(0.0, float("inf"), 1 << 16) == 1
        refused = side.fast.refused()
        taken = []
        with contextlib.suppress(BlockingIOError):
            while True:
                taken.append(side.guest.recv(1 << 16))
        assert taken and refused
        assert taken + refused == frames


def test_packets_that_are_none_are_counted_and_nothing_else_happens() -> None:
    with shaped_in_c(("delay 1ms", "delay 1ms")) as side:
        for frame in (b"\0", bytes(VNET_HEADER.size), bytes(VNET_HEADER.size - 1)):
            side.send_up(frame, 1.0)
            side.send_down(frame, 1.0)
        assert side.shape.has_dropped
        side.run(2.0)
        assert side.take() == ([], [])
        assert side.shape.take_bad() == 6
        assert not side.shape.has_dropped
