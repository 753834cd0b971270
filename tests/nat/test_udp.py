"""UDP mappings with real sockets and real error queues."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tunstack.errors import DropReason
from tunstack.ip.udp import UdpDatagram
from tunstack.limits import Limits
from tunstack.nat.udp import OFFER_AFTER

from .conftest import Namespace
from .world import (
    LOOPBACK_ALIAS,
    V4,
    V6,
    A,
    Family,
    World,
    both_families,
    closed_port,
    port_of,
    ramp,
    udp_socket,
    world,
)

GENEROUS = {"icmp_errors_per_second": 1e5, "icmp_errors_burst": 100_000}


@pytest.mark.rfc("1122", "4.1.3.5")
@both_families
def test_there_and_back_through_the_alias_of_the_loopback(f: Family) -> None:
    with world() as w, udp_socket(f.loopback) as server:
        w.send_udp(f.alias, port_of(server), b"ping", traffic_class=0xB9, hop_limit=33)
        data, source = server.recvfrom(100)
        assert data == b"ping"
        server.sendto(b"pong", source)
        w.until(lambda: w.datagrams)
        assert w.datagrams == [(f.alias, port_of(server), 5000, b"pong")]


@pytest.mark.rfc("1812", "5.3.1")
@pytest.mark.rfc("3168", "5")
@both_families
def test_ttl_and_tos_of_each_datagram_travel(f: Family) -> None:
    with world() as w, udp_socket(f.loopback) as server:
        if f is V4:
            ttl_kind, tos_kind = 2, 1
            server.setsockopt(socket.IPPROTO_IP, 12, 1)  # IP_RECVTTL
            server.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        else:
            ttl_kind, tos_kind = socket.IPV6_HOPLIMIT, socket.IPV6_TCLASS
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        for hop_limit, tos in ((64, 0), (64, 0), (9, 0x2E << 2 | 1), (64, 0), (200, 3)):
            w.send_udp(f.alias, port_of(server), b"x", hop_limit=hop_limit, traffic_class=tos)
            _, ancillary, _, _ = server.recvmsg(10, 100)
            values = {kind: value[0] for _, kind, value in ancillary}
            assert values == {ttl_kind: hop_limit - 1, tos_kind: tos}  # the gateway is a hop


@pytest.mark.rfc("3168", "5")
@both_families
def test_tos_of_an_answer_reaches_the_guest(f: Family) -> None:
    with world() as w, udp_socket(f.loopback) as server:
        w.send_udp(f.alias, port_of(server), b"x")
        _, source = server.recvfrom(10)
        level, option = (
            (socket.IPPROTO_IP, socket.IP_TOS) if f is V4 else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
        )
        server.setsockopt(level, option, 0x03)  # congestion experienced
        server.sendto(b"y", source)
        w.until(lambda: w.datagrams)
        assert w.traffic_classes[-1] == 3


@pytest.mark.rfc("4787", "REQ-1")
@both_families
def test_mapping_is_endpoint_independent_and_each_guest_port_has_its_own(f: Family) -> None:
    with world() as w, udp_socket(f.loopback) as one, udp_socket(f.loopback) as two:
        seen = []
        for server, src, src_port in (
            (one, f.guest, 1000),
            (two, f.guest, 1000),
            (one, f.guest, 1001),
            (one, f.guest_2, 1000),
        ):
            w.send_udp(f.alias, port_of(server), b"x", src=src, src_port=src_port)
            seen.append(server.recvfrom(10)[1])
        assert seen[0] == seen[1]
        assert len(set(seen)) == 3
        assert len(w.nat.udp) == 3


@pytest.mark.rfc("4787", "REQ-8")
@both_families
def test_filtering_is_address_dependent(namespace: Namespace, f: Family) -> None:
    for address in (f.host, f.stranger):
        namespace.ip("address", "add", f.bits(address), "dev", "lo")

    def scenario() -> None:
        with (
            world(allow_host=True) as w,
            udp_socket(f.host) as known,
            udp_socket(f.host) as other_port,
            udp_socket(f.stranger) as stranger,
            udp_socket(f.loopback) as local,
        ):
            w.send_udp(A(f.host), port_of(known), b"x")
            _, source = known.recvfrom(10)
            target = (f.host, source[1])  # the mapping is bound to every address
            for sender in (stranger, other_port, known):
                sender.sendto(sender.getsockname()[0].encode(), target)
            local.sendto(b"from loopback", (f.loopback, source[1]))
            w.until(lambda: len(w.datagrams) == 2 and w.dropped(DropReason.UDP_FILTERED) == 2)
            assert {port for _, port, _, _ in w.datagrams} == {port_of(known), port_of(other_port)}

    namespace.call(scenario)


@pytest.mark.rfc("4787", "REQ-8")
@both_families
def test_endpoint_independent_filtering_where_wanted(namespace: Namespace, f: Family) -> None:
    for address in (f.host, f.stranger):
        namespace.ip("address", "add", f.bits(address), "dev", "lo")

    def scenario() -> None:
        with (
            world(allow_host=True, endpoint_filtering=True) as w,
            udp_socket(f.host) as known,
            udp_socket(f.stranger) as stranger,
            udp_socket(f.loopback) as local,
        ):
            w.send_udp(A(f.host), port_of(known), b"x")
            _, source = known.recvfrom(10)
            local.sendto(b"never", (f.loopback, source[1]))
            stranger.sendto(b"hello", (f.host, source[1]))
            w.until(lambda: w.datagrams)
            w.run(0.02)
            assert [(d[0], d[3]) for d in w.datagrams] == [(A(f.stranger), b"hello")]
            assert w.dropped(DropReason.UDP_FILTERED) == 1

    namespace.call(scenario)


@pytest.mark.netns
def test_a_link_local_stranger_never_passes(namespaces: Callable[[], Namespace]) -> None:
    """Its address names an interface as well, which means nothing to the guest."""
    here, there = namespaces(), namespaces()
    here.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", there.name)
    here.ip("address", "add", f"{V6.host}/64", "dev", "v0", "nodad")
    for namespace, device, address in ((here, "v0", "fe80::10"), (there, "v1", "fe80::11")):
        namespace.sysctl(f"ipv6/conf/{device}/accept_dad", "0")
        namespace.ip("address", "add", f"{address}/64", "dev", device, "nodad")
        namespace.ip("link", "set", device, "up")
    sender = there.call(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    scope = there.call(lambda: socket.if_nametoindex("v1"))

    def scenario() -> None:
        with world(allow_host=True, endpoint_filtering=True) as w, udp_socket(V6.host) as known, sender:
            w.send_udp(A(V6.host), port_of(known), b"x")
            _, source = known.recvfrom(10)
            sender.sendto(b"hello", ("fe80::10", source[1], 0, scope))
            w.until(lambda: w.dropped(DropReason.UDP_FILTERED))
            assert w.datagrams == []

    here.call(scenario)


@both_families
def test_alternating_between_closed_and_open_loses_nothing_to_the_open_one(f: Family) -> None:
    count = 300
    with world(limits=Limits(**GENEROUS)) as w, udp_socket(f.loopback) as server:  # type: ignore[arg-type]
        closed = closed_port(socket.SOCK_DGRAM, f.loopback)
        for index in range(count):
            w.send_udp(f.alias, closed, b"nobody")
            w.send_udp(f.alias, port_of(server), index.to_bytes(2, "big"))
            assert server.recv(10) == index.to_bytes(2, "big")
        w.until(lambda: len(w.icmp) == count)
        for error in w.icmp:
            assert (error.type, error.code) == ((3, 3) if f is V4 else (1, 4))
            assert error.src == f.alias
            assert error.quoted == (f.guest, 5000, f.alias, closed)
        assert w.dropped(DropReason.UDP_SOCKET_ERROR) == 0


@pytest.mark.rfc("5508", "REQ-4")
@both_families
def test_each_error_quotes_the_datagram_of_its_own_destination(f: Family) -> None:
    with world() as w:
        ports = [closed_port(socket.SOCK_DGRAM, f.loopback) for _ in range(5)]
        for port in ports:
            w.send_udp(f.alias, port, port.to_bytes(2, "big"))
        w.until(lambda: len(w.icmp) == 5)
        assert sorted(error.quoted[3] for error in w.icmp) == sorted(ports)
        for error in w.icmp:  # the payload too is the guest's own
            assert error.data[f.header + 8 : f.header + 10] == error.quoted[3].to_bytes(2, "big")


@pytest.mark.rfc("4787", "REQ-12")
def test_errors_neither_end_nor_refresh_a_mapping() -> None:
    with world() as w:
        closed = closed_port(socket.SOCK_DGRAM)
        w.send_udp(LOOPBACK_ALIAS, closed, b"x")
        w.until(lambda: w.icmp)
        assert len(w.nat.udp) == 1
        w.skew += 121
        w.step()
        assert len(w.nat.udp) == 0


@pytest.mark.netns
@both_families
@pytest.mark.parametrize(("kind", "codes"), [("unreachable", (1, 3)), ("prohibit", (13, 1))])
def test_a_route_that_refuses_becomes_icmp(
    namespace: Namespace, kind: str, codes: tuple[int, int], f: Family
) -> None:
    namespace.ip("route", "add", kind, f.outside)

    def scenario() -> None:
        with world() as w:
            w.send_udp(A(f.destination), 9, b"x")
            w.until(lambda: w.icmp)
            assert (w.icmp[0].type, w.icmp[0].code) == ((3, codes[0]) if f is V4 else (1, codes[1]))
            assert w.icmp[0].src == f.gateway
            assert w.icmp[0].quoted == (f.guest, 5000, A(f.destination), 9)
            assert w.dropped(DropReason.UDP_SOCKET_ERROR) == 1

    namespace.call(scenario)


@pytest.mark.netns
@both_families
def test_no_route_at_all_is_net_unreachable(namespace: Namespace, f: Family) -> None:
    def scenario() -> None:
        with world() as w:
            w.send_udp(A(f.destination), 9, b"x")
            w.until(lambda: w.icmp)
            assert (w.icmp[0].type, w.icmp[0].code) == (3 if f is V4 else 1, 0)

    namespace.call(scenario)


def router(namespaces: Callable[[], Namespace], *, mtu: int = 1500) -> tuple[Namespace, Namespace, Namespace]:
    """gateway - router - far, with the far link of `mtu`; the addresses are those of `V4` and `V6`."""
    gateway, middle, far = namespaces(), namespaces(), namespaces()
    for here, there, size in ((gateway, middle, 1500), (middle, far, mtu)):
        one, two = f"v{here.name[-6:]}a", f"v{there.name[-6:]}b"
        here.ip("link", "add", one, "type", "veth", "peer", "name", two, "netns", there.name)
        for f, prefix in ((V4, 24), (V6, 64)):
            nodad = [] if f is V4 else ["nodad"]
            near, distant = (f.near, f.router) if here is gateway else (f.router_far, f.far)
            here.ip("address", "add", f"{near}/{prefix}", "dev", one, *nodad)
            there.ip("address", "add", f"{distant}/{prefix}", "dev", two, *nodad)
        here.ip("link", "set", one, "mtu", str(size), "up")
        there.ip("link", "set", two, "mtu", str(size), "up")
    for f in (V4, V6):
        gateway.ip("route", "add", "default", "via", f.router)
        far.ip("route", "add", "default", "via", f.router_far)
    middle.sysctl("ipv4/ip_forward", "1")
    middle.sysctl("ipv6/conf/all/forwarding", "1")
    return gateway, middle, far


@pytest.mark.rfc("1191", "4")
@pytest.mark.rfc("1812", "5.2.6")
@pytest.mark.rfc("4787", "REQ-13")
@pytest.mark.netns
@both_families
def test_too_big_with_df_is_told_with_the_path_mtu(namespaces: Callable[[], Namespace], f: Family) -> None:
    gateway, _, far = router(namespaces, mtu=1280)
    with far.call(lambda: socket.socket(f.socket_family, socket.SOCK_DGRAM)) as server:
        server.bind((f.far, 0))
        server.settimeout(5)

        def scenario() -> None:
            with world() as w:
                dst, port = A(f.far), port_of(server)
                # The first is refused by the router, the next by the host, which has learned the path's MTU.
                for round_ in range(2):
                    w.icmp.clear()
                    w.send_udp(dst, port, bytes(1400), dont_fragment=True)
                    w.until(lambda: w.icmp)
                    error = w.icmp[0]
                    assert (error.type, error.code, error.mtu) == (*((3, 4) if f is V4 else (2, 0)), 1280)
                    assert error.quoted == (f.guest, 5000, dst, port)
                    assert error.src == (A(f.router) if round_ == 0 else f.gateway)
                w.send_udp(dst, port, b"small", dont_fragment=True)
                assert server.recv(2000) == b"small"
                if f is V4:
                    w.send_udp(dst, port, ramp(1400))  # without DF it goes in fragments
                    assert server.recv(2000) == ramp(1400)
                assert w.dropped(DropReason.PACKET_TOO_BIG) == 1

        gateway.call(scenario)


@pytest.mark.netns
def test_a_small_datagram_after_a_queued_too_big_is_not_lost(namespaces: Callable[[], Namespace]) -> None:
    gateway, _, far = router(namespaces, mtu=1280)
    with far.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as server:
        server.bind(("198.51.100.2", 0))
        server.settimeout(5)

        def scenario() -> None:
            with world() as w:
                dst, port = A("198.51.100.2"), port_of(server)
                w.send_udp(dst, port, bytes(1400), dont_fragment=True)
                wait_for_error_queue(w)
                w.send_udp(dst, port, b"small", dont_fragment=True)
                assert server.recv(2000) == b"small"
                w.until(lambda: w.icmp)
                assert w.icmp[0].code == 4
                assert int.from_bytes(w.icmp[0].data[2:4], "big") == 1428  # the big one is quoted

        gateway.call(scenario)


def wait_for_error_queue(w: World) -> None:
    """Wait until the poller has something, without handling it."""
    import select

    select.select([w.poller], [], [], 5)


@pytest.mark.rfc("5508", "REQ-4")
@pytest.mark.netns
@both_families
def test_ttl_exceeded_comes_from_the_router_that_says_so(
    namespaces: Callable[[], Namespace], f: Family
) -> None:
    gateway, _, _ = router(namespaces)

    def scenario() -> None:
        with world() as w:
            for ttl in (1, 2, 3):
                w.send_udp(A(f.far), 33434 + ttl, b"probe", hop_limit=ttl)
                w.until(lambda: len(w.icmp) == ttl)  # noqa: B023
            exceeded, port = ((11, 0), (3, 3)) if f is V4 else ((3, 0), (1, 4))
            assert [(e.type, e.code, e.src) for e in w.icmp] == [
                (*exceeded, f.gateway),
                (*exceeded, A(f.router)),
                (*port, A(f.far)),
            ]

    gateway.call(scenario)


@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 9000, 65507])
def test_any_size_in_both_directions(size: int) -> None:
    with world() as w, udp_socket() as server:
        w.send_udp(LOOPBACK_ALIAS, port_of(server), ramp(size))
        data, source = server.recvfrom(70_000)
        assert data == ramp(size)
        server.sendto(data, source)
        w.until(lambda: w.datagrams)
        assert w.datagrams[0][3] == ramp(size)


@pytest.mark.parametrize("size", [0, 1, 1452])
def test_any_size_in_both_directions_over_ipv6(size: int) -> None:
    with world() as w, udp_socket("::1") as server:
        w.send_udp(V6.alias, port_of(server), ramp(size))
        data, source = server.recvfrom(70_000)
        assert data == ramp(size)
        server.sendto(data, source)
        w.until(lambda: w.datagrams)
        assert w.datagrams[0][3] == ramp(size)


@both_families
@pytest.mark.parametrize(("size", "piece"), [(30_000, 1000), (30_500, 1000), (65_000, 100)])
def test_a_train_arrives_as_datagrams(size: int, piece: int, f: Family) -> None:
    with world() as w, udp_socket(f.loopback) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sent = ramp(size)
        w.send_udp(f.alias, port_of(server), sent, gso_size=piece)
        if size // piece > 100:
            server.settimeout(0.2)
        received: list[bytes] = []
        while sum(map(len, received)) < size:
            received.append(server.recv(2000))
        assert b"".join(received) == sent
        assert {len(data) for data in received[:-1]} == {piece}


@pytest.mark.rfc("4787", "REQ-5")
@pytest.mark.rfc("4787", "REQ-6")
def test_idle_after_two_minutes_and_both_directions_refresh() -> None:
    with world() as w, udp_socket() as server:
        w.send_udp(LOOPBACK_ALIAS, port_of(server), b"x")
        _, source = server.recvfrom(10)
        w.skew += 119
        w.step()
        server.sendto(b"y", source)
        w.until(lambda: w.datagrams)
        w.skew += 119
        w.step()
        w.send_udp(LOOPBACK_ALIAS, port_of(server), b"z")
        assert server.recvfrom(10)[1] == source
        w.skew += 119
        w.step()
        assert len(w.nat.udp) == 1
        w.skew += 2
        w.step()
        assert len(w.nat.udp) == 0
        assert w.nat.descriptors_used == 0


@pytest.mark.rfc("4787", "REQ-5 a")
@pytest.mark.netns
def test_port_53_ends_with_the_last_outstanding_answer_or_after_ten_seconds(namespace: Namespace) -> None:
    def scenario() -> None:
        with world() as w, udp_socket("127.0.0.1", 53) as server:
            for query in (b"A", b"AAAA"):
                w.send_udp(LOOPBACK_ALIAS, 53, query)
            sources = [server.recvfrom(100)[1] for _ in range(2)]
            server.sendto(b"1", sources[0])
            w.until(lambda: len(w.datagrams) == 1)
            assert len(w.nat.udp) == 1
            server.sendto(b"2", sources[1])
            w.until(lambda: len(w.datagrams) == 2)
            assert len(w.nat.udp) == 0
            w.send_udp(LOOPBACK_ALIAS, 53, b"lost")
            w.skew += 9
            w.step()
            assert len(w.nat.udp) == 1
            w.skew += 2
            w.step()
            assert len(w.nat.udp) == 0

    namespace.call(scenario)


@pytest.mark.rfc("6888", "REQ-5")
def test_at_the_limit_the_mapping_idle_for_longest_goes() -> None:
    with world(limits=Limits(udp_mappings=3)) as w, udp_socket() as server:
        sources = {}
        for guest_port in (1, 2, 3):
            w.send_udp(LOOPBACK_ALIAS, port_of(server), b"x", src_port=guest_port)
            sources[guest_port] = server.recvfrom(10)[1]
        w.send_udp(LOOPBACK_ALIAS, port_of(server), b"x", src_port=1)
        server.recv(10)
        server.sendto(b"y", sources[2])  # what comes in keeps a mapping young too
        w.until(lambda: w.datagrams)
        w.send_udp(LOOPBACK_ALIAS, port_of(server), b"x", src_port=4)
        server.recv(10)
        assert w.dropped(DropReason.UDP_MAPPING_EVICTED) == 1
        assert len(w.nat.udp) == 3
        assert w.nat.descriptors_used == 3
        for guest_port, same in ((1, True), (2, True)):
            w.send_udp(LOOPBACK_ALIAS, port_of(server), b"x", src_port=guest_port)
            assert (server.recvfrom(10)[1] == sources[guest_port]) is same
        assert w.dropped(DropReason.UDP_MAPPING_EVICTED) == 1


@pytest.mark.rfc("6888", "REQ-5")
def test_remembered_destinations_are_bounded_for_each_and_for_all() -> None:
    limits = Limits(udp_destinations=8, udp_destinations_total=20)
    with world(limits=limits) as w:
        for guest_port in range(1, 6):
            for port in range(40_000, 40_030):
                w.send_udp(LOOPBACK_ALIAS, port, b"x", src_port=guest_port)
        remembered = [mapping.remembered for mapping in w.nat.udp._mappings.values()]
        assert max(remembered) <= 8
        assert sum(remembered) == w.nat.udp.targets <= 20 + 5
        assert min(remembered) >= 1
        w.nat.udp.close()
        assert w.nat.udp.targets == 0


def test_mappings_in_use_have_larger_receive_buffers_as_long_as_there_is_memory() -> None:
    with udp_socket() as one:
        usual = one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    size = usual + 1000
    limits = Limits(udp_receive_buffer=size, udp_receive_memory=2 * size)
    with world(limits=limits) as w, udp_socket() as server:

        def buffer_of(guest_port: int) -> int:
            sock = next(m.socket.sock for m in w.nat.udp._mappings.values() if m.guest_port == guest_port)
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

        def use(guest_port: int) -> None:
            for _ in range(OFFER_AFTER):
                w.send_udp(LOOPBACK_ALIAS, port_of(server), b"x", src_port=guest_port)

        w.send_udp(LOOPBACK_ALIAS, port_of(server), b"x", src_port=1)
        assert buffer_of(1) == usual
        for guest_port in (1, 2, 3):
            use(guest_port)
        assert [buffer_of(port) > usual for port in (1, 2, 3)] == [True, True, False]
        w.nat.udp.remove(next(iter(w.nat.udp._mappings.values())))
        use(4)
        assert buffer_of(4) > usual


def test_a_busy_mapping_does_not_starve_others() -> None:
    with world() as w, udp_socket() as busy, udp_socket() as quiet:
        w.send_udp(LOOPBACK_ALIAS, port_of(busy), b"x", src_port=1)
        w.send_udp(LOOPBACK_ALIAS, port_of(quiet), b"x", src_port=2)
        busy_source, quiet_source = busy.recvfrom(10)[1], quiet.recvfrom(10)[1]
        for _ in range(150):
            busy.sendto(b"noise", busy_source)
        quiet.sendto(b"signal", quiet_source)
        w.step()
        w.step()
        assert b"signal" in [payload for _, _, _, payload in w.datagrams]
        assert len(w.datagrams) < 100
        w.until(lambda: len(w.datagrams) == 151)


def test_ipv6_leaves_with_its_hop_limit_and_traffic_class() -> None:
    alias = A("fd00::9")
    with (
        world(host_loopback=(alias,)) as w,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server,
    ):
        server.bind(("::1", 0))
        server.settimeout(5)
        server.setsockopt(socket.IPPROTO_IPV6, 51, 1)  # IPV6_RECVHOPLIMIT
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        datagram = UdpDatagram(
            A("fd00::100"), 5000, alias, port_of(server), b"six", 17, 0x28, True, 0, bytes(48)
        )
        w.nat.handle(datagram, w.now)
        data, ancillary, _, _ = server.recvmsg(10, 100)
        assert data == b"six"
        assert {kind: value[0] for _, kind, value in ancillary} == {52: 17, 67: 0x28}
