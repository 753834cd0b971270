from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import LocalError
from tunstack.link.devices.base import Device, DeviceClosed, Offloads
from tunstack.link.devices.memory import memory_pair
from tunstack.packet import Checksum, GsoType, Packet


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 6)), max_size=40), st.integers(1, 5)
)
def test_each_direction_is_a_bounded_fifo(steps: list[tuple[bool, int, int]], capacity: int) -> None:
    ends: tuple[Device, Device] = memory_pair(capacity=capacity)
    queues: tuple[list[bytes], list[bytes]] = ([], [])
    number = 0
    for side, writes, reads in steps:
        frames = [(number + n).to_bytes(4, "big") for n in range(writes)]
        number += writes
        taken = ends[side].write_batch([Packet(frame[:1], (frame[1:],)) for frame in frames])
        assert taken == min(writes, capacity - len(queues[side]))
        queues[side].extend(frames[:taken])
        got = [packet.tobytes() for packet in ends[1 - side].read_batch(reads)]
        assert got == queues[side][:reads]
        del queues[side][:reads]


@pytest.mark.parametrize("l2", [True, False])
def test_offloads_are_turned_off_for_both_ends(l2: bool) -> None:
    able = Offloads(l2=l2, mtu=1400, checksum=True, tso4=True, max_frame=65549)
    a, b = memory_pair(able)
    b.write_batch([Packet(bytes(5000), (), 1000, GsoType.TCPV4)])
    a.set_offloads(False)
    assert a.offloads == b.offloads == Offloads(l2=l2, mtu=1400, max_frame=1414 if l2 else 1400)
    assert b.write_batch([Packet(bytes(5000), (), 1000, GsoType.TCPV4), Packet(bytes(1400))]) == 2
    assert b.write_errors == 1
    assert [len(packet) for packet in a.read_batch(10)] == [5000, 1400]
    a.set_offloads(True)
    assert a.offloads == b.offloads == able


def test_metadata_crosses_and_bytes_are_copied() -> None:
    offloads = Offloads(checksum=True, tso4=True, max_frame=65549)
    a, b = memory_pair(offloads)
    data = bytearray(b"payload!")
    a.write_batch([Packet(b"head", (data,), 4, GsoType.TCPV4, Checksum.PARTIAL, 2, 1)])
    data[:] = b"changed!"
    (packet,) = b.read_batch(10)
    assert packet.head == b"headpayload!"
    assert packet.payload == ()
    assert (packet.gso_size, packet.gso_type, packet.checksum) == (4, GsoType.TCPV4, Checksum.PARTIAL)
    assert (packet.csum_start, packet.csum_offset) == (2, 1)


def test_scribble_ends_the_loan_at_the_next_read() -> None:
    a, b = memory_pair(scribble=True)
    a.write_batch([Packet(b"first"), Packet(b"second")])
    (first,) = b.read_batch(1)
    assert first.head == b"first"
    b.read_batch(1)
    assert first.head == b"\xdd" * 5


@pytest.mark.parametrize(
    "packet",
    [
        Packet(b""),
        Packet(bytes(1515)),
        Packet(bytes(60), checksum=Checksum.PARTIAL),
        Packet(bytes(1000), gso_size=100, gso_type=GsoType.TCPV4),
    ],
)
def test_what_exceeds_the_offloads_is_an_error_and_no_refusal(packet: Packet) -> None:
    a, b = memory_pair()
    assert a.write_batch([packet, Packet(bytes(1514))]) == 2
    assert a.write_errors == 1
    assert [len(packet) for packet in b.read_batch(10)] == [1514]


def test_readiness() -> None:
    a, b = memory_pair(capacity=2)
    calls: list[str] = []
    a.on_ready = lambda: calls.append("a")
    b.on_ready = lambda: calls.append("b")
    assert a.write_batch([Packet(b"1"), Packet(b"2")]) == 2
    assert calls == ["b"]
    b.read_batch(1)
    assert calls == ["b"], "nothing was refused, so nobody waits for room"
    assert a.write_batch([Packet(b"3"), Packet(b"4")]) == 1
    calls.clear()
    b.read_batch(1)
    assert calls == ["a"]
    b.read_batch(1)
    assert calls == ["a"]
    a.close()
    assert calls == ["a", "b"]


def test_close_is_seen_after_draining() -> None:
    a, b = memory_pair()
    a.write_batch([Packet(b"1"), Packet(b"2")])
    a.close()
    a.close()
    assert len(b.read_batch(1)) == 1
    with pytest.raises(DeviceClosed):
        b.write_batch([Packet(b"x")])
    assert len(b.read_batch(5)) == 1
    for operation in (
        lambda: b.read_batch(1),
        lambda: a.read_batch(1),
        lambda: a.write_batch([Packet(b"x")]),
    ):
        with pytest.raises(DeviceClosed):
            operation()


def test_no_room_for_one_packet_is_the_callers_fault() -> None:
    with pytest.raises(LocalError):
        memory_pair(capacity=0)
