"""The direct dialer: what the kernel says and what becomes of it."""

from __future__ import annotations

import errno
import socket
import time

import pytest

from tunstack.nat.dialer import DirectDialer, Outcome, Refusal, refusal_of, reset_and_close
from tunstack.nat.poller import EpollPoller

from .conftest import Namespace
from .world import A, Family, both_families, closed_port, listener, port_of


def dial(dst: str, port: int, timeout: float = 5.0) -> Outcome | None:
    """The outcome, None if there was none in time (the dial is then cancelled)."""
    poller = EpollPoller()
    outcomes: list[Outcome] = []
    handle = DirectDialer(poller).dial(A(dst), port, 0.0, lambda outcome, now: outcomes.append(outcome))
    deadline = time.monotonic() + timeout
    while not outcomes and time.monotonic() < deadline:
        for token, ready in poller.poll():
            token.on_ready(ready, 0.0)
        time.sleep(0.0005)
    handle.cancel()
    handle.cancel()
    assert len(poller) == 0
    poller.close()
    assert len(outcomes) <= 1
    return outcomes[0] if outcomes else None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connected(host: str) -> None:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        sock = dial(host, port_of(server))
        assert isinstance(sock, socket.socket)
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        sock.close()
        server.accept()[0].close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_refused(host: str) -> None:
    assert dial(host, closed_port(host=host)) is Refusal.REFUSED


@pytest.mark.netns
@pytest.mark.parametrize(
    ("kind", "refusal"),
    [
        ("unreachable", Refusal.UNREACHABLE),
        ("prohibit", Refusal.PROHIBITED),
        ("blackhole", Refusal.UNREACHABLE),
        ("none", Refusal.NET_UNREACHABLE),
    ],
)
@both_families
def test_routes(namespace: Namespace, kind: str, refusal: Refusal, f: Family) -> None:
    if kind != "none":
        namespace.ip("route", "add", kind, f.outside)
    assert namespace.call(lambda: dial(f.destination, 80)) is refusal


@pytest.mark.netns
def test_silence_has_no_outcome_and_can_be_cancelled(namespace: Namespace) -> None:
    silent_route(namespace)
    assert namespace.call(lambda: dial("203.0.113.1", 80, 0.1)) is None


def silent_route(namespace: Namespace) -> None:
    """A link behind which 203.0.113.0/24 swallows everything."""
    namespace.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
    namespace.ip("link", "set", "v0", "up")
    namespace.ip("link", "set", "v1", "up")
    namespace.ip("address", "add", "192.0.2.1/24", "dev", "v0")
    namespace.ip("neighbour", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:99", "dev", "v0")
    namespace.ip("route", "add", "203.0.113.0/24", "via", "192.0.2.2")


def test_without_descriptors() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    poller = EpollPoller()
    outcomes: list[Outcome] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (4, hard))
    try:
        DirectDialer(poller).dial(A("127.0.0.1"), 1, 0.0, lambda outcome, now: outcomes.append(outcome))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    poller.close()
    assert outcomes == [Refusal.NO_DESCRIPTORS]


@pytest.mark.netns
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_dial_that_meets_itself_is_refused(namespace: Namespace, host: str) -> None:
    """With one ephemeral port the kernel must choose it as the source too: simultaneous open with itself."""
    namespace.sysctl("ipv4/ip_local_port_range", "40001 40001")
    assert namespace.call(lambda: dial(host, 40001)) is Refusal.REFUSED


@pytest.mark.parametrize(
    ("code", "family", "refusal"),
    [
        (errno.ECONNREFUSED, socket.AF_INET, Refusal.REFUSED),
        (errno.ECONNRESET, socket.AF_INET, Refusal.REFUSED),
        (errno.EHOSTUNREACH, socket.AF_INET, Refusal.UNREACHABLE),
        (errno.ENETUNREACH, socket.AF_INET, Refusal.NET_UNREACHABLE),
        (errno.ETIMEDOUT, socket.AF_INET, Refusal.TIMEOUT),
        (errno.ENFILE, socket.AF_INET, Refusal.NO_DESCRIPTORS),
        (errno.EACCES, socket.AF_INET, Refusal.PROHIBITED),
        (errno.EPERM, socket.AF_INET, Refusal.PROHIBITED),
        (errno.EADDRNOTAVAIL, socket.AF_INET, Refusal.NO_DESCRIPTORS),
        (errno.EADDRNOTAVAIL, socket.AF_INET6, Refusal.NET_UNREACHABLE),
        (errno.EAFNOSUPPORT, socket.AF_INET6, Refusal.NET_UNREACHABLE),
    ],
)
def test_errnos(code: int, family: int, refusal: Refusal) -> None:
    assert refusal_of(code, family) is refusal


def test_reset_and_close_is_seen_as_a_reset() -> None:
    with listener() as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        reset_and_close(client)
        with accepted, pytest.raises(ConnectionResetError):
            accepted.recv(1)
