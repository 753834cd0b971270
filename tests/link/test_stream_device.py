"""The device behind a stream socket, against a socket pair that takes and gives as little as it likes."""

from __future__ import annotations

import itertools
import random
import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import DropReason
from tunstack.limits import MAX_FRAME
from tunstack.link.devices.base import DeviceClosed
from tunstack.link.devices.stream import StreamDevice
from tunstack.link.framings import QEMU, Deframer
from tunstack.packet import Packet

MTU = 1500


@pytest.fixture
def pair() -> Iterator[tuple[StreamDevice, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    device = StreamDevice(ours, mtu=MTU)
    yield device, theirs
    device.close()
    theirs.close()


def read_all(device: StreamDevice) -> list[bytes]:
    found = []
    while select.select([device], [], [], 0)[0]:
        found += [packet.tobytes() for packet in device.read_batch(64)]
    return found


def framed(frame: bytes) -> bytes:
    return QEMU.header(len(frame)) + frame


def test_frames_of_every_kind_of_length_are_read(pair: tuple[StreamDevice, socket.socket]) -> None:
    device, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    rng = random.Random(1)
    sizes = [*range(1, 70), 1514, 9014, MAX_FRAME - 1, MAX_FRAME]
    frames = [rng.randbytes(size) for size in sizes]
    for frame in frames:
        sent = framed(frame) + framed(b"") + framed(bytes(MAX_FRAME + 1))
        found: list[bytes] = []
        while sent:
            sent = sent[theirs.send(sent) :]
            found += read_all(device)
        assert found == [frame]
    assert device.drops.as_dict() == {
        DropReason.FRAME_TOO_LONG.value: len(sizes),
        DropReason.FRAME_TOO_SHORT.value: len(sizes),
    }


@given(
    st.lists(st.tuples(st.integers(1, MTU + 14), st.integers(0, 3)), min_size=1, max_size=60),
    st.lists(st.integers(1, 40_000), max_size=30),
    st.integers(0, 2**32 - 1),
)
def test_what_is_written_arrives_whole_and_in_order(
    shapes: list[tuple[int, int]], reads: list[int], seed: int
) -> None:
    """The other end reads now and then; refused packets are offered again, as the transmit queue does."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        theirs.setblocking(False)
        device = StreamDevice(ours, mtu=MTU)
        rng = random.Random(seed)
        frames = [rng.randbytes(size) for size, _ in shapes]
        waiting = [cut(frame, pieces) for frame, (_, pieces) in zip(frames, shapes, strict=True)]
        arrived = bytearray()
        patience = iter([*reads, *[1 << 16] * (len(frames) + 200)])
        while waiting:
            taken = device.write_batch(waiting)
            del waiting[:taken]
            for packet in waiting:
                packet.detach()
            if waiting:
                arrived += theirs.recv(next(patience))
        while not device.flush():
            arrived += theirs.recv(next(patience))
        device.close()
        while chunk := theirs.recv(1 << 16):
            arrived += chunk
    found, used = Deframer(QEMU, MAX_FRAME, device.drops).find(memoryview(arrived))
    assert [bytes(frame) for frame in found] == frames
    assert used == len(arrived) and not device.write_errors


def cut(frame: bytes, pieces: int) -> Packet:
    """`frame` as a head and so many views."""
    edges = [len(frame) * part // (pieces + 1) for part in range(1, pieces + 2)]
    views = [memoryview(frame)[a:b] for a, b in itertools.pairwise(edges)]
    return Packet(frame[: edges[0]], views)


def test_what_no_frame_can_carry_is_counted_and_the_rest_goes(
    pair: tuple[StreamDevice, socket.socket],
) -> None:
    device, theirs = pair
    packets = [Packet(b""), Packet(b"one"), Packet(bytes(MTU + 15)), Packet(b"two")]
    assert device.write_batch(packets) == 4
    assert device.write_errors == 2
    assert theirs.recv(100) == framed(b"one") + framed(b"two")


def test_the_end_of_the_stream_is_the_end_of_the_device(pair: tuple[StreamDevice, socket.socket]) -> None:
    device, theirs = pair
    theirs.send(framed(b"last") + b"\0\0")
    theirs.close()
    assert [packet.tobytes() for packet in device.read_batch(64)] == [b"last"]
    with pytest.raises(DeviceClosed):
        device.read_batch(64)
    with pytest.raises(DeviceClosed):
        device.write_batch([Packet(b"late")])
