"""TCP from the guest to sockets of the host, on loopback."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import struct
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunstack.errors import DropReason
from tunstack.limits import PAGE_SIZE, Limits
from tunstack.nat.dialer import Dial, Done, Refusal, reset_and_close
from tunstack.nat.tcp_flow import TcpFlow
from tunstack.tcp.connection import CloseReason, Connection

from .conftest import Namespace
from .test_dialer import silent_route
from .world import (
    GUEST_2,
    LOOPBACK_ALIAS,
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

OUTSIDE = A("198.18.0.1")
"""For dialers of tests only; nothing is sent there."""


def collect(connection: Connection, received: bytearray) -> Connection:
    received += read_all(connection)
    return connection


class Silent:
    """A dialer whose destinations never answer, but for the ports in `good`."""

    def __init__(self) -> None:
        self.good: dict[int, socket.socket | Refusal] = {}
        self.dialled: list[tuple[bytes, int]] = []
        self.cancelled = 0

    def dial(self, dst: bytes, dst_port: int, now: float, done: Done) -> Dial:
        self.dialled.append((dst, dst_port))
        if dst_port in self.good:
            done(self.good[dst_port], now)
        return self

    def cancel(self) -> None:
        self.cancelled += 1


def joined(w: World, server: socket.socket) -> tuple[Connection, socket.socket]:
    """A flow from the guest to `server`: the guest's end and the outer end."""
    alias = V4.alias if server.family == socket.AF_INET else V6.alias
    connection = w.connect(alias, port_of(server))
    w.until(lambda: connection.established)
    outer, _ = server.accept()
    outer.settimeout(5)
    w.run(0.01)
    return connection, outer


@pytest.mark.rfc("9293", "MUST-12")
@both_families
def test_bytes_and_half_close_in_both_directions(f: Family) -> None:
    with world() as w, listener(f.loopback) as server:
        connection, outer = joined(w, server)
        with outer:
            connection.send(b"question")
            connection.shutdown()
            w.run(0.02)
            assert outer.recv(100) == b"question"
            assert outer.recv(100) == b""  # the guest's FIN, while the other way is open
            outer.sendall(b"answer")
            w.until(lambda: connection.readable)
            assert read_all(connection) == b"answer"
            assert not connection.receive_eof
            outer.shutdown(socket.SHUT_WR)
            w.until(lambda: connection.receive_eof)
        w.until(lambda: not w.nat.tcp.flows)
        assert w.nat.descriptors_used == 0
        assert w.resets == []


@pytest.mark.rfc("9293", "MUST-12")
@both_families
def test_outer_end_closes_first_and_the_guest_goes_on_sending(f: Family) -> None:
    with world() as w, listener(f.loopback) as server:
        connection, outer = joined(w, server)
        with outer:
            outer.sendall(b"greeting")
            outer.shutdown(socket.SHUT_WR)
            w.until(lambda: connection.readable == 8)
            assert read_all(connection) == b"greeting"
            w.until(lambda: connection.receive_eof)
            connection.send(b"more")
            w.run(0.02)
            assert outer.recv(100) == b"more"
            connection.shutdown()
            w.until(lambda: not w.nat.tcp.flows)
            assert outer.recv(100) == b""


@pytest.mark.rfc("9293", "3.10.7.1")
@both_families
def test_refused_is_a_reset_at_once_and_the_guest_never_sees_syn_ack(f: Family) -> None:
    with world() as w:
        start = time.monotonic()
        connection = w.connect(f.alias, closed_port(host=f.loopback))
        w.until(lambda: connection.closed)
        assert time.monotonic() - start < 0.05
        assert connection.error is CloseReason.REFUSED
        assert w.nat.descriptors_used == 0
        assert len(w.poller) == 1  # the host's addresses


@both_families
@pytest.mark.parametrize("size", [8_000_000])
def test_bulk_in_both_directions_at_once(size: int, f: Family) -> None:
    with world() as w, listener(f.loopback) as server:
        connection, outer = joined(w, server)
        with outer:
            outer.setblocking(False)
            up, down = bytearray(), bytearray()
            sent_up = sent_down = 0
            data = ramp(size)
            deadline = time.monotonic() + 20
            while len(up) < size or len(down) < size:
                assert time.monotonic() < deadline, (len(up), len(down))
                sent_up += connection.send(data[sent_up : sent_up + 65536]) if sent_up < size else 0
                down += read_all(connection)
                with contextlib.suppress(BlockingIOError):
                    if sent_down < size:
                        sent_down += outer.send(data[sent_down : sent_down + 262144])
                with contextlib.suppress(BlockingIOError):
                    up += outer.recv(1 << 20)
                w.step()
            assert up == data
            assert down == data
            (flow,) = w.nat.tcp.flows
            assert (flow.bytes_up, flow.bytes_down) == (size, size)


def test_a_server_that_does_not_read_closes_the_guests_window_and_loses_nothing() -> None:
    with world() as w, listener() as server:
        connection, outer = joined(w, server)
        with outer:
            data = ramp(30_000_000)
            sent = 0
            idle = 0
            while idle < 50:  # until nothing moves any more
                count = connection.send(data[sent : sent + 65536])
                sent += count
                idle = 0 if count else idle + 1
                w.step(0.001)
            assert sent < len(data), "nothing pushed back"
            held = next(iter(w.stack.connections.values())).readable
            assert held <= w.stack.limits.receive_buffer
            connection.shutdown()
            outer.setblocking(False)
            received = bytearray()
            deadline = time.monotonic() + 10
            while True:
                assert time.monotonic() < deadline
                try:
                    if not (piece := outer.recv(1 << 20)):
                        break
                    received += piece
                except BlockingIOError:
                    w.step(0.001)
            assert received == data[:sent]


def test_a_guest_that_does_not_read_stops_the_server() -> None:
    with world() as w, listener() as server:
        connection, outer = joined(w, server)
        with outer:
            outer.setblocking(False)
            data = ramp(60_000_000)
            sent = idle = 0
            while idle < 100:
                try:
                    sent += outer.send(data[sent : sent + 262144])
                    idle = 0
                except BlockingIOError:
                    idle += 1
                w.step(0.001)
            assert sent < len(data)
            gateway_side = next(iter(w.stack.connections.values()))
            assert gateway_side.unacked <= w.stack.limits.send_buffer
            received = bytearray()
            outer.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + 15
            while not connection.receive_eof:
                assert time.monotonic() < deadline
                received += read_all(connection)
                w.step(0.0005)
            assert received == data[:sent]


def test_a_stalled_flow_causes_no_wake_ups() -> None:
    with world() as w, listener() as server:
        connection, outer = joined(w, server)
        with outer:
            outer.setblocking(False)
            idle = 0
            while idle < 20:
                try:
                    outer.send(bytes(1 << 18))
                    idle = 0
                except BlockingIOError:
                    idle += 1
                w.step(0.001)
            outer.shutdown(socket.SHUT_WR)
            assert not any(w.poller.poll() for _ in range(20))
            assert not connection.closed


@pytest.mark.rfc("9293", "MUST-12")
@both_families
def test_reset_by_the_guest_resets_the_host_socket(f: Family) -> None:
    with world() as w, listener(f.loopback) as server:
        connection, outer = joined(w, server)
        with outer:
            connection.abort()
            w.until(lambda: not w.nat.tcp.flows)
            with pytest.raises(ConnectionResetError):
                outer.recv(1)


@pytest.mark.rfc("9293", "MUST-12")
@both_families
def test_reset_from_outside_reaches_the_guest_after_the_data_before_it(f: Family) -> None:
    with world() as w, listener(f.loopback) as server:
        connection, outer = joined(w, server)
        data = ramp(60_000)  # less than the kernel's buffers: a reset discards what it has not sent
        outer.sendall(data)
        reset_and_close(outer)
        received = bytearray()
        w.until(lambda: collect(connection, received).closed)
        assert received == data
        assert connection.error is CloseReason.RESET
        w.until(lambda: not w.nat.tcp.flows)
        assert w.nat.descriptors_used == 0


def test_reset_from_outside_while_the_guest_is_sending() -> None:
    with world() as w, listener() as server:
        connection, outer = joined(w, server)
        outer.sendall(b"last words")
        connection.send(ramp(60_000))
        w.run(0.01)
        reset_and_close(outer)
        received = bytearray()
        w.until(lambda: collect(connection, received).closed)
        assert received == b"last words"
        assert connection.error is CloseReason.RESET
        w.until(lambda: not w.nat.tcp.flows)


@pytest.mark.rfc("9293", "MUST-12")
def test_reset_from_outside_ends_a_flow_whose_guest_does_not_acknowledge() -> None:
    with world() as w, listener() as server:
        _, outer = joined(w, server)
        outer.sendall(ramp(1000))
        reset_and_close(outer)
        for _ in range(10):  # the gateway alone: the guest has gone
            now = w.now
            for token, ready in w.poller.poll():
                token.on_ready(ready, now)
        assert len(w.nat.tcp.flows) == 1
        assert w.nat.descriptors_used == 0  # the socket has gone at once
        w.skew += 11
        w.nat.handle_timeout(w.now)
        assert not w.nat.tcp.flows


def test_a_guest_that_vanishes_in_the_handshake_leaves_nothing() -> None:
    with world() as w, listener() as server:
        connection = w.connect(LOOPBACK_ALIAS, port_of(server))
        for packet in w.guest.poll_transmit(w.now):
            w.to_gateway(packet)
        while not w.nat.tcp.flows:
            for token, ready in w.poller.poll():
                token.on_ready(ready, w.now)
        for _ in range(200):
            w.skew += 1
            w.stack.handle_timeout(w.now)
            w.nat.handle_timeout(w.now)
            while events := w.stack.poll_events():
                for event in events:
                    w.nat.handle(event, w.now)
            w.stack.poll_transmit(w.now)
        assert not w.nat.tcp.flows
        assert w.nat.descriptors_used == 0
        connection.abort()


def test_many_flows_at_once_keep_their_bytes_apart() -> None:
    with world() as w, listener(backlog=256) as server:
        pairs = []
        for _ in range(100):
            pairs.append(joined_quickly(w, server))
        for index, (connection, _) in enumerate(pairs):
            connection.send(ramp(1000, index))
        w.run(0.05)
        for index, (_, outer) in enumerate(pairs):
            assert outer.recv(2000) == ramp(1000, index)
            outer.close()
        w.until(lambda: all(connection.receive_eof for connection, _ in pairs))
        for connection, _ in pairs:
            connection.shutdown()
        w.until(lambda: not w.nat.tcp.flows)
        assert w.nat.descriptors_used == 0


def joined_quickly(w: World, server: socket.socket) -> tuple[Connection, socket.socket]:
    connection = w.connect(LOOPBACK_ALIAS, port_of(server))
    w.until(lambda: connection.established)
    outer, _ = server.accept()
    outer.settimeout(5)
    return connection, outer


def test_a_flow_that_finds_the_page_pool_empty_goes_on_when_there_are_pages_again() -> None:
    pool = 4 * PAGE_SIZE
    with world(limits=Limits(page_pool=pool)) as w, listener() as server:
        greedy, greedy_outer = joined(w, server)
        modest, modest_outer = joined(w, server)
        with greedy_outer, modest_outer:
            greedy_outer.setblocking(False)
            idle = 0
            while idle < 50:  # its guest does not read: in the end it holds the whole pool
                try:
                    greedy_outer.send(bytes(65536))
                    idle = 0
                except BlockingIOError:
                    idle += 1
                w.step(0.001)
            assert w.stack.send_pool.used == pool
            modest_outer.sendall(b"patience")
            w.run(0.1)
            assert not modest.readable
            greedy.abort()
            w.until(lambda: modest.readable)
            assert read_all(modest) == b"patience"


def test_a_flow_that_has_ended_is_freed_without_the_garbage_collector() -> None:
    def alive() -> int:
        return sum(isinstance(thing, TcpFlow) for thing in gc.get_objects())

    with world() as w, listener() as server:
        before = alive()
        gc.disable()
        try:
            connection, outer = joined(w, server)
            assert alive() == before + 1
            outer.close()
            connection.shutdown()
            w.until(lambda: not w.nat.tcp.flows)
            w.skew += 200
            w.run(0.02)
            assert alive() == before
        finally:
            gc.enable()


actions = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["guest sends", "host sends"]), st.integers(1, 300_000)),
        st.tuples(st.sampled_from(["guest reads", "host reads", "steps"]), st.integers(1, 200_000)),
        st.tuples(st.sampled_from(["guest closes", "host closes"]), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(actions)
@example(
    [
        ("guest sends", 64944),
        ("guest sends", 64065),
        ("guest closes", 0),
        ("host sends", 32767),
        ("host closes", 0),
    ]
)
def test_what_goes_in_comes_out_whatever_the_order(schedule: list[tuple[str, int]]) -> None:
    """Bytes delivered are bytes sent, in both directions, and then comes exactly one EOF."""
    with world() as w, listener() as server:
        connection, outer = joined_quickly(w, server)
        outer.setblocking(False)
        sent = {"guest": 0, "host": 0}
        received = {"guest": bytearray(), "host": bytearray()}
        closed: set[str] = set()

        def host_reads(limit: int) -> bool:
            try:
                data = outer.recv(limit)
            except BlockingIOError:
                return False
            received["host"] += data
            return not data

        for action, number in schedule:
            who, _, what = action.partition(" ")
            if what == "sends" and who not in closed:
                data = ramp(number, sent[who])
                with contextlib.suppress(BlockingIOError):
                    sent[who] += connection.send(data) if who == "guest" else outer.send(data)
            elif what == "closes" and who not in closed:
                closed.add(who)
                if who == "guest":
                    connection.shutdown()
                else:
                    outer.shutdown(socket.SHUT_WR)
            elif action == "guest reads":
                data = b"".join(connection.peek())[:number]
                connection.consume(len(data))
                received["guest"] += data
            elif action == "host reads":
                host_reads(number)
            for _ in range(min(number, 3)):
                w.step()
        if "guest" not in closed:
            connection.shutdown()
        if "host" not in closed:
            outer.shutdown(socket.SHUT_WR)
        w.until(lambda: collect(connection, received["guest"]).receive_eof & host_reads(1 << 20))
        assert received["host"] == ramp(sent["guest"])
        assert received["guest"] == ramp(sent["host"])
        w.until(lambda: not w.nat.tcp.flows)
        assert w.resets == []
        outer.close()


# admission


def silent_world(*, pending_dials_guest: int = 128, pending_dials: int = 512) -> tuple[World, Silent]:
    w = World(limits=Limits(pending_dials_guest=pending_dials_guest, pending_dials=pending_dials))
    dialer = Silent()
    w.nat.tcp._dialer = dialer
    return w, dialer


@pytest.mark.rfc("1812", "5.2.7.1")
def test_silence_for_the_dial_time_out_then_unreachable() -> None:
    w, dialer = silent_world()
    try:
        w.connect(OUTSIDE, 80)
        w.step()
        assert w.nat.tcp.pending == 1
        w.skew += 29.5
        w.step()
        assert not w.icmp
        assert not w.resets
        w.skew += 1
        w.step()
        assert [(i.type, i.code) for i in w.icmp] == [(3, 1)]
        assert w.icmp[0].quoted[2:] == (OUTSIDE, 80)
        assert dialer.cancelled == 1
        assert w.nat.descriptors_used == 0
    finally:
        w.close()


@pytest.mark.rfc("1812", "5.2.7.1")
@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (Refusal.UNREACHABLE, 1),
        (Refusal.NET_UNREACHABLE, 0),
        (Refusal.TIMEOUT, 1),
        (Refusal.PROHIBITED, 13),
    ],
)
def test_refusals_become_icmp(refusal: Refusal, code: int) -> None:
    w, dialer = silent_world()
    try:
        dialer.good[80] = refusal
        w.connect(OUTSIDE, 80)
        w.until(lambda: w.icmp)
        assert [(i.type, i.code) for i in w.icmp] == [(3, code)]
        assert w.nat.descriptors_used == 0
    finally:
        w.close()


def test_no_descriptor_is_silence_and_the_next_syn_tries_again() -> None:
    w, dialer = silent_world()
    try:
        dialer.good[80] = Refusal.NO_DESCRIPTORS
        w.connect(OUTSIDE, 80)
        w.step()
        assert not w.icmp
        assert not w.resets
        assert w.dropped(DropReason.FLOW_LIMIT) == 1
        w.skew += 1.5
        w.step()
        assert len(dialer.dialled) == 2
    finally:
        w.close()


@pytest.mark.rfc("4987", "3.2 memory")
def test_dials_of_one_guest_are_bounded_and_the_dropped_syn_is_admitted_again() -> None:
    w, dialer = silent_world(pending_dials_guest=8)
    try:
        for port in range(1, 21):
            w.connect(OUTSIDE, port)
            w.step()
            assert w.nat.tcp.pending <= 8
        assert w.dropped(DropReason.PENDING_DIALS_GUEST) == 12
        assert dialer.cancelled == 12
        assert w.nat.descriptors_used == 8
        before = len(dialer.dialled)
        w.skew += 1.5  # all twenty SYNs are sent again; eight find their dial under way
        w.step()
        again = {port for _, port in dialer.dialled[before:]}
        assert set(range(1, 13)) <= again
        assert w.nat.tcp.pending == 8
    finally:
        w.close()


@pytest.mark.rfc("4987", "3.2 service")
@pytest.mark.rfc("4987", "3.2 memory")
def test_dials_of_all_guests_are_bounded_and_the_greedy_one_gives_way() -> None:
    w, _ = silent_world(pending_dials_guest=8, pending_dials=10)
    try:
        for port in range(1, 9):
            w.connect(OUTSIDE, port)
        w.step()
        for port in range(1, 5):
            w.connect(OUTSIDE, port, src=GUEST_2)
            w.step()
        assert w.nat.tcp.pending == 10
        assert w.dropped(DropReason.PENDING_DIALS_TOTAL) == 2
        pending = [request.src for request in w.stack.requests.values()]
        assert pending.count(GUEST_2) == 4
    finally:
        w.close()


def test_a_guest_that_resets_its_syn_ends_the_dial() -> None:
    w, dialer = silent_world()
    try:
        connection = w.connect(OUTSIDE, 80)
        w.step()
        (request,) = w.stack.requests.values()
        reset = struct.pack(
            "!HHIIBBHHH", connection.local_port, 80, (request.irs + 1) & 0xFFFFFFFF, 0, 0x50, 4, 0, 0, 0
        )
        for packet in w.guest.ip.build(connection.local, OUTSIDE, 6, reset, csum_offset=16):
            w.to_gateway(packet)
        assert w.nat.tcp.pending == 0
        assert dialer.cancelled == 1
        assert not w.stack.requests
        assert w.nat.descriptors_used == 0
    finally:
        w.close()


def test_the_flow_limit_drops_the_syn_and_counts_it() -> None:
    with world(limits=Limits(flows=4)) as w, listener() as server:
        pairs = [joined_quickly(w, server) for _ in range(4)]
        late = w.connect(LOOPBACK_ALIAS, port_of(server))
        w.run(0.02)
        assert not late.established
        assert w.dropped(DropReason.FLOW_LIMIT) == 1
        first, outer = pairs[0]
        first.abort()
        outer.close()
        w.run(0.01)
        w.skew += 1.5
        w.until(lambda: late.established)  # its retransmitted SYN has found room
        for _, outer in pairs[1:]:
            outer.close()


def test_close_resets_everything_and_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with listener() as server:
        w = World()
        connection, outer = joined(w, server)
        silent = Silent()
        w.nat.tcp._dialer = silent
        w.connect(OUTSIDE, 80)
        w.step()
        w.close()
        with outer, pytest.raises(ConnectionResetError):
            outer.recv(1)
        assert not connection.closed  # the guest learns when the stack is flushed
        w.guest.connections.clear()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.netns
def test_two_hundred_silent_destinations_do_not_delay_a_good_one(namespace: Namespace) -> None:
    silent_route(namespace)

    def scenario() -> None:
        with world() as w, listener() as server:
            for index in range(200):
                w.connect(A(f"203.0.113.{index + 1}"), 80)
            w.step()
            assert w.nat.tcp.pending == w.nat.limits.pending_dials_guest == 128
            start = time.monotonic()
            connection = w.connect(LOOPBACK_ALIAS, port_of(server))
            w.until(lambda: connection.established)
            assert time.monotonic() - start < 0.1
            assert w.dropped(DropReason.PENDING_DIALS_GUEST) == 73
            server.accept()[0].close()

    namespace.call(scenario)


@pytest.mark.netns
@both_families
@pytest.mark.parametrize(
    ("kind", "codes"), [("unreachable", (1, 3)), ("prohibit", (13, 1)), ("none", (0, 0))]
)
def test_a_route_that_refuses_becomes_icmp(
    namespace: Namespace, kind: str, codes: tuple[int, int], f: Family
) -> None:
    if kind != "none":
        namespace.ip("route", "add", kind, f.outside)

    def scenario() -> None:
        with world() as w:
            connection = w.connect(A(f.destination), 80)
            w.until(lambda: w.icmp)
            assert (w.icmp[0].type, w.icmp[0].code) == ((3, codes[0]) if f is V4 else (1, codes[1]))
            assert w.icmp[0].quoted == (connection.local, connection.local_port, A(f.destination), 80)

    namespace.call(scenario)
