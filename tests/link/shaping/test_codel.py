"""CoDel: packets are conserved, a standing queue is cut at the times of the control law, marks are copies."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import DropReason
from tunstack.link.shaping.codel import INTERVAL, TARGET, CoDel, mark
from tunstack.link.shaping.pipeline import Pipeline
from tunstack.link.shaping.rate import Rate, Steady
from tunstack.link.shaping.stage import Memory
from tunstack.packet import Packet
from tunstack.testing.packets import Ethernet, Ipv4, Ipv6, Raw, Udp, dissect, emit

A, B = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
A6, B6 = bytes(15) + b"\x05", bytes(15) + b"\x06"


def packet(number: int, size: int = 1000, traffic_class: int = 0) -> Packet:
    body = number.to_bytes(4, "big") + bytes(size - 32)
    ip = Ipv4(src=A, dst=B, traffic_class=traffic_class)
    return Packet(emit(ip, Udp(src_port=1, dst_port=2), Raw(data=body)))


def number_of(one: Packet) -> int:
    return int.from_bytes(one.tobytes()[28:32], "big")


STEPS = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.001, 0.01, 0.2]), st.sampled_from([40, 1000, 1500])),
    max_size=200,
)


@given(STEPS, st.integers(1, 20), st.sampled_from([0, 2]))
def test_every_packet_leaves_or_is_dropped_once_and_in_order(
    steps: list[tuple[bool, float, int]], bound: int, traffic_class: int
) -> None:
    queue = CoDel(packets=bound)
    dropped: list[int] = []
    queue.drop = lambda one, reason: dropped.append(number_of(one))
    left: list[int] = []
    inside: dict[int, int] = {}
    now = 0.0
    for number, (push, gap, size) in enumerate(steps):
        now += gap
        before = len(dropped)
        if push:
            inside[number] = size
            queue.push(packet(number, size, traffic_class), now)
        elif (one := queue.pop(now)) is not None:
            left.append(number_of(one[1]))
            del inside[left[-1]]
        for gone in dropped[before:]:
            del inside[gone]
        assert len(queue) == len(inside) <= bound
        assert queue.size == sum(inside.values())
    assert left == sorted(left)
    assert not set(left) & set(dropped)


def standing(traffic_class: int, sojourn: float, seconds: float) -> tuple[list[float], CoDel]:
    """When packets are dropped or marked in a queue in which each waits `sojourn`, one in a millisecond."""
    queue = CoDel()
    acted: list[float] = []
    now = 0.0
    queue.drop = lambda one, reason: acted.append(now)
    number = 0
    backlog = round(sojourn * 1000)
    for number in range(backlog):
        queue.push(packet(number, traffic_class=traffic_class), number / 1000 - sojourn)
    for tick in range(round(seconds * 1000)):
        now = tick / 1000
        marked = queue.marked
        while len(queue) > backlog - 1:
            queue.pop(now)
        if queue.marked > marked:
            acted.append(now)
        number += 1
        queue.push(packet(number, traffic_class=traffic_class), now)
    return acted, queue


@pytest.mark.parametrize("traffic_class", [2, 1])
def test_a_standing_queue_is_marked_by_the_control_law(traffic_class: int) -> None:
    """First after an interval above the target, then interval / sqrt(n) after the n-th, on a grid of 1 ms."""
    acted, queue = standing(traffic_class, 0.02, 2.0)
    assert queue.marked == len(acted) > 20
    assert acted[0] == pytest.approx(INTERVAL, abs=0.002)
    due = acted[0]
    for count, when in enumerate(acted[1:], 1):
        due += INTERVAL / math.sqrt(count)
        assert when == pytest.approx(due, abs=0.0021)


def test_without_ecn_packets_are_dropped_instead() -> None:
    acted, queue = standing(0, 0.02, 2.0)
    assert queue.marked == 0 and len(acted) > 10
    assert acted[0] == pytest.approx(INTERVAL, abs=0.002)


def test_a_queue_below_the_target_is_left_alone() -> None:
    acted, queue = standing(2, TARGET - 0.002, 3.0)
    assert not acted and queue.marked == 0


def test_a_burst_that_passes_within_an_interval_is_left_alone() -> None:
    queue = CoDel()
    dropped: list[Packet] = []
    queue.drop = lambda one, reason: dropped.append(one)
    for number in range(60):
        queue.push(packet(number), 0.0)
    out = [number_of(one[1]) for tick in range(60) if (one := queue.pop(0.0015 * tick)) is not None]
    assert out == list(range(60)) and not dropped


def test_a_full_queue_drops_what_comes_behind_a_rate() -> None:
    queue = CoDel(packets=5)
    stage = Rate(Steady(8e6), queue, Memory(1 << 20))
    pipeline = Pipeline([stage])
    for number in range(10):
        pipeline.push(packet(number), 0.0)
    assert [number_of(one) for one in pipeline.pop(1.0)] == list(range(6))
    assert stage.dropped == {DropReason.SHAPING_QUEUE_FULL: 4}


@given(st.integers(0, 255), st.booleans(), st.booleans())
def test_a_mark_is_a_copy_with_a_right_checksum(traffic_class: int, six: bool, l2: bool) -> None:
    layers: list[object] = [Udp(src_port=1, dst_port=2), Raw(data=b"data")]
    ip = Ipv6 if six else Ipv4
    layers.insert(0, ip(src=A6 if six else A, dst=B6 if six else B, traffic_class=traffic_class))
    if l2:
        layers.insert(0, Ethernet(dst=bytes(6), src=bytes(6)))
    data = emit(*layers)
    marked = mark(Packet(data[:20], (data[20:],)), l2=l2)
    if not traffic_class & 3:
        assert marked is None
        return
    assert marked is not None
    frame = dissect(marked.tobytes(), l2=l2)
    assert not frame.problems
    assert frame.ip.traffic_class == traffic_class | 3
    assert sum(a != b for a, b in zip(frame.raw, data, strict=True)) <= 3


@given(st.binary(max_size=50), st.booleans())
def test_anything_else_is_not_marked_or_keeps_its_length(data: bytes, l2: bool) -> None:
    marked = mark(Packet(data), l2=l2)
    assert marked is None or len(marked) == len(data)
