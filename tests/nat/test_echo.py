"""Pings in each of the three ways, with the gateway in a network namespace of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

from tunstack.errors import DropReason
from tunstack.limits import Limits
from tunstack.nat.echo import NOTICE

from .conftest import Namespace
from .test_udp import router
from .world import GATEWAY, V4, V6, A, Family, both_families, world

pytestmark = pytest.mark.netns

ANSWERS = A(V4.host)
RANGE = "ipv4/ping_group_range"
MODES = ("ping", "raw")


def reply_type(f: Family) -> int:
    return 0 if f is V4 else 129


def prepare(namespace: Namespace, mode: str) -> None:
    """Make `mode` the one that the kernel permits to root."""
    namespace.sysctl(RANGE, "0 2147483647" if mode == "ping" else "1 0")
    for f in (V4, V6):
        namespace.ip("address", "add", f.bits(f.host), "dev", "lo")


@pytest.mark.rfc("5508", "REQ-1")
@both_families
@pytest.mark.parametrize("mode", MODES)
def test_identifier_sequence_and_payload_come_back(namespace: Namespace, mode: str, f: Family) -> None:
    prepare(namespace, mode)

    def scenario() -> None:
        with world(allow_host=True) as w:
            assert w.nat.echo_mode == mode
            assert w.nat.notices == []
            for ident, seq, size in ((7, 1, 56), (7, 2, 0), (65535, 65535, 1000), (0, 0, 4000)):
                if f is V6 and size > 1452:
                    continue
                w.icmp.clear()
                payload = os.urandom(size)
                w.ping(A(f.host), ident=ident, seq=seq, payload=payload)
                if size > 1480:
                    w.run(0.05)  # the guest reassembles; its stack ignores replies
                    continue
                w.until(lambda: w.icmp)
                (reply,) = w.icmp
                assert (reply.type, reply.src, reply.word, reply.mtu) == (
                    reply_type(f),
                    A(f.host),
                    ident,
                    seq,
                )
                assert reply.data == payload
            assert w.drops.total == 0

    namespace.call(scenario)


@pytest.mark.rfc("6890", "2.2.2")
@both_families
@pytest.mark.parametrize("mode", MODES)
def test_only_through_the_alias_is_the_loopback_reached(namespace: Namespace, mode: str, f: Family) -> None:
    prepare(namespace, mode)

    def scenario() -> None:
        with world() as w:
            w.ping(f.alias)
            w.until(lambda: w.icmp)
            assert (w.icmp[0].type, w.icmp[0].src) == (reply_type(f), f.alias)
            w.icmp.clear()
            w.ping(A(f.loopback))
            w.ping(A(f.host))
            w.run(0.02)
            assert [(e.type, e.code) for e in w.icmp] == 2 * [(3, 13) if f is V4 else (1, 1)]

    namespace.call(scenario)


@pytest.mark.rfc("5508", "REQ-4")
@both_families
@pytest.mark.parametrize("mode", MODES)
def test_errors_quote_the_guests_own_request(
    namespaces: Callable[[], Namespace], mode: str, f: Family
) -> None:
    gateway, _, _ = router(namespaces)
    gateway.sysctl(RANGE, "0 2147483647" if mode == "ping" else "1 0")

    def scenario() -> None:
        with world() as w:
            assert w.nat.echo_mode == mode
            for seq, ttl in enumerate((1, 2, 3), 1):
                w.ping(A(f.far), ident=4242, seq=seq, hop_limit=ttl)
                w.until(lambda: len(w.icmp) == seq)  # noqa: B023
            assert [(e.type, e.src) for e in w.icmp] == [
                (11 if f is V4 else 3, f.gateway),
                (11 if f is V4 else 3, A(f.router)),
                (reply_type(f), A(f.far)),
            ]
            quoted = w.icmp[1].data
            assert quoted[: f.header].endswith(f.guest + A(f.far))
            assert quoted[f.header + 4 : f.header + 8] == (4242).to_bytes(2, "big") + (2).to_bytes(2, "big")
            assert w.icmp[2].ttl == 62  # 64, less a router, less the gateway

    gateway.call(scenario)


@both_families
@pytest.mark.parametrize("mode", MODES)
def test_a_ping_that_cannot_leave_is_answered(namespace: Namespace, mode: str, f: Family) -> None:
    prepare(namespace, mode)

    def scenario() -> None:
        with world() as w:
            w.ping(A(f.destination))
            w.until(lambda: w.icmp)
            assert (w.icmp[0].type, w.icmp[0].code) == (3 if f is V4 else 1, 0)

    namespace.call(scenario)


def test_without_any_right_the_answer_is_immediate_and_the_log_names_the_sysctl(namespace: Namespace) -> None:
    prepare(namespace, "none")

    def scenario() -> None:
        with world(allow_host=True) as w:
            assert w.nat.echo_mode == "none"
            assert w.nat.notices == [NOTICE]
            assert "net.ipv4.ping_group_range" in NOTICE
            w.ping(ANSWERS)
            w.step()
            assert [(e.type, e.code, e.src) for e in w.icmp] == [(3, 13, GATEWAY)]
            assert w.dropped(DropReason.ECHO_UNAVAILABLE) == 1
            w.icmp.clear()
            w.ping(GATEWAY)  # its own address the gateway answers all the same
            w.step()
            assert [e.type for e in w.icmp] == [0]

    namespace.call(scenario, net_raw=False)


def test_a_ping_socket_is_preferred_and_needs_no_capability(namespace: Namespace) -> None:
    prepare(namespace, "ping")

    def scenario() -> None:
        with world(allow_host=True) as w:
            assert w.nat.echo_mode == "ping"
            w.ping(ANSWERS)
            w.until(lambda: w.icmp)
            assert w.icmp[0].type == 0

    namespace.call(scenario, net_raw=False)


@pytest.mark.rfc("5508", "REQ-2")
@pytest.mark.rfc("6888", "REQ-5")
@pytest.mark.parametrize("mode", MODES)
def test_sessions_are_bounded_and_end_when_idle(namespace: Namespace, mode: str) -> None:
    prepare(namespace, mode)

    def scenario() -> None:
        with world(allow_host=True, limits=Limits(echo_sessions=4)) as w:
            for ident in range(10):
                w.icmp.clear()
                w.ping(ANSWERS, ident=ident)
                w.until(lambda: w.icmp)
                assert w.icmp[0].word == ident
            assert len(w.nat.echo) == 4
            assert w.dropped(DropReason.ECHO_LIMIT) == 6
            assert len(w.nat.echo.idents) == (4 if mode == "raw" else 0)
            w.skew += 55
            w.ping(ANSWERS, ident=9)
            w.run(0.01)
            w.skew += 6
            w.step()
            assert len(w.nat.echo) == 1
            w.skew += 55
            w.step()
            assert len(w.nat.echo) == 0
            assert w.nat.descriptors_used == 0
            assert not w.nat.echo.idents

    namespace.call(scenario)


@pytest.mark.rfc("6888", "REQ-5")
def test_requests_of_a_session_are_bounded(namespace: Namespace) -> None:
    prepare(namespace, "ping")

    def scenario() -> None:
        with world(allow_host=True) as w:
            for seq in range(500):
                w.ping(ANSWERS, seq=seq)
            w.run(0.05)
            (session,) = w.nat.echo._sessions.values()
            assert len(session._requests) <= 64

    namespace.call(scenario)


@pytest.mark.parametrize("mode", MODES)
def test_pings_of_the_host_itself_are_not_mixed_up(namespace: Namespace, mode: str) -> None:
    prepare(namespace, mode)

    def scenario() -> None:
        with world(allow_host=True) as w:
            w.ping(ANSWERS, ident=1, seq=1)
            w.until(lambda: w.icmp)
            done = subprocess.run(
                ["ping", "-c", "3", "-i", "0.01", "198.18.0.1"], capture_output=True, timeout=10
            )
            assert done.returncode == 0
            w.run(0.02)
            assert len(w.icmp) == 1

    namespace.call(scenario)
