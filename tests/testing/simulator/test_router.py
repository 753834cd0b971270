"""Routers: what they do to bytes, whom they tell of what they drop, and path MTU discovery across them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import BadPacket, DropCounters, DropReason
from tunstack.ip.addresses import parse_address
from tunstack.ip.layer import IpLayer
from tunstack.limits import DEFAULT_LIMITS
from tunstack.packet import Packet
from tunstack.testing.packets import Frame, Icmp, Ipv4, Ipv6, Raw, Udp, dissect, emit
from tunstack.testing.simulator import Host, Network, Router, Station, Transfer, What, forwarding

A, B = parse_address("10.1.0.1"), parse_address("10.2.0.1")
A6, B6 = parse_address("fd00:1::1"), parse_address("fd00:2::1")


class Collector:
    """A node that keeps what it gets, dissected."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def receive(self, packet: Packet, now: float) -> None:
        self.frames.append(dissect(packet.tobytes()))

    def poll_transmit(self, now: float) -> list[Packet]:
        return []

    def next_timeout(self) -> None:
        return None

    def handle_timeout(self, now: float) -> None:
        raise AssertionError("never asked for")


def line(mtu: int = 1500) -> tuple[Network, Station, Router, Station]:
    """a - r1 - r2 - b; `mtu` holds between the routers."""
    network = Network(seed=1)
    a = network.attach("a", Collector(), "10.1.0.1", "fd00:1::1")
    b = network.attach("b", Collector(), "10.2.0.1", "fd00:2::1")
    r1, r2 = network.router("r1", "10.1.0.254", "fd00:1::fe"), network.router("r2")
    network.link(a, r1)
    network.link(r1, r2, "delay 1ms", mtu=mtu)
    network.link(r2, b)
    return network, a, r1, b


def send(network: Network, station: Station, *layers: object) -> list[Frame]:
    """Emit one packet at `station`; what came anywhere."""
    frames = [s.node.frames for s in network.stations.values() if isinstance(s.node, Collector)]
    for one in frames:
        one.clear()
    station.emit([Packet(emit(*layers))], network.now)
    network.run(1)
    return [frame for one in frames for frame in one]


def test_a_packet_is_forwarded_with_one_hop_less_and_is_otherwise_the_same() -> None:
    network, a, _, _ = line()
    for ip in (Ipv4(src=A, dst=B, ttl=9, ident=77), Ipv6(src=A6, dst=B6, hop_limit=9)):
        (got,) = send(network, a, ip, Udp(src_port=1, dst_port=2), Raw(data=b"hello"))
        assert not got.problems, "the checksum is right"
        assert (got.ip.ttl if isinstance(got.ip, Ipv4) else got.ip.hop_limit) == 7
        assert got.payload == b"hello" and got.ip.src == ip.src
    assert got.udp == dissect(emit(ip, Udp(src_port=1, dst_port=2), Raw(data=b"hello"))).udp


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4), st.integers(2, 255), st.data())
def test_the_checksum_after_a_hop_is_the_one_that_a_full_sum_gives(
    src: bytes, dst: bytes, ttl: int, data: st.DataObject
) -> None:
    ident, kind = data.draw(st.integers(0, 0xFFFF)), data.draw(st.integers(0, 255))
    packet = emit(Ipv4(src=src, dst=dst, ttl=ttl, ident=ident, traffic_class=kind), Raw(data=b"x"))
    fewer = emit(Ipv4(src=src, dst=dst, ttl=ttl - 1, ident=ident, traffic_class=kind), Raw(data=b"x"))
    assert forwarding.one_hop_less(packet) == fewer
    assert forwarding.destination(packet) == dst and forwarding.hops_left(packet) == ttl


@given(st.binary(max_size=80))
def test_any_bytes_are_forwarded_or_refused_with_a_reason(data: bytes) -> None:
    try:
        address = forwarding.destination(data)
    except BadPacket:
        return
    assert len(address) in (4, 16) and dissect(data).ip is not None


@given(
    size=st.integers(0, 3000),
    mtu=st.integers(68, 1500),
    again=st.integers(68, 700),
    options=st.sampled_from(
        [b"", bytes([7, 3, 4, 0]), bytes([0x94, 4, 0, 0]), bytes([1, 7, 3, 4, 0x94, 4, 0, 0])]
    ),
    order=st.randoms(use_true_random=False),
)
def test_fragments_fit_and_are_put_together_by_the_receiver(
    size: int, mtu: int, again: int, options: bytes, order: random.Random
) -> None:
    body = bytes(index * 7 & 0xFF for index in range(size))
    whole = emit(Ipv4(src=A, dst=B, protocol=200, ident=9, df=False, options=options), Raw(data=body))
    pieces = forwarding.fragment(whole, mtu)
    assert all(len(piece) <= mtu for piece in pieces)
    pieces = [smaller for piece in pieces for smaller in forwarding.fragment(piece, again)]
    if size:
        assert all(len(piece) <= again and not dissect(piece).problems for piece in pieces)
        copied = {dissect(piece).ip.options for piece in pieces[1:]}
        assert copied <= {bytes([0x94, 4, 0, 0]) if 0x94 in options else b""}
        assert dissect(pieces[0]).ip.options == dissect(whole).ip.options
    order.shuffle(pieces)
    drops = DropCounters()
    layer = IpLayer(1500, DEFAULT_LIMITS, drops, random.Random(0))
    got = [header for piece in pieces if (header := layer.receive(piece, 0, 0.0)) is not None]
    assert [bytes(header.payload) for header in got] == ([body] if size else []) and drops.total == 0


@pytest.mark.parametrize("df", [True, False])
def test_ipv4_beyond_the_mtu_is_cut_or_refused(df: bool) -> None:
    network, a, r1, _ = line(mtu=1000)
    frames = send(
        network, a, Ipv4(src=A, dst=B, df=df, ident=5), Udp(src_port=1, dst_port=2), Raw(data=bytes(1300))
    )
    if df:
        (error,) = frames
        assert (error.icmp.type, error.icmp.code, error.icmp.rest) == (3, 4, 1000)
        assert error.ip.src == parse_address("10.1.0.254") and error.ip.dst == A
        assert error.quote.ip.dst == B
        assert r1.drops[DropReason.PACKET_TOO_BIG] == 1
    else:
        assert [len(frame.raw) for frame in frames] == [996, 1328 + 20 - 996]
        assert all(not frame.problems for frame in frames)


def test_ipv6_beyond_the_mtu_is_refused() -> None:
    network, a, r1, _ = line(mtu=1280)
    (error,) = send(network, a, Ipv6(src=A6, dst=B6), Udp(src_port=1, dst_port=2), Raw(data=bytes(1300)))
    assert (error.icmp.type, error.icmp.code, error.icmp.rest) == (2, 0, 1280)
    assert error.ip.src == parse_address("fd00:1::fe") and not error.problems
    r1.silent = True
    assert not send(network, a, Ipv6(src=A6, dst=B6), Udp(src_port=1, dst_port=2), Raw(data=bytes(1300)))


@pytest.mark.parametrize("family", [4, 6])
def test_traceroute_finds_every_hop(family: int) -> None:
    network, a, _, _ = line()
    hops = []
    for limit in (1, 2, 3):
        ip = Ipv4(src=A, dst=B, ttl=limit) if family == 4 else Ipv6(src=A6, dst=B6, hop_limit=limit)
        (got,) = send(network, a, ip, Udp(src_port=1, dst_port=2), Raw(data=b"?"))
        if limit < 3:
            assert (got.icmp.type, got.icmp.code) == ((11, 0) if family == 4 else (3, 0))
            assert got.ip.dst == ip.src
            hops.append(got.ip.src)
        else:
            assert got.udp is not None
    r1, r2 = network.stations["r1"], network.stations["r2"]
    assert hops == [next(x for x in r.addresses if len(x) == len(ip.src)) for r in (r1, r2)]


def test_a_router_answers_pings_and_refuses_the_rest() -> None:
    network, a, r1, _ = line()
    router = r1.addresses[0]
    (reply,) = send(
        network, a, Ipv4(src=A, dst=router), Icmp(type=8, rest=0x00010002), Raw(data=b"are you there")
    )
    assert (reply.icmp.type, reply.icmp.rest, reply.payload) == (0, 0x00010002, b"are you there")
    (error,) = send(network, a, Ipv4(src=A, dst=router), Udp(src_port=1, dst_port=2), Raw(data=b"x"))
    assert (error.icmp.type, error.icmp.code) == (3, 3)


def test_what_has_no_way_is_unreachable_and_what_is_broken_is_dropped() -> None:
    network, a, r1, _ = line()
    nowhere = parse_address("203.0.113.1")
    (error,) = send(network, a, Ipv4(src=A, dst=nowhere), Udp(src_port=1, dst_port=2), Raw(data=b"x"))
    assert (error.icmp.type, error.icmp.code) == (3, 0)
    assert not send(network, a, Ipv4(src=A, dst=B, checksum=0x1234), Raw(data=b"x"))
    assert not send(network, a, Raw(data=b""))
    assert not send(network, a, Ipv4(src=A, dst=B, total_length=900), Raw(data=b"x"))
    assert r1.drops.as_dict() == {"bad-destination": 1, "bad-ip-checksum": 1, "ip-truncated": 2}
    # An error about an error is never sent (RFC 1122 3.2.2).
    quote = emit(Ipv4(src=nowhere, dst=A), Udp(src_port=1, dst_port=2), Raw(data=b"x"))
    assert not send(network, a, Ipv4(src=A, dst=nowhere), Icmp(type=3, code=3), Raw(data=quote))


def test_the_longest_prefix_holds_and_a_route_goes_before_the_shortest_way() -> None:
    network = Network()
    names = ["x", "y", "z"]
    r = network.router("r")
    ends = {name: network.attach(name, Collector(), f"10.{i}.0.1") for i, name in enumerate(names)}
    a = network.attach("a", Collector(), "10.1.0.9")
    for station in (*ends.values(), a):
        network.link(r, station)
    r.route("0.0.0.0/0", "x")
    r.route("10.2.0.0/16", ends["y"])
    r.route("10.2.3.0/24", "z")

    def taken(address: str) -> str:
        send(network, a, Ipv4(src=A, dst=parse_address(address)), Raw(data=b"x"))
        (name,) = [name for name, station in ends.items() if station.node.frames]
        return name

    assert [taken(address) for address in ("8.8.8.8", "10.2.9.9", "10.2.3.4", "10.2.0.1")] == [
        "x",
        "y",
        "z",
        "y",
    ]
    assert r.routes()[0] == ("10.2.3.0/24", "z")


def test_a_new_link_is_used() -> None:
    network = Network()
    a, b = network.attach("a", Collector(), "10.1.0.1"), network.attach("b", Collector(), "10.2.0.1")
    r, s = network.router("r"), network.router("s")
    network.link(a, r)
    network.link(s, b)
    (error,) = send(network, a, Ipv4(src=A, dst=B), Raw(data=b"x"))
    assert error.icmp is not None
    network.link(r, s)
    (got,) = send(network, a, Ipv4(src=A, dst=B), Raw(data=b"x"))
    assert got.ip.dst == B


def hosts(mtu: int, family: int) -> tuple[Network, Host, Host, list[Router]]:
    network = Network(seed=4)
    addresses = ("10.1.0.1", "10.2.0.1") if family == 4 else ("fd00:1::1", "fd00:2::1")
    client, server = network.host("client", addresses[0]), network.host("server", addresses[1])
    routers = [network.router(f"r{i}") for i in range(3)]
    network.link(client, routers[0], "delay 1ms")
    network.link(routers[0], routers[1], "delay 10ms")
    network.link(routers[1], routers[2], "delay 10ms", mtu=mtu)
    network.link(routers[2], server, "delay 1ms")
    return network, client, server, routers


@pytest.mark.parametrize(
    ("family", "mtu", "silent"),
    [(4, 1400, False), (4, 576, False), (6, 1280, False), (4, 1400, True), (6, 1280, True)],
)
def test_path_mtu_discovery_finds_the_narrow_link_also_where_routers_are_silent(
    family: int, mtu: int, silent: bool
) -> None:
    """RFC 1191 and 8201 by the errors; without them RFC 4821, which ends at 1024 and 1280 bytes."""
    network, client, server, routers = hosts(mtu, family)
    for router in routers:
        router.silent = silent
    transfer = Transfer(client, server, 300_000)
    sizes: list[int] = []
    network.directions["r1>r2"].observers.append(
        lambda now, what, way, packet, reason: sizes.append(len(packet)) if what is What.ARRIVED else None
    )
    assert network.run_until(lambda: transfer.done, 600)
    assert max(sizes) <= mtu
    assert routers[1].drops[DropReason.PACKET_TOO_BIG] > 0
    if not silent:
        assert max(sizes) > mtu - 16, "segments fill the path"
        assert transfer.connection.sender.timeouts == 0
        assert transfer.ended is not None and transfer.ended < 2


def test_large_datagrams_cross_in_fragments() -> None:
    network, client, server, _ = hosts(576, 4)
    got: list[bytes] = []

    class Service:
        def datagram(self, datagram: object, now: float) -> None:
            got.append(bytes(datagram.payload))  # type: ignore[attr-defined]

    server.services[17, server.address, 53] = Service()
    payload = bytes(range(250)) * 12
    client.stack.send_udp(client.address, 1000, server.address, 53, payload, network.now)
    network.run(5)
    assert got == [payload]
    client.stack.send_udp(client.address, 1000, server.address, 54, b"?", network.now)
    network.run(5)
    assert [error.quoted_dst_port for error in client.errors] == [54]
