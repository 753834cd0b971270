"""Published ports: clients of the host's side reach the guest."""

from __future__ import annotations

import collections
import contextlib
import itertools
import socket
from collections.abc import Iterator

import pytest

from tunstack.errors import DropReason
from tunstack.ip.header import TCP, UDP
from tunstack.limits import Limits
from tunstack.nat.config import Publish
from tunstack.nat.forward import TcpForward, ephemeral_ports
from tunstack.nat.forward_udp import UdpForward
from tunstack.tcp.connection import Connection

from .conftest import Namespace
from .world import (
    GATEWAY,
    GUEST,
    V4,
    V6,
    A,
    Family,
    World,
    both_families,
    closed_port,
    listener,
    port_of,
    ramp,
    read_all,
    world,
)

GUEST_PORT = 8080


@contextlib.contextmanager
def published(
    protocol: int, host: str = "127.0.0.1", limits: Limits | None = None
) -> Iterator[tuple[World, int]]:
    kind = socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM
    f = V6 if ":" in host else V4
    port = closed_port(kind, f.loopback)
    publish = Publish(protocol=protocol, host=A(host), host_port=port, guest=f.guest, guest_port=GUEST_PORT)
    with world(publish=(publish,), limits=limits) as w:
        yield w, port


def client_of(port: int, host: str = "127.0.0.1") -> socket.socket:
    client = socket.create_connection((host, port))
    client.settimeout(5)
    return client


def accept(w: World) -> Connection:
    w.until(lambda: w.requests)
    return w.guest.accept(w.requests.pop(), w.now)


@both_families
def test_tcp_both_ways_from_the_gateways_address(f: Family) -> None:
    with published(TCP, f.loopback) as (w, port), client_of(port, f.loopback) as client:
        connection = accept(w)
        assert connection.remote == f.gateway
        assert connection.local_port == GUEST_PORT
        client.sendall(ramp(50_000))
        received = bytearray()
        while len(received) < 50_000:
            w.step(0.001)
            received += read_all(connection)
        assert received == ramp(50_000)
        connection.send(b"answer")
        connection.shutdown()
        w.run(0.02)
        assert client.recv(100) == b"answer"
        assert client.recv(100) == b""
        client.shutdown(socket.SHUT_WR)
        w.until(lambda: not w.nat.tcp.flows)
        assert w.nat.descriptors_used == 0


def test_nothing_is_read_from_the_client_before_the_guest_answers() -> None:
    with published(TCP) as (w, port), client_of(port) as client:
        client.sendall(b"eager")
        w.until(lambda: w.requests)
        w.run(0.05)
        (flow,) = w.nat.tcp.flows
        assert flow.opening
        assert flow._sock is not None
        assert flow._sock.recv(100, socket.MSG_PEEK) == b"eager"
        assert flow.bytes_up == flow.bytes_down == 0
        connection = accept(w)
        w.until(lambda: connection.readable == 5)


@both_families
def test_refusal_by_the_guest_resets_the_client(f: Family) -> None:
    with published(TCP, f.loopback) as (w, port), client_of(port, f.loopback) as client:
        client.sendall(b"unread")
        w.until(lambda: w.requests)
        w.guest.reset(w.requests.pop(), w.now)
        w.until(lambda: not w.nat.tcp.flows)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert w.nat.descriptors_used == 0


def test_a_guest_that_stays_silent_resets_the_client() -> None:
    with published(TCP) as (w, port), client_of(port) as client:
        w.until(lambda: w.requests)
        start = w.skew
        while w.nat.tcp.flows:
            w.skew += 1
            w.step()
            assert w.skew - start <= w.nat.limits.dial_timeout + 2
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_client_that_resets_before_the_guest_answers_ends_the_attempt() -> None:
    with published(TCP) as (w, port):
        client = client_of(port)
        w.until(lambda: w.requests)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()
        w.until(lambda: not w.nat.tcp.flows)
        assert not w.stack.connections


@pytest.mark.rfc("6888", "REQ-5")
def test_clients_beyond_the_limit_wait_in_the_backlog() -> None:
    with published(TCP, limits=Limits(forward_pending=4)) as (w, port):
        clients = [client_of(port) for _ in range(6)]
        w.until(lambda: len(w.requests) == 4)
        w.run(0.05)
        assert len(w.nat.tcp.flows) == 4
        assert not any(w.poller.poll() for _ in range(5)), "the waiting clients wake the engine"
        w.guest.accept(w.requests.pop(), w.now)
        w.until(lambda: len(w.requests) == 4)  # one place is free: the fifth
        assert len(w.nat.tcp.flows) == 5
        for client in clients:
            client.close()


def test_the_flow_limit_holds_for_clients_too() -> None:
    with published(TCP, limits=Limits(flows=4)) as (w, port):
        clients = [client_of(port) for _ in range(6)]
        w.run(0.05)
        assert w.nat.descriptors_used == 4
        for client in clients:
            client.close()


def test_a_busy_port_is_one_clear_sentence_and_leaves_nothing_open() -> None:
    with listener() as taken:
        port = port_of(taken)
        publish = Publish(protocol=TCP, host=A("127.0.0.1"), host_port=port, guest=GUEST, guest_port=80)
        other = Publish(protocol=UDP, host=A("127.0.0.1"), host_port=0, guest=GUEST, guest_port=80)
        # The world's poller and stack hold no descriptor of the NAT's.
        w = World()
        with pytest.raises(OSError, match=rf"cannot publish 127\.0\.0\.1:{port}/tcp: .* in use"):
            for one in (other, publish):
                w.nat.publish(one)
        w.close()


@both_families
def test_udp_answers_go_to_the_right_client_from_the_published_port(f: Family) -> None:
    with published(UDP, f.loopback) as (w, port):
        clients = [socket.socket(f.socket_family, socket.SOCK_DGRAM) for _ in range(3)]
        for index, client in enumerate(clients):
            client.settimeout(5)
            client.sendto(b"question %d" % index, (f.loopback, port))
        w.until(lambda: len(w.datagrams) == 3)
        assert {src for src, _, _, _ in w.datagrams} == {f.gateway}
        assert {to for _, _, to, _ in w.datagrams} == {GUEST_PORT}
        assert len({src_port for _, src_port, _, _ in w.datagrams}) == 3
        for src, src_port, _, payload in reversed(w.datagrams):
            w.send_udp(src, src_port, b"answer to " + payload, src_port=GUEST_PORT)
        for index, client in enumerate(clients):
            answer, source = client.recvfrom(100)
            assert (answer, source[:2]) == (b"answer to question %d" % index, (f.loopback, port))
            client.close()


@pytest.mark.rfc("4787", "REQ-8")
def test_udp_a_client_keeps_its_port_and_only_the_published_port_may_answer() -> None:
    with published(UDP) as (w, port), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        for _ in range(2):
            client.sendto(b"x", ("127.0.0.1", port))
        w.until(lambda: len(w.datagrams) == 2)
        assert w.datagrams[0] == w.datagrams[1]
        w.send_udp(GATEWAY, w.datagrams[0][1], b"forged", src_port=GUEST_PORT + 1)
        assert w.dropped(DropReason.UDP_FILTERED) == 1
        with pytest.raises(BlockingIOError):
            client.recv(10)


def test_udp_a_train_of_the_guest_is_cut_for_the_client() -> None:
    with published(UDP) as (w, port), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(b"x", ("127.0.0.1", port))
        w.until(lambda: w.datagrams)
        w.send_udp(GATEWAY, w.datagrams[0][1], ramp(2500), src_port=GUEST_PORT, gso_size=1000)
        assert [len(client.recv(5000)) for _ in range(3)] == [1000, 1000, 500]
        w.send_udp(GATEWAY, w.datagrams[0][1], b"", src_port=GUEST_PORT)
        assert client.recv(5000) == b""


@pytest.mark.rfc("4787", "REQ-5")
@pytest.mark.rfc("6888", "REQ-5")
def test_udp_clients_are_bounded_and_end_when_idle() -> None:
    with published(UDP, limits=Limits(udp_mappings=3)) as (w, port):
        forward = w.nat.forwards[0]
        assert isinstance(forward, UdpForward)
        clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(5)]
        for client in clients:
            client.sendto(b"x", ("127.0.0.1", port))
            w.until(lambda: w.datagrams)
            w.datagrams.clear()
        assert len(forward) == len(w.nat.services) == 3
        assert w.dropped(DropReason.UDP_MAPPING_EVICTED) == 2
        w.skew += 121
        w.step()
        assert len(forward) == len(w.nat.services) == 0
        for client in clients:
            client.close()


@pytest.mark.rfc("1122", "4.1.3.5")
@pytest.mark.netns
@both_families
def test_udp_bound_to_all_answers_from_the_address_that_was_asked(namespace: Namespace, f: Family) -> None:
    for address in (f.host, f.stranger):
        namespace.ip("address", "add", f.bits(address), "dev", "lo")

    def scenario() -> None:
        client = socket.socket(f.socket_family, socket.SOCK_DGRAM)
        with client, published(UDP, "0.0.0.0" if f is V4 else "::") as (w, port):
            client.settimeout(5)
            client.bind((f.loopback, 0))  # left to itself the kernel would answer from this address
            for address in (f.host, f.stranger):
                w.datagrams.clear()
                client.sendto(b"x", (address, port))
                w.until(lambda: w.datagrams)
                w.send_udp(f.gateway, w.datagrams[0][1], b"y", src_port=GUEST_PORT)
                answer, source = client.recvfrom(10)
                assert (answer, source[:2]) == (b"y", (address, port))

    namespace.call(scenario)


def test_closing_a_port_frees_it() -> None:
    with published(TCP) as (w, port):
        forward = w.nat.forwards.pop()
        assert isinstance(forward, TcpForward)
        forward.close()
        with pytest.raises(ConnectionRefusedError):
            client_of(port)


@pytest.mark.rfc("6056", "3.2")
@pytest.mark.rfc("6056", "3.3")
def test_ephemeral_ports_are_spread_evenly_and_follow_no_order() -> None:
    ports = list(itertools.islice(ephemeral_ports(), 10_080))
    assert 1024 <= min(ports) < 1200 and 65_300 < max(ports) < 65_536
    places = collections.Counter((port - 1024) // 1024 for port in ports)
    # Chi-square with 62 degrees of freedom: 114 is passed by chance once in twenty thousand.
    assert sum((places[n] - 160) ** 2 / 160 for n in range(63)) < 114
    steps = collections.Counter((b - a) % 64_512 for a, b in itertools.pairwise(ports))
    assert max(steps.values()) < 10
