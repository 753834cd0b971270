"""Queues as orders: FQ-CoDel serves flows in turns, protects the sparse, and lets a flood pay for itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import DropReason
from tunstack.link.shaping.fq_codel import BATCH, QUANTUM, FqCoDel, flow_key
from tunstack.link.shaping.pipeline import build
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.packet import Packet
from tunstack.testing.packets import Arp, Ethernet, Ipv4, Ipv6, Raw, Tcp, Udp, emit

A, B = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
A6, B6 = bytes(15) + b"\x05", bytes(15) + b"\x06"


def packet(flow: int, size: int = 1500, traffic_class: int = 0) -> Packet:
    ip = Ipv4(src=A, dst=B, traffic_class=traffic_class)
    return Packet(emit(ip, Udp(src_port=1000 + flow, dst_port=2), Raw(data=bytes(size - 28))))


def flow_of(one: Packet) -> int:
    return int.from_bytes(one.tobytes()[20:22], "big") - 1000


STEPS = st.lists(
    st.tuples(
        st.sampled_from([None, 0, 1, 2, 3]),
        st.sampled_from([0.0, 0.001, 0.02, 0.3]),
        st.sampled_from([60, 1000, 1500]),
    ),
    max_size=200,
)


@given(STEPS, st.integers(1, 30), st.sampled_from([0, 1]))
def test_packets_are_conserved_and_each_flow_keeps_its_order(
    steps: list[tuple[int | None, float, int]], bound: int, traffic_class: int
) -> None:
    queue = FqCoDel(packets=bound)
    ended: list[bytes] = []
    queue.drop = lambda one, reason: ended.append(one.tobytes())
    inside: dict[int, list[tuple[float, int]]] = {flow: [] for flow in range(4)}
    now = 0.0
    for flow, gap, size in steps:
        now += gap
        ended.clear()
        if flow is not None:
            queue.push(packet(flow, size, traffic_class), now)
            inside[flow].append((now, size))
        elif (entry := queue.pop(now)) is not None:
            since, one = entry
            flow = flow_of(one)
            for gone in ended:  # CoDel drops what is older than what leaves
                other = flow_of(Packet(gone))
                assert inside[other].pop(0)[1] == len(gone)
            ended.clear()
            assert inside[flow].pop(0) == (since, len(one))
        for gone in ended:
            assert inside[flow_of(Packet(gone))].pop(0)[1] == len(gone)
        assert len(queue) == sum(map(len, inside.values())) <= bound
        assert queue.size == sum(size for held in inside.values() for _, size in held)
    assert [entry[0] for entry in queue.hand_over()] == sorted(
        at for held in inside.values() for at, _ in held
    )
    assert len(queue) == queue.size == 0 and queue.pop(now) is None


def test_flows_share_by_bytes_and_not_by_packets() -> None:
    queue = FqCoDel()
    for _ in range(100):
        queue.push(packet(0, 1500), 0.0)
        for _ in range(5):
            queue.push(packet(1, 300), 0.0)
    sent = [0, 0]
    while sum(sent) < 100_000:
        entry = queue.pop(0.0)
        assert entry is not None
        sent[flow_of(entry[1])] += len(entry[1])
        assert abs(sent[0] - sent[1]) <= QUANTUM + 1500
    assert len({queue.bucket(packet(flow)) for flow in range(2)}) == 2


@pytest.mark.parametrize("way", [0, 1])
def test_guests_share_alike_however_many_flows_they_have(way: int) -> None:
    queue = FqCoDel(by_guest=True)
    queue.l2 = True
    macs = [bytes((2, 0, 0, 0, 0, number)) for number in range(3)]

    def frame(guest: int, flow: int) -> Packet:
        ends = (macs[guest], macs[2]) if way else (macs[2], macs[guest])
        return Packet(b"".join(ends) + b"\x08\0" + packet(flow, 1000).tobytes())

    for number in range(100):
        queue.push(frame(0, 0), 0.0)
        for flow in range(4):
            queue.push(frame(1, number + flow), 0.0)
    sent = dict.fromkeys(macs[:2], 0)
    for _ in range(100):
        entry = queue.pop(0.0)
        assert entry is not None
        sent[bytes(entry[1].head[6 * (1 - way) : 6 * (1 - way) + 6])] += 1
    assert all(abs(count - 50) <= 3 for count in sent.values())
    assert queue.bucket(Packet(b"")) == queue.bucket(Packet(b""))
    queue.l2 = False
    assert len({queue.bucket(packet(flow)) for flow in range(5)}) == 1


def test_who_sends_little_does_not_wait_behind_who_sends_much() -> None:
    queue = FqCoDel()
    for _ in range(50):
        queue.push(packet(0), 0.0)
    queue.pop(0.0)
    queue.push(packet(1, 100), 0.0)
    order = [flow_of(entry[1]) for _ in range(4) if (entry := queue.pop(0.0)) is not None]
    assert 1 in order[:2]


def test_a_flood_pays_for_itself_many_packets_at_once() -> None:
    queue = FqCoDel(packets=200)
    dropped: list[int] = []
    queue.drop = lambda one, reason: dropped.append(flow_of(one))
    for _ in range(10):
        queue.push(packet(1), 0.0)
    for _ in range(191):
        queue.push(packet(0), 0.0)
    assert dropped == [0] * BATCH
    assert len(queue) == 201 - BATCH


def test_a_bound_in_bytes_holds() -> None:
    queue = FqCoDel(packets=None, size=4500)
    dropped: list[DropReason] = []
    queue.drop = lambda one, reason: dropped.append(reason)
    for flow in range(5):
        queue.push(packet(flow), 0.0)
    assert queue.size == 4500 and dropped == [DropReason.SHAPING_QUEUE_FULL] * 2


def test_a_standing_queue_is_marked_where_ecn_is_known_and_dropped_elsewhere() -> None:
    for traffic_class, ecn, marks in ((1, True, True), (0, True, False), (1, False, False)):
        spec = ShapeSpec(rate=1e6, queue="fq_codel", ecn=ecn)
        pipeline = build(spec, 0)
        for tick in range(300):
            pipeline.push(packet(0, 1500, traffic_class), tick * 0.006)  # twice the rate
        pipeline.pop(1.8)
        (rate,) = pipeline.statistics()
        assert bool(rate.marked) is marks
        assert bool(rate.dropped) is not marks
        assert rate.longest > rate.sojourn > 0.012


def test_a_sparse_flow_beside_a_flood_waits_for_two_packets_at_the_most() -> None:
    pipeline = build(ShapeSpec.parse("rate 10mbit queue fq_codel"), 0)
    waits = []
    sent: list[float] = []
    for tick in range(2000):
        now = tick * 0.0006
        pipeline.push(packet(0), now)  # twice the rate
        if tick % 50 == 25:
            pipeline.push(packet(1, 100), now)
            sent.append(now)
        waits += [at - sent.pop(0) for at, one in pipeline.pop_timed(now) if flow_of(one) == 1]
    assert len(waits) >= 35
    assert max(waits) < 3 * 1500 * 8 / 10e6


def test_what_tells_flows_apart() -> None:
    tcp = emit(Ipv4(src=A, dst=B), Tcp(src_port=1, dst_port=2), Raw(data=b"x"))
    other = emit(Ipv4(src=A, dst=B), Tcp(src_port=1, dst_port=3), Raw(data=b"x"))
    udp = emit(Ipv4(src=A, dst=B), Udp(src_port=1, dst_port=2), Raw(data=b"x"))
    six = emit(Ipv6(src=A6, dst=B6), Udp(src_port=1, dst_port=2), Raw(data=b"x"))
    fragment = bytearray(udp)
    fragment[6:8] = (0x2000).to_bytes(2, "big")
    packets = [tcp, other, udp, six, bytes(fragment)]
    keys = [flow_key(Packet(data), l2=False) for data in packets]
    assert len(set(keys)) == 5
    frames = [bytes(14) + data for data in packets]
    assert [flow_key(Packet(data), l2=True) for data in frames] == keys
    arp = emit(Ethernet(dst=bytes(6), src=bytes(6)), Arp(sender_mac=bytes(6), sender=A, target=B))
    assert (
        flow_key(Packet(arp), l2=True)
        == flow_key(Packet(b""), l2=False)
        == flow_key(Packet(b"\x60"), l2=False)
    )


@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_have_a_flow(data: bytes, l2: bool) -> None:
    queue = FqCoDel()
    queue.l2 = l2
    queue.push(Packet(data), 0.0)
    entry = queue.pop(0.0)
    assert entry is not None and entry[1].tobytes() == data
