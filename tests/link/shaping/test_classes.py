"""Different shaping for different packets, quotas, and limits for each flow."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import DropCounters, DropReason
from tunstack.limits import DEFAULT_LIMITS
from tunstack.link.shaping import flows
from tunstack.link.shaping.classes import Classes, Shaped, build_classes, inherit, release
from tunstack.link.shaping.matching import NOTHING, Match, Matcher, look
from tunstack.link.shaping.pipeline import build, read_none
from tunstack.link.shaping.spec import ShapeError, ShapeSpec
from tunstack.packet import Packet
from tunstack.testing.packets import Arp, Ethernet, Icmp, Ipv4, Ipv6, Raw, Tcp, Udp, emit

GUEST, GUEST6 = bytes([10, 0, 2, 100]), bytes(15) + b"\x64"


def address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def packet(far: str, transport: object, up: bool = True, size: int = 100) -> Packet:
    """To `far`, or from there."""
    outside = address(far)
    kind, ours = (Ipv4, GUEST) if len(outside) == 4 else (Ipv6, GUEST6)
    ip = kind(src=ours, dst=outside) if up else kind(src=outside, dst=ours)
    layers = [ip, transport, Raw(data=bytes(size))]
    return Packet(emit(*layers))  # type: ignore[arg-type]


def udp(port: int, up: bool = True) -> Udp:
    return Udp(src_port=40000, dst_port=port) if up else Udp(src_port=port, dst_port=40000)


def tcp(port: int, up: bool = True) -> Tcp:
    return Tcp(src_port=40000, dst_port=port) if up else Tcp(src_port=port, dst_port=40000)


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize(
    ("match", "fits", "does_not"),
    [
        ("udp", [("1.2.3.4", udp, 5), ("fd01::1", udp, 5)], [("1.2.3.4", tcp, 5)]),
        ("port 53", [("1.2.3.4", udp, 53), ("1.2.3.4", tcp, 53)], [("1.2.3.4", udp, 54)]),
        ("tcp port 80-89", [("1.2.3.4", tcp, 80), ("1.2.3.4", tcp, 89)], [("1.2.3.4", tcp, 90)]),
        ("to 1.2.0.0/16", [("1.2.3.4", tcp, 1)], [("1.3.3.4", tcp, 1), ("fd01::1", tcp, 1)]),
        ("to fd01::/64 udp", [("fd01::1", udp, 1)], [("fd02::1", udp, 1), ("fd01::1", tcp, 1)]),
        ("to 0.0.0.0/0", [("9.9.9.9", udp, 1)], [("fd02::1", udp, 1)]),
    ],
)
def test_what_a_match_means(match: str, fits: list, does_not: list, up: bool) -> None:  # type: ignore[type-arg]
    matcher = Matcher(Match.parse(match))
    for far, transport, port in fits:
        assert matcher.fits(look(packet(far, transport(port, up), up), l2=False, up=up))
    for far, transport, port in does_not:
        assert not matcher.fits(look(packet(far, transport(port, up), up), l2=False, up=up))


def test_icmp_fragments_arp_and_frames() -> None:
    ping = packet("1.2.3.4", Icmp(type=8))
    assert Matcher(Match.parse("icmp")).fits(look(ping, l2=False, up=True))
    assert not Matcher(Match.parse("port 0-65535")).fits(look(ping, l2=False, up=True))
    whole = packet("1.2.3.4", udp(53)).tobytes()
    later = whole[:6] + b"\x00\x05" + whole[8:]
    assert look(Packet(later), l2=False, up=True).port == -1
    frame = Packet(bytes(14) + whole)
    assert look(frame, l2=True, up=True) == look(Packet(whole), l2=False, up=True)
    arp = emit(Ethernet(dst=bytes(6), src=bytes(6)), Arp(sender_mac=bytes(6), sender=GUEST, target=GUEST))
    assert look(Packet(arp), l2=True, up=True) == NOTHING


@given(st.binary(max_size=90), st.booleans(), st.booleans())
def test_any_bytes_can_be_looked_at(data: bytes, l2: bool, up: bool) -> None:
    seen = look(Packet(data), l2=l2, up=up)
    assert seen.version in (0, 4, 6) and -1 <= seen.port <= 0xFFFF


MATCHES = st.builds(
    lambda prefix, ports, protocol: Match(prefix, min(ports), max(ports), protocol),
    st.sampled_from(["", "10.1.0.0/16", "1.2.3.4/32", "fd00::/8", "::/0"]),
    st.just((-1, -1)) | st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    st.sampled_from(["", "tcp", "udp"]),
).filter(lambda match: str(match) != "")
PARTS = st.lists(
    st.tuples(MATCHES, st.sampled_from(["delay 5ms", "loss 1%", "rate 1mbit queue fq_codel", "quota 5kb"])),
    max_size=4,
    unique_by=lambda part: part[0],
)


@given(st.sampled_from(["", "delay 1ms", "rate 1gbit perflow 5mbit"]), PARTS)
def test_what_is_printed_reads_back_as_the_same(words: str, parts: list[tuple[Match, str]]) -> None:
    own = ShapeSpec.parse(words) if words else ShapeSpec()
    classes = tuple((match, ShapeSpec.parse(part)) for match, part in parts)
    spec = ShapeSpec(delay=own.delay, rate=own.rate, perflow=own.perflow, classes=classes)
    assert ShapeSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("delay 1ms; loss 1%", "but one part between the ';' is without something to match"),
        ("udp loss 1%", "'udp' begins something to match, behind which a ':' and words come"),
        ("udp: ", "nothing is ordered"),
        ("udp: dealy 5ms", "unknown word 'dealy'"),
        ("udp: loss 1%; udp: loss 2%", "'udp:' is given twice"),
        ("udp tcp: loss 1%", "before a ':' tcp comes once"),
        ("to nowhere: loss 1%", "to: 'nowhere' is not an address or a prefix"),
        ("to 10.1.2.3/8: loss 1%", "to: '10.1.2.3/8' is not an address or a prefix"),
        ("port 70000: loss 1%", "port: '70000' is not a port"),
        ("port 5-4: loss 1%", "port: '5-4' is not a port"),
        ("port x: loss 1%", "port: 'x' is not a whole number"),
        ("icmp port 5: loss 1%", "icmp has no ports"),
        ("to: loss 1%", "before a ':' come 'to PREFIX'"),
        ("udp sideways: loss 1%", "not 'sideways'"),
        ("quota 5", "quota: '5' has no unit"),
        ("quota 0b", "quota is one byte at least"),
        ("quota 99999999999gb", "quota is between 1b and"),
        ("perflow 5", "perflow: '5' has no unit"),
        ("perflow 0mbit", "perflow is between 1bit and 1tbit"),
    ],
)
def test_each_mistake_has_its_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ShapeError) as caught:
        ShapeSpec.parse(text)
    assert sentence in str(caught.value)


def shaped(words: str, up: bool = True, drops: DropCounters | None = None) -> Shaped:
    return build_classes(ShapeSpec.parse(words), 1, DEFAULT_LIMITS, drops, read_none, up=up)


def test_the_first_class_that_fits_has_the_packet_and_all_leave_in_order_of_time() -> None:
    link = shaped("delay 30ms; udp port 53: delay 10ms; udp: delay 20ms; to fd00::/8: loss 100%")
    order = [("1.1.1.1", tcp(53)), ("1.1.1.1", udp(54)), ("fd00::1", tcp(1)), ("1.1.1.1", udp(53))]
    for number, (far, transport) in enumerate(order):
        link.push(packet(far, transport), number / 1000)
    assert link.next_timeout() == pytest.approx(0.013)
    out = link.pop_timed(1.0)
    assert [round(1000 * at) for at, _ in out] == [13, 21, 30]
    assert isinstance(link, Classes)
    names = [None if match is None else str(match) for match in link.parts()]
    assert names == [None, "udp port 53", "udp", "to fd00::/8"]


def test_what_no_part_is_for_passes_at_once() -> None:
    link = shaped("udp: delay 1s", up=False)
    link.push(packet("1.1.1.1", tcp(5, False), up=False), 5.0)
    link.push(packet("1.1.1.1", udp(5, False), up=False), 5.0)
    assert [len(link.pop(now)) for now in (5.0, 5.5, 6.0)] == [1, 0, 1]


def test_classes_take_over_from_one_another() -> None:
    drops = DropCounters()
    old = shaped("delay 1s; udp: delay 2s; tcp port 9: delay 3s", drops=drops)
    for transport in (udp(5), tcp(5), tcp(9)):
        old.push(packet("1.1.1.1", transport), 0.0)
    new = shaped("delay 5s; udp: delay 9s", drops=drops)
    inherit(new, old, 0.5)
    assert [at for at, _ in new.pop_timed(100.0)] == [1.0, 2.0, 3.0]
    new.push(packet("1.1.1.1", udp(5)), 100.0)
    assert len(release(new, 100.0)) == 1
    assert not drops.as_dict()


def test_a_quota_is_used_up_once_and_outlives_changes() -> None:
    pipeline = build(ShapeSpec.parse("quota 1000b"), 0)
    for _ in range(3):
        pipeline.push(Packet(bytes(300)), 0.0)
    assert len(pipeline.pop(0.0)) == 3
    new = build(ShapeSpec.parse("quota 1000b delay 5ms"), 0)
    new.inherit(pipeline, 0.0)
    new.push(Packet(bytes(300)), 0.0)
    new.push(Packet(bytes(100)), 0.0)
    assert [len(one) for one in new.pop(1.0)] == [100]
    assert new.statistics()[0].dropped == {DropReason.SHAPING_QUOTA: 1}


def test_no_flow_gets_more_than_its_rate_and_none_suffers_from_another() -> None:
    pipeline = build(ShapeSpec.parse("perflow 1mbit"), 0)
    sent = dict.fromkeys((1, 2, 3), 0)
    slow: list[float] = []
    for tick in range(10_000):
        now = tick / 1000
        for port in (1, 2):  # eight times what they may
            pipeline.push(packet("1.1.1.1", udp(port), size=972), now)
        if tick % 100 == 0:
            pipeline.push(packet("1.1.1.1", udp(3), size=972), now)
            slow.append(now)
        for at, one in pipeline.pop_timed(now):
            port = int.from_bytes(one.tobytes()[22:24], "big")
            sent[port] += len(one)
            if port == 3:
                assert at - slow.pop(0) == pytest.approx(0.008)
    for port in (1, 2):
        assert sent[port] * 8 / 10 == pytest.approx(1e6, rel=0.01)
    (statistics,) = pipeline.statistics()
    assert statistics.queued <= 2 * (flows.FLOOR // 1000 + 20)


def test_no_guest_gets_more_than_its_rate_whatever_its_flows() -> None:
    pipeline = build(ShapeSpec.parse("perguest 1mbit"), 0)
    for stage in pipeline.stages:
        stage.set_l2(True)
    macs = [bytes((2, 0, 0, 0, 0, number)) for number in range(2)]
    sent = dict.fromkeys(macs, 0)
    for tick in range(10_000):
        now = tick / 1000
        for guest, flow in ((0, 1), (1, 1), (1, tick)):
            head = macs[guest] + bytes(6) + b"\x08\0"
            pipeline.push(Packet(head + packet("1.1.1.1", udp(flow), size=972).tobytes()), now)
        for one in pipeline.pop(now):
            sent[bytes(one.head[:6])] += len(one)
    for count in sent.values():
        assert count * 8 / 10 == pytest.approx(1e6, rel=0.02)


def test_flows_are_bounded() -> None:
    pipeline = build(ShapeSpec.parse("perflow 1mbit"), 0)
    for port in range(flows.FLOWS + 50):
        pipeline.push(packet("1.1.1.1", udp(port % 65536)), 0.0)
    (one,) = pipeline.stages
    assert isinstance(one, flows.FlowRate)
    assert len(one._flows) == flows.FLOWS


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.001, 0.05]), st.integers(1, 3), st.integers(1, 1400)), max_size=80
    )
)
def test_packets_are_conserved_and_flows_keep_their_order(steps: list[tuple[float, int, int]]) -> None:
    pipeline = build(ShapeSpec.parse("perflow 500kbit"), 0)
    now = 0.0
    order: dict[int, list[bytes]] = {}
    out: dict[int, list[bytes]] = {}
    dropped: list[bytes] = []
    pipeline.watch(lambda one, reason: dropped.append(one.tobytes()))
    for number, (gap, port, size) in enumerate(steps):
        now += gap
        one = packet("1.1.1.1", udp(port), size=size + 4).tobytes()
        one = one[:28] + number.to_bytes(4, "big") + one[32:]
        order.setdefault(port, []).append(one)
        pipeline.push(Packet(one), now)
    for _, left in pipeline.pop_timed(1e6):
        data = left.tobytes()
        out.setdefault(int.from_bytes(data[22:24], "big"), []).append(data)
    for port, sent in order.items():
        assert out.get(port, []) == [one for one in sent if one not in dropped]
