"""The transmit queue over a real (in-memory) device that refuses at random."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack import native
from tunstack.errors import DropCounters, DropReason
from tunstack.limits import Limits
from tunstack.link.devices.base import DeviceClosed, Offloads
from tunstack.link.devices.memory import memory_pair
from tunstack.link.transmit import TransmitQueue
from tunstack.packet import Checksum, GsoType, Packet

FULL = Offloads(l2=False, checksum=True, tso4=True, tso6=True, uso=True, max_frame=65535)
PLAIN = Offloads(l2=False, max_frame=1500)
MSS = 100


def tcp_packet(payload: bytes, *, seq: int = 1, gso: bool = True) -> Packet:
    """A TCP/IPv4 packet with the checksum left to the device; a train if it is longer than the MSS."""
    total = 40 + len(payload)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, total, 1, 0x4000, 64, 6, 0, b"\n\0\2\2", b"\n\0\2d")
    ip = ip[:10] + struct.pack("!H", 0xFFFF - native.ones_sum(ip)) + ip[12:]
    pseudo = native.ones_sum(ip[12:20] + struct.pack("!HH", 6, total - 20))
    tcp = struct.pack("!HHIIBBHHH", 80, 4000, seq, 7, 0x50, 0x10, 500, pseudo, 0)
    train = gso and len(payload) > MSS
    return Packet(
        ip + tcp,
        (memoryview(bytearray(payload)),),
        MSS if train else 0,
        GsoType.TCPV4 if train else GsoType.NONE,
        Checksum.PARTIAL,
        20,
        16,
    )


STEPS = st.lists(
    st.tuples(st.lists(st.integers(1, 60), max_size=12), st.booleans(), st.integers(0, 8)), max_size=25
)


@given(STEPS, st.integers(1, 5), st.integers(1, 10))
def test_refusals_reorder_nothing_and_every_loss_is_counted(
    steps: list[tuple[list[int], bool, int]], capacity: int, limit: int
) -> None:
    near, far = memory_pair(FULL, capacity)
    drops = DropCounters()
    queue = TransmitQueue(near, Limits(transmit_queue=limit), drops)
    pushed: list[bytes] = []
    got: list[bytes] = []
    dropped: list[bytes] = []
    for sizes, flush, reads in steps:
        buffers = [
            bytearray(len(pushed + sizes).to_bytes(2, "big") + bytes((n % 251,)) * size)
            for n, size in enumerate(sizes)
        ]
        for n, buffer in enumerate(buffers):
            buffer[:2] = (len(pushed) + n).to_bytes(2, "big")
        fresh = [bytes(buffer) for buffer in buffers]
        before = drops[DropReason.TRANSMIT_QUEUE_FULL]
        queue.push([Packet(memoryview(buffer)[:2], (memoryview(buffer)[2:],)) for buffer in buffers])
        pushed += fresh
        empty = queue.flush()
        assert empty == (len(queue) == 0)
        assert len(queue) <= limit
        lost = drops[DropReason.TRANSMIT_QUEUE_FULL] - before
        dropped += fresh[len(fresh) - lost :]
        for buffer in buffers:  # the borrowed bytes are gone now
            buffer[:] = bytes(len(buffer))
        got += [packet.tobytes() for packet in far.read_batch(reads)]
        if flush:
            queue.flush()
    while not queue.flush():
        got += [packet.tobytes() for packet in far.read_batch(100)]
    got += [packet.tobytes() for packet in far.read_batch(100)]
    assert got == [data for data in pushed if data not in set(dropped)]
    assert len(got) + drops[DropReason.TRANSMIT_QUEUE_FULL] == len(pushed)


def payload_of(frame: bytes) -> bytes:
    """The TCP payload of an IPv4 packet whose checksums are complete."""
    (total,) = struct.unpack_from("!H", frame, 2)
    assert total == len(frame)
    assert native.ones_sum(frame[:20]) == 0xFFFF
    assert native.ones_sum(frame[12:20] + struct.pack("!HH", 6, total - 20) + frame[20:]) == 0xFFFF
    return frame[40:]


@given(st.lists(st.integers(0, 1500), max_size=12), st.integers(1, 40), st.integers(1, 40))
def test_what_the_device_cannot_is_cut_and_completed_and_nothing_lost(
    sizes: list[int], capacity: int, reads: int
) -> None:
    near, far = memory_pair(PLAIN, capacity)
    drops = DropCounters()
    queue = TransmitQueue(near, Limits(), drops)
    stream = bytes(n % 251 for n in range(sum(sizes)))
    got: list[bytes] = []
    start = 0
    for size in sizes:
        packet = tcp_packet(stream[start : start + size], seq=start)
        (pages,) = packet.payload
        queue.push([packet])
        start += size
        queue.flush()
        memoryview(pages)[:] = bytes(size)  # the loan ends with the flush
        got += [payload_of(packet.tobytes()) for packet in far.read_batch(reads)]
    while not queue.flush():
        got += [payload_of(packet.tobytes()) for packet in far.read_batch(reads)]
    while batch := far.read_batch(reads):
        got += [payload_of(packet.tobytes()) for packet in batch]
    assert b"".join(got) == stream
    assert all(len(data) <= MSS for data in got)
    assert len(got) == sum(max(1, -(-size // MSS)) for size in sizes)
    assert near.write_errors == 0
    assert drops.total == 0


@pytest.mark.parametrize(
    ("lacking", "cut"),
    [
        ({}, False),
        ({"tso6": False, "uso": False}, False),
        ({"tso4": False}, True),
        ({"checksum": False}, True),
    ],
)
def test_a_train_is_cut_only_if_its_own_kind_is_lacking(lacking: dict[str, bool], cut: bool) -> None:
    near, far = memory_pair(dataclasses.replace(FULL, **lacking))
    queue = TransmitQueue(near, Limits(), DropCounters())
    queue.push([tcp_packet(bytes(1000))])
    assert queue.flush()
    packets = far.read_batch(100)
    assert len(packets) == (10 if cut else 1)
    assert near.write_errors == 0


def test_trains_that_wait_when_the_offloads_are_turned_off_are_cut() -> None:
    near, far = memory_pair(FULL, 1)
    queue = TransmitQueue(near, Limits(), DropCounters())
    queue.push([tcp_packet(bytes(1000), seq=n) for n in range(3)])
    assert not queue.flush()
    near.offloads = PLAIN
    got = []
    while not queue.flush():
        got += far.read_batch(10)
    got += far.read_batch(10)
    assert [len(packet) for packet in got] == [1040] + [140] * 20


def test_a_long_push_without_flush_does_not_grow() -> None:
    near, _far = memory_pair(FULL, 2)
    drops = DropCounters()
    queue = TransmitQueue(near, Limits(transmit_queue=4), drops)
    for _ in range(100):
        queue.push([Packet(b"x")])
        assert len(queue) <= 9
    assert not queue.flush()
    assert len(queue) == 4
    assert drops[DropReason.TRANSMIT_QUEUE_FULL] == 94


def test_a_closed_device_is_reported() -> None:
    near, far = memory_pair(FULL)
    queue = TransmitQueue(near, Limits(), DropCounters())
    far.close()
    queue.push([Packet(b"x")])
    with pytest.raises(DeviceClosed):
        queue.flush()
    near.close()
