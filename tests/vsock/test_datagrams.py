"""UDP that follows routes: over streams between two gateways, to services of the host, and by SOCKS5."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.nat.world import GUEST, GUEST_2, GUEST_6, LOOPBACK_ALIAS, A, World, closed_port, port_of, world
from tests.vsock.stand_ins import Monitor, SocksRelay
from tests.vsock.test_dialers import OUTSIDE, SERVICE, SERVICE_6, at_path, routed
from tunstack.errors import DropReason
from tunstack.limits import Limits
from tunstack.nat.forward_datagrams import DatagramForward
from tunstack.vsock.addresses import UdpAddress
from tunstack.vsock.datagrams import SocketOpener, accept_datagrams
from tunstack.vsock.routes import RouteSpec


@contextlib.contextmanager
def udp_service() -> Iterator[socket.socket]:
    """A socket of the host's loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        yield sock


def listen(w: World, path: pathlib.Path, target: tuple[bytes, int] | UdpAddress) -> DatagramForward:
    """A forward of `w` at a UNIX socket."""
    where = SocketOpener(target) if isinstance(target, UdpAddress) else target
    sock = at_path(path)
    sock.setblocking(False)
    return w.nat.forward_datagrams(sock, accept_datagrams, where)


@contextlib.contextmanager
def two_gateways(path: pathlib.Path, guest: bytes) -> Iterator[tuple[World, World]]:
    """One whose route leads to the other's forward, which leads to `guest`, port 53."""
    service = "10.0.2.50" if len(guest) == 4 else "[fd00::50]"
    with world() as other, routed(f"{service}:53/udp=unix://{path}") as w:
        listen(other, path, (guest, 53))
        yield w, other


def until(worlds: tuple[World, World], condition: Callable[[], object]) -> None:
    """Run both until `condition` holds."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        for w in worlds:
            w.step(0.002)


@pytest.mark.parametrize(
    ("guest", "size"),
    [
        (GUEST, 0),
        (GUEST, 7),
        (GUEST, 3000),
        (GUEST, 40_000),
        (GUEST_6, 0),
        (GUEST_6, 3000),
        (GUEST_6, 40_000),
    ],
)
def test_from_a_guest_to_another_ones_guest_and_back(guest: bytes, size: int, tmp_path: pathlib.Path) -> None:
    service = SERVICE if len(guest) == 4 else SERVICE_6
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    with two_gateways(tmp_path / "stream", guest) as worlds:
        near, far = worlds
        near.send_udp(service, 53, payload)
        until(worlds, lambda: far.datagrams)
        ((source, source_port, port, got),) = far.datagrams
        assert (port, got) == (53, payload)
        far.send_udp(source, source_port, b"answer", src_port=53)
        until(worlds, lambda: near.datagrams)
        assert near.datagrams == [(service, 53, 5000, b"answer")]


def test_each_guest_port_is_a_client_of_its_own(tmp_path: pathlib.Path) -> None:
    with two_gateways(tmp_path / "stream", GUEST) as worlds:
        near, far = worlds
        for port in range(6000, 6020):
            near.send_udp(SERVICE, 53, b"%d" % port, src_port=port)
        until(worlds, lambda: len(far.datagrams) == 20)
        assert len({source_port for _, source_port, _, _ in far.datagrams}) == 20
        for source, source_port, _, payload in far.datagrams:
            far.send_udp(source, source_port, b"to " + payload, src_port=53)
            far.send_udp(source, source_port, b"not from there", src_port=54)
            far.send_udp(source, source_port, b"nor from there", src_port=53, src=GUEST_2)
        until(worlds, lambda: len(near.datagrams) == 20)
        assert {(port, payload) for _, _, port, payload in near.datagrams} == {
            (port, b"to %d" % port) for port in range(6000, 6020)
        }
        assert far.dropped(DropReason.UDP_FILTERED) == 40
        assert near.nat.descriptors_used == far.nat.descriptors_used == 20

        near.skew += near.nat.limits.udp_idle + 1
        until(worlds, lambda: not near.nat.udp.routed and not far.nat.descriptors_used)
        assert not near.nat.descriptors_used
        near.send_udp(SERVICE, 53, b"anew")
        until(worlds, lambda: far.datagrams[-1][3] == b"anew")


def test_a_train_of_datagrams_is_sent_as_such(tmp_path: pathlib.Path) -> None:
    with two_gateways(tmp_path / "stream", GUEST) as worlds:
        near, far = worlds
        near.send_udp(SERVICE, 53, b"abcabcabcd", gso_size=3)
        until(worlds, lambda: len(far.datagrams) == 4)
        assert [payload for *_, payload in far.datagrams] == [b"abc", b"abc", b"abc", b"d"]


def test_a_guest_that_floods_before_the_stream_is_there_is_bounded(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "stream"
    with at_path(path) as silent, routed(f"10.0.2.50:53/udp=unix://{path}") as w:
        for _ in range(1000):
            w.send_udp(SERVICE, 53, bytes(1400))
        assert w.dropped(DropReason.UDP_SOCKET_FULL) > 900
        w.skew += w.nat.limits.dial_timeout
        w.until(lambda: w.icmp)
        assert (w.icmp[0].type, w.icmp[0].code) == (3, 1)  # nobody answers there
        assert not w.nat.udp.routed and not w.nat.descriptors_used
        silent.accept()[0].close()


@pytest.mark.parametrize("there", ["nothing", "another service", "a service that closes"])
def test_where_no_datagrams_are_carried_the_guest_is_told(there: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "stream"
    with contextlib.ExitStack() as stack:
        if there != "nothing":
            server = stack.enter_context(at_path(path))
        w = stack.enter_context(routed(f"10.0.2.50:53/udp=unix://{path}"))
        w.send_udp(SERVICE, 53, b"question")
        if there != "nothing":
            w.step()
            client, _ = server.accept()
            assert client.recv(100) == b"TUNSTACK DATAGRAMS 1\n"
            client.sendall(b"SSH-2.0\r\n" if there == "another service" else b"")
            client.close()
        w.until(lambda: w.icmp)
        assert (w.icmp[0].type, w.icmp[0].code) == (3, 1 if there == "another service" else 3)
        assert w.icmp[0].quoted == (GUEST, 5000, SERVICE, 53)
        assert not w.nat.udp.routed and w.dropped(DropReason.UDP_SOCKET_ERROR) == 1


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"x" * 1000, b"TUNSTACK DATAGRAMS 2\n", b""])
def test_a_stream_that_does_not_begin_so_is_closed(said: bytes, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "stream"
    with world() as w, socket.socket(socket.AF_UNIX) as client:
        forward = listen(w, path, (GUEST, 53))
        client.connect(str(path))
        client.settimeout(5)
        client.sendall(said)
        if said:
            w.until(lambda: w.nat.descriptors_used)
        else:
            w.run(0.02)
            w.skew += w.nat.limits.dial_timeout  # it says nothing at all
        w.until(lambda: not w.nat.descriptors_used and not forward.clients)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""
        assert not w.datagrams


def test_a_stream_to_a_service_of_the_host(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "stream"
    with udp_service() as service, world() as far, routed(f"10.0.2.50:53/udp=unix://{path}") as near:
        forward = listen(far, path, UdpAddress("127.0.0.1", port_of(service)))
        near.send_udp(SERVICE, 53, b"question")
        until((near, far), lambda: forward.clients and near.nat.udp.routed and far.nat.descriptors_used == 2)
        for _ in range(20):
            near.step(0.002)
            far.step(0.002)
        payload, sender = service.recvfrom(100)
        assert payload == b"question"
        service.sendto(b"answer", sender)
        until((near, far), lambda: near.datagrams == [(SERVICE, 53, 5000, b"answer")])
        far.nat.stop_forward(forward)
        assert not far.nat.descriptors_used
        until((near, far), lambda: not near.nat.udp.routed)  # its stream has ended


def test_a_route_to_a_service_of_the_host() -> None:
    with udp_service() as service, routed(f"10.0.2.50/udp=udp://127.0.0.1:{port_of(service)}") as w:
        for port in (53, 54):
            w.send_udp(SERVICE, port, b"question")
            w.step()
            payload, sender = service.recvfrom(100)
            assert payload == b"question"
            service.sendto(b"answer", sender)
            w.until(lambda: w.datagrams)
            assert w.datagrams.pop() == (SERVICE, port, 5000, b"answer")
        assert len(w.nat.udp.routed) == 2
        # TCP to there is another matter.
        connection = w.connect(SERVICE, 53)
        w.until(lambda: connection.closed)


def test_a_route_that_comes_later_takes_over_what_a_mapping_has_carried() -> None:
    with udp_service() as before, udp_service() as after, world() as w:
        host = (LOOPBACK_ALIAS, port_of(before))
        w.send_udp(*host, b"one")
        _, sender = before.recvfrom(100)
        before.sendto(b"answer", sender)
        w.until(lambda: w.datagrams)
        (mapping,) = w.nat.udp._mappings.values()
        assert mapping.admitted(host) is not None
        spec = RouteSpec.parse(f"10.0.2.9/udp=udp://127.0.0.1:{port_of(after)}")
        route = spec.route(w.poller)
        w.nat.add_route(route)
        assert mapping.admitted(host) is None  # no accelerator may go on with it
        w.send_udp(*host, b"two")
        assert after.recv(100) == b"two"
        w.nat.remove_route(route)
        assert mapping.admitted(host) is not None
        w.send_udp(*host, b"three")
        assert before.recv(100) == b"three"


def test_a_service_of_the_host_that_is_not_there() -> None:
    with udp_service() as gone:
        port = port_of(gone)
    with routed(f"10.0.2.50/udp=udp://127.0.0.1:{port}") as w:
        w.send_udp(SERVICE, 53, b"question")
        w.until(lambda: w.icmp)
        assert (w.icmp[0].type, w.icmp[0].code, w.icmp[0].src) == (3, 3, SERVICE)


def test_hybrid_vsock(tmp_path: pathlib.Path) -> None:
    path, stream = tmp_path / "monitor", tmp_path / "stream"

    def dial() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(stream))
        return sock

    with (
        world() as far,
        Monitor(at_path(path), dial) as monitor,
        routed(f"10.0.2.50:53/udp=unix://{path}?port=52") as near,
    ):
        listen(far, stream, (GUEST, 53))
        near.send_udp(SERVICE, 53, b"question")
        until((near, far), lambda: far.datagrams)
        assert monitor.asked == [b"CONNECT 52\n"]


def test_flows_are_bounded_and_the_one_idle_for_longest_goes(tmp_path: pathlib.Path) -> None:
    with udp_service() as service, world(limits=Limits(udp_mappings=4)) as w:
        route = RouteSpec.parse(f"10.0.2.50/udp=udp://127.0.0.1:{port_of(service)}").route(w.poller)
        w.nat.add_route(route)
        w.stack.own_addresses.add(SERVICE)
        for port in range(6000, 6010):
            w.send_udp(SERVICE, 53, b"x", src_port=port)
        assert len(w.nat.udp.routed) == w.nat.descriptors_used == 4
        assert w.dropped(DropReason.UDP_MAPPING_EVICTED) == 6
        w.nat.remove_route(route)
        assert not w.nat.udp.routed and not w.nat.descriptors_used


def test_without_descriptors_datagrams_are_dropped() -> None:
    with udp_service() as service, world() as w:
        spec = RouteSpec.parse(f"10.0.2.50/udp=udp://127.0.0.1:{port_of(service)}")
        w.nat.add_route(spec.route(w.poller))
        w.stack.own_addresses.add(SERVICE)
        w.nat._context.budget.limit = 0
        w.send_udp(SERVICE, 53, b"x")
        assert w.dropped(DropReason.FLOW_LIMIT) == 1 and not w.nat.udp.routed
        w.nat._context.budget.limit = 1
        w.send_udp(SERVICE, 53, b"x")
        w.send_udp(SERVICE, 53, b"x", src_port=5001)
        assert w.dropped(DropReason.UDP_MAPPING_EVICTED) == 1 and len(w.nat.udp.routed) == 1


@contextlib.contextmanager
def relay(login: tuple[bytes, bytes] | None = None) -> Iterator[SocksRelay]:
    with SocksRelay(socket.create_server(("127.0.0.1", 0)), socket.socket, 1) as made:
        made.login = login
        yield made


@pytest.mark.parametrize("bound", [bytes(4), A("127.0.0.1"), bytes(16)])
@pytest.mark.parametrize("login", [None, (b"me", b"p:w%")])
def test_a_socks5_proxy_relays(login: tuple[bytes, bytes] | None, bound: bytes) -> None:
    user = "" if login is None else "me:p%3Aw%25@"
    with relay(login) as proxy:
        proxy.bound = bound
        port = port_of(proxy.listener)
        with routed(f"0.0.0.0/0:1-9999/udp=socks5://{user}127.0.0.1:{port}") as w:
            w.send_udp(OUTSIDE, 53, b"question")
            w.until(lambda: w.datagrams)
            assert w.datagrams == [(OUTSIDE, 53, 5000, b"by proxy: question")]
            other = A("198.18.0.2")
            w.send_udp(other, 54, b"to another")
            w.until(lambda: len(w.datagrams) == 2)
            assert w.datagrams[1] == (other, 54, 5000, b"by proxy: to another")
            # Both left by one association, RFC 4787 REQ-1.
            assert len(w.nat.udp.routed) == 1 and w.nat.descriptors_used == 2
            assert proxy.asked == [(bytes(4), 0), (OUTSIDE, 53), (other, 54)]
            # What policy refuses does not go to a proxy, nor what means the host's loopback.
            w.send_udp(A("169.254.169.254"), 53, b"metadata")
            assert w.dropped(DropReason.POLICY) == 1
            with udp_service() as service:
                w.send_udp(LOOPBACK_ALIAS, port_of(service), b"mine")
                assert service.recv(100) == b"mine"
                assert len(proxy.asked) == 3


def test_what_a_proxy_relays_of_strangers_is_filtered() -> None:
    class Wrong(SocksRelay):
        def relay(self, sock: socket.socket, sender: object, data: bytes) -> None:
            for wrong in (
                data[:2],
                data[:3] + b"\x03" + data[4:],  # a name
                b"\x00\x00\x01" + data[3:],  # a fragment
                data[:9],
                data[:4] + A("198.18.0.7") + data[8:],  # nobody that was asked
                b"",
            ):
                sock.sendto(wrong, sender)
            sock.sendto(data[:8] + b"\x00\x63" + data[10:], sender)  # another port, which may answer

    with (
        Wrong(socket.create_server(("127.0.0.1", 0)), socket.socket, 1) as proxy,
        routed(f"0.0.0.0/0/udp=socks5://127.0.0.1:{port_of(proxy.listener)}") as w,
    ):
        w.send_udp(OUTSIDE, 53, b"question")
        w.until(lambda: w.datagrams)
        assert w.datagrams == [(OUTSIDE, 99, 5000, b"question")]
        assert w.dropped(DropReason.UDP_FILTERED) == 6


def test_an_association_ends_with_its_connection() -> None:
    with relay() as proxy, routed(f"0.0.0.0/0/udp=socks5://127.0.0.1:{port_of(proxy.listener)}") as w:
        w.send_udp(OUTSIDE, 53, b"question")
        w.until(lambda: w.datagrams)
        w.send_udp(OUTSIDE, 53, SocksRelay.END)
        w.until(lambda: not w.nat.udp.routed)
        assert not w.nat.descriptors_used


@pytest.mark.parametrize(("reply", "code"), [(1, 1), (2, 13), (7, 13)])
def test_a_proxy_that_does_not_relay(reply: int, code: int) -> None:
    with relay() as proxy, routed(f"0.0.0.0/0/udp=socks5://127.0.0.1:{port_of(proxy.listener)}") as w:
        proxy.reply = reply
        w.send_udp(OUTSIDE, 53, b"question")
        w.until(lambda: w.icmp)
        assert (w.icmp[0].type, w.icmp[0].code) == (3, code)


def test_no_descriptor_is_left(tmp_path: pathlib.Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    test_a_proxy_that_does_not_relay(1, 1)
    test_a_guest_that_floods_before_the_stream_is_there_is_bounded(tmp_path)
    test_an_association_ends_with_its_connection()
    with routed(f"0.0.0.0/0/udp=socks5://127.0.0.1:{closed_port()}") as w:
        w.send_udp(OUTSIDE, 53, b"question")
        w.until(lambda: w.icmp)
    assert sorted(os.listdir("/proc/self/fd")) == before
