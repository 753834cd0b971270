"""The device behind a stream socket, lent to the fast path, beside the same device in Python."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import random
import select
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.native.frames import Tcp
from tunstack import native
from tunstack.errors import DropCounters
from tunstack.limits import MAX_FRAME, Limits
from tunstack.link.devices.base import DeviceClosed, Offloads
from tunstack.link.devices.framed import lent_offloads
from tunstack.link.devices.stream import StreamDevice
from tunstack.link.devices.vnet_header import VNET_HEADER, parse_frame
from tunstack.link.framings import QEMU, Deframer, Framing
from tunstack.link.transmit import TransmitQueue
from tunstack.native import fastpath
from tunstack.packet import Checksum, GsoType, Packet

pytestmark = pytest.mark.skipif(not fastpath.available, reason="the fast path was not built")

MTU = 1500
MAC = b"\x02\0\0\0\0\x01"
FRAMINGS = st.builds(Framing, st.integers(2, 4), st.sampled_from(("big", "little")))


class Lent:
    """A device whose socket the fast path has, and the other end."""

    def __init__(self, framing: Framing = QEMU) -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.epoll = select.epoll()
        self.device = StreamDevice(ours, mtu=MTU, framing=framing)
        self.epoll.register(ours, select.EPOLLIN)
        self.fast = fastpath.FastPath(1, epoll_fd=self.epoll.fileno(), device_fd=ours.fileno(), mac=MAC)
        assert self.device.lend(self.fast)

    @property
    def is_lent(self) -> bool:
        """Whether the fast path has the socket now."""
        return self.device.offloads.checksum

    def change_hands(self) -> None:
        """Give the socket back to Python, or to a new fast path."""
        if self.is_lent:
            self.device.take_back()
        else:
            number = self.device.fileno()
            self.fast = fastpath.FastPath(1, epoll_fd=self.epoll.fileno(), device_fd=number, mac=MAC)
            assert self.device.lend(self.fast)

    def read(self) -> list[bytes]:
        """Everything that has arrived."""
        frames: list[bytes] = []
        if not self.is_lent:
            while packets := self.device.read_batch(64):
                frames += [packet.tobytes() for packet in packets]
            self.device.flush()
            return frames
        while self.fast.run(0, 0, 3) and not self.fast.c.device_errno:
            frames += [packet.tobytes() for packet in self.device.take_frames(self.fast.frames())]
            self.fast.flush()
        self.device.flush()
        return frames


@contextlib.contextmanager
def lent(framing: Framing = QEMU) -> Iterator[Lent]:
    link = Lent(framing)
    with link.theirs, contextlib.closing(link.epoll), contextlib.closing(link.device):
        yield link


LENGTHS = st.one_of(st.integers(0, 100), st.sampled_from((1514, 9014, MAX_FRAME, MAX_FRAME + 1)))


@given(FRAMINGS, st.lists(LENGTHS, max_size=40), st.lists(st.integers(1, 70_000), max_size=20), st.randoms())
def test_the_same_frames_are_found_however_the_stream_is_cut(
    framing: Framing, lengths: list[int], cuts: list[int], rng: random.Random
) -> None:
    stream = b""
    for length in lengths:
        with contextlib.suppress(OverflowError):
            stream += framing.header(length) + rng.randbytes(length)
    drops = DropCounters()
    wanted, _ = Deframer(framing, MAX_FRAME, drops).find(memoryview(stream))
    found = []
    with lent(framing) as link:
        sizes = itertools.chain(cuts, itertools.repeat(1 << 17))
        while stream:
            stream = stream[link.theirs.send(stream[: next(sizes)]) :]
            found += link.read()
        assert found == [bytes(frame) for frame in wanted]
        assert link.device.drops.as_dict() == drops.as_dict()


def udp(version: int, size: int, *, segment: int = 0) -> Packet:
    """A datagram whose checksum is left to the device; a train of datagrams with `segment`."""
    tcp = Tcp(version=version)
    total = 8 + size
    if version == 4:
        ip = tcp.ip[:2] + struct.pack("!H", 20 + total) + tcp.ip[4:9] + b"\x11\0\0" + tcp.ip[12:20]
        ip = ip[:10] + struct.pack("!H", 0xFFFF - native.ones_sum(ip)) + ip[12:]
        addresses = ip[12:]
    else:
        ip = tcp.ip[:4] + struct.pack("!HB", total, 17) + tcp.ip[7:40]
        addresses = ip[8:]
    pseudo = native.ones_sum(addresses + struct.pack("!HH", 17, total))
    head = tcp.ethernet + ip + tcp.key[-4:] + struct.pack("!HH", total, pseudo)
    return partial(head, random.Random(size).randbytes(size), 8, 6, segment, GsoType.UDP_L4)


def partial(head: bytes, payload: bytes, l4: int, offset: int, segment: int, kind: GsoType) -> Packet:
    is_train = 0 < segment < len(payload)
    middle = len(payload) // 3
    views = [memoryview(payload)[:middle], memoryview(payload)[middle:]]
    return Packet(
        head,
        views,
        segment if is_train else 0,
        kind if is_train else GsoType.NONE,
        Checksum.PARTIAL,
        len(head) - l4,
        offset,
    )


def tcp(version: int, size: int, *, segment: int = 0, flags: int = 0x18) -> Packet:
    """A TCP segment whose checksum is left to the device, a train with `segment`."""
    frame = Tcp(version=version, payload=bytes(size), flags=flags)
    addresses = frame.ip[12:20] if version == 4 else frame.ip[8:40]
    pseudo = native.ones_sum(addresses + struct.pack("!HH", 6, len(frame.l4)))
    head = bytes(frame)[: -size or None]
    at = len(head) - len(frame.l4) + size + 16
    head = head[:at] + struct.pack("!H", pseudo) + head[at + 2 :]
    payload = random.Random(size).randbytes(size)
    kind = GsoType.TCPV4 if version == 4 else GsoType.TCPV6
    return partial(head, payload, len(frame.l4) - size, 16, segment, kind)


VERSIONS = st.sampled_from((4, 6))
PACKETS = st.one_of(
    st.builds(Packet, st.binary(min_size=1, max_size=MTU + 14)),
    st.builds(udp, VERSIONS, st.integers(0, 1400)),
    st.builds(udp, VERSIONS, st.integers(0, 60_000), segment=st.sampled_from((33, 500, 1400))),
    st.builds(tcp, VERSIONS, st.integers(0, 1400)),
    st.builds(
        tcp,
        VERSIONS,
        st.integers(0, 65_000),
        segment=st.sampled_from((48, 536, 1428)),
        flags=st.sampled_from((0x10, 0x18, 0x19, 0x90)),
    ),
)


def pushed(link: Lent, packets: list[Packet], reads: Iterator[int]) -> bytes:
    """What arrives of `packets`; the other end reads now and then."""
    queue = TransmitQueue(link.device, Limits(), DropCounters())
    arrived = bytearray()
    for packet in packets:
        queue.push([packet])
        queue.flush()
        with contextlib.suppress(BlockingIOError):
            arrived += link.theirs.recv(next(reads))
    while not (queue.flush() and link.device.flush()):
        arrived += link.theirs.recv(1 << 20)
    link.device.close()
    while chunk := link.theirs.recv(1 << 20):
        arrived += chunk
    assert not link.device.write_errors
    return bytes(arrived)


@given(FRAMINGS, st.lists(PACKETS, max_size=12), st.lists(st.integers(1, 100_000), max_size=12))
def test_the_same_bytes_leave_as_python_sends(
    framing: Framing, packets: list[Packet], reads: list[int]
) -> None:
    """Trains are cut and checksums completed by one and by the other, whatever the socket takes."""
    with lent(framing) as link:
        found = pushed(link, packets, itertools.chain(reads, itertools.repeat(1)))
    drops = DropCounters()
    ours, theirs = socket.socketpair()
    with theirs:
        device = StreamDevice(ours, mtu=MTU, framing=framing)
        queue = TransmitQueue(device, Limits(), drops)
        wanted = bytearray()
        for packet in packets:
            queue.push([packet])
            while not (queue.flush() and device.flush()):
                wanted += theirs.recv(1 << 20)
        device.close()
        while chunk := theirs.recv(1 << 20):
            wanted += chunk
        assert not device.write_errors and not drops.total
    assert found == wanted


def test_what_arrives_is_never_pythons_even_if_the_socket_is_writable_too() -> None:
    """Python would read it out of order."""
    with lent() as link:
        link.epoll.modify(link.device, select.EPOLLIN | select.EPOLLOUT)
        link.theirs.send(QEMU.header(3) + b"one" + QEMU.header(1000))
        assert link.fast.run(0, 0, 3) == 1
        assert link.fast.ready() == [(link.device.fileno(), select.EPOLLOUT)]
        assert [packet.tobytes() for packet in link.device.take_frames(link.fast.frames())] == [b"one"]


def test_a_socket_that_takes_nothing_is_waited_for_within_bounds() -> None:
    with lent() as link:
        packets = [Packet(bytes(1000)) for _ in range(10_000)]
        taken = link.device.write_batch(packets)
        assert 1_000 < taken < 2_500
        assert not link.device.flush()
        assert link.device.write_batch(packets) == 0
        arrived = 0
        while not link.device.flush():
            arrived += len(link.theirs.recv(1 << 20))
        while arrived < taken * 1004:
            arrived += len(link.theirs.recv(1 << 20))
        assert arrived == taken * 1004


def test_what_no_frame_can_carry_is_counted_and_the_rest_goes() -> None:
    with lent() as link:
        packets = [
            Packet(b""),
            Packet(b"one"),
            Packet(bytes(MTU + 15)),
            Packet(bytes(60), (), 0, GsoType.NONE, Checksum.PARTIAL, 50, 16),
            Packet(bytes(2000), (), 100, GsoType.TCPV4, Checksum.PARTIAL, 34, 16),
            Packet(b"two"),
        ]
        assert link.device.write_batch(packets) == 6
        assert link.device.write_errors == 4
        assert link.device.flush()
        assert link.theirs.recv(100) == QEMU.header(3) + b"one" + QEMU.header(3) + b"two"


def test_the_end_of_the_stream_is_the_end_of_the_device() -> None:
    with lent() as link:
        link.theirs.send(QEMU.header(4) + b"last" + b"\0\0")
        link.theirs.close()
        assert link.read() == [b"last"]
        assert link.fast.c.device_errno
        with pytest.raises(DeviceClosed):
            for _ in range(2):
                link.device.write_batch([Packet(b"late")])
                link.device.flush()


@given(
    FRAMINGS,
    st.lists(LENGTHS, max_size=20),
    st.lists(st.tuples(st.integers(1, 70_000), st.booleans()), max_size=20),
    st.randoms(),
)
def test_the_socket_changes_hands_amid_frames_and_none_is_lost(
    framing: Framing, lengths: list[int], cuts: list[tuple[int, bool]], rng: random.Random
) -> None:
    stream = b""
    for length in lengths:
        with contextlib.suppress(OverflowError):
            stream += framing.header(length) + rng.randbytes(length)
    drops = DropCounters()
    wanted, _ = Deframer(framing, MAX_FRAME, drops).find(memoryview(stream))
    found: list[bytes] = []
    sent: list[bytes] = []
    arrived = b""
    with lent(framing) as link:
        for size, changes in itertools.chain(cuts, itertools.repeat((1 << 17, True))):
            if not stream:
                break
            stream = stream[link.theirs.send(stream[:size]) :]
            if changes and link.is_lent and rng.random() < 0.5:
                link.fast.run(0, 0, 1)  # some of what has arrived is in C's buffer
                found += [packet.tobytes() for packet in link.device.take_frames(link.fast.frames())]
                link.fast.flush()
            if changes:
                link.change_hands()
            out = [Packet(rng.randbytes(rng.choice([60, 1514]))) for _ in range(rng.randrange(40))]
            taken = link.device.write_batch(out)
            sent += [packet.tobytes() for packet in out[:taken]]
            if changes and rng.random() < 0.3:
                link.change_hands()
            found += link.read()
            with contextlib.suppress(BlockingIOError):
                arrived += link.theirs.recv(rng.randrange(1, 20_000))
        if not link.is_lent:
            link.change_hands()
        found += link.read()
        with contextlib.suppress(BlockingIOError):
            while link.device.flush() or True:
                arrived += link.theirs.recv(1 << 20)
        assert found == wanted
        assert link.device.drops.as_dict() == drops.as_dict()
        frames, used = Deframer(framing, MAX_FRAME, drops).find(memoryview(arrived))
        assert [bytes(frame) for frame in frames] == sent and used == len(arrived)


def test_a_socket_is_lent_to_one_at_a_time() -> None:
    with lent() as link:
        assert not link.device.lend(link.fast)
        link.device.take_back()
        assert not link.device.offloads.checksum
        link.device.take_back()  # a second time is nothing


def test_the_end_of_a_stream_that_was_taken_back_comes_behind_its_frames() -> None:
    with lent() as link:
        link.theirs.send(QEMU.header(3) + b"one" + QEMU.header(3) + b"two")
        assert link.fast.run(0, 0, 1)
        link.fast.flush()
        link.theirs.send(QEMU.header(4) + b"last")
        link.theirs.close()
        link.device.take_back()
        assert [packet.tobytes() for packet in link.device.read_batch(9)] == [b"last"]
        with pytest.raises(DeviceClosed):
            link.device.read_batch(9)


# Links with a virtio-net header in front of each frame.

HEADERS = st.one_of(
    st.just(bytes(10)),
    st.binary(min_size=10, max_size=10),
    st.builds(
        VNET_HEADER.pack,
        st.sampled_from((0, 1, 2, 3)),
        st.sampled_from((0, 1, 4, 5, 0x81, 0x84, 3, 0x80)),
        st.integers(0, 100),
        st.sampled_from((0, 1, 100, 1400)),
        st.integers(0, 60),
        st.integers(0, 60),
    ),
)
OFFLOADS = st.builds(
    functools.partial(Offloads, l2=True, mtu=MTU, max_frame=MAX_FRAME),
    checksum=st.booleans(),
    tso4=st.booleans(),
    tso6=st.booleans(),
    uso=st.booleans(),
)


def facts(packet: Packet) -> tuple[bytes, int, int, int, int, int]:
    checksum = Checksum.UNKNOWN if packet.checksum == Checksum.UNTOLD else packet.checksum
    gso = (packet.gso_size, packet.gso_type) if packet.gso_size else (0, 0)
    return packet.tobytes(), *gso, checksum, packet.csum_start, packet.csum_offset


@contextlib.contextmanager
def header_pair(offloads: Offloads, *, trusted: bool = False) -> Iterator[tuple[StreamDevice, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    device = StreamDevice(ours, mtu=MTU, offloads=offloads, is_trusted=trusted)
    with theirs, contextlib.closing(device):
        yield device, theirs


def borrowed(device: StreamDevice, stack: contextlib.ExitStack) -> fastpath.FastPath:
    epoll = stack.enter_context(contextlib.closing(select.epoll()))
    epoll.register(device.fileno(), select.EPOLLIN)
    fast = fastpath.FastPath(1, epoll_fd=epoll.fileno(), device_fd=device.fileno(), mac=MAC)
    assert device.lend(fast)
    return fast


@given(
    st.lists(
        st.tuples(HEADERS, st.one_of(st.integers(0, 100), st.just(MAX_FRAME), st.just(MAX_FRAME + 1))),
        max_size=12,
    ),
    st.booleans(),
    st.integers(0, 1 << 32),
)
def test_both_read_the_same_of_any_headers(parts: list[tuple[bytes, int]], trusted: bool, seed: int) -> None:
    rng = random.Random(seed)
    frames = [header + rng.randbytes(size) for header, size in parts]
    stream = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
    stream += b"\0\0\0\4abcd"  # too short for a header
    everything = lent_offloads(MTU)
    found, counts = [], []
    for is_lent in (False, True):
        packets = []
        with header_pair(everything, trusted=trusted) as (device, theirs), contextlib.ExitStack() as stack:
            fast = borrowed(device, stack) if is_lent else None
            left, more = stream, 40  # rounds after the last byte: each reads 64 KiB, of 1 MiB at the most
            while left or more:
                more -= not left
                with contextlib.suppress(BlockingIOError):
                    left = left[theirs.send(left[: 1 << 17]) :] if left else left
                if fast is None:
                    packets += [facts(packet) for packet in device.read_batch(64)]
                    continue
                while fast.run(0, 0, 3) and not fast.c.device_errno:
                    packets += [facts(packet) for packet in device.take_frames(fast.frames())]
                    fast.flush()
                device.flush()
            device.flush()
            found.append(packets)
            counts.append(device.drops.as_dict())
    assert found[0] == found[1]
    assert counts[0] == counts[1]


@given(OFFLOADS, st.lists(PACKETS, max_size=8))
def test_both_write_the_same_whatever_was_agreed_on(offloads: Offloads, packets: list[Packet]) -> None:
    """What the other end does not take is cut and completed; the rest goes with its header."""
    if not offloads.checksum:  # without it nothing else can be left to the other end
        offloads = dataclasses.replace(offloads, tso4=False, tso6=False, uso=False)
    arrived = []
    for is_lent in (False, True):
        data = bytearray()
        with header_pair(offloads) as (device, theirs), contextlib.ExitStack() as stack:
            if is_lent:
                borrowed(device, stack)
            queue = TransmitQueue(device, Limits(), DropCounters())
            for packet in packets:
                queue.push([packet])
                while not (queue.flush() and device.flush()):
                    data += theirs.recv(1 << 20)
            with contextlib.suppress(BlockingIOError):
                while chunk := theirs.recv(1 << 20):
                    data += chunk
            assert not device.write_errors
        arrived.append(frames_of(bytes(data)))
    assert arrived[0] == arrived[1]


def frames_of(data: bytes) -> list[tuple[bytes, int, int, int, int, int]]:
    frames, used = Deframer(QEMU, MAX_FRAME + 10, DropCounters()).find(memoryview(data))
    assert used == len(data)
    return [facts(parse_frame(frame)) for frame in frames]
