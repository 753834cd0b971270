"""Which TCP flows the fast path carries: offers, returns, and what only Python decides.

Theory of operation. A flow that has made progress is *considered* at the end of the round: if it is common
(`tcp.lease.is_common`, both directions open) and its neighbour is known it is offered to C, and the
connection holds a `_Lease` from then on. C gives it back by itself when something uncommon happens, and
whoever else wants the connection takes it back first: the stack when a frame, an ICMP error or a timer is
for it, the flow when it ends, and this module when the neighbour changes or the device goes.

Timers: those of C only move away or are told of (TS_REPORT_TIMER), so the entry in the stack's heap is never
too late; when it expires, C's deadline decides. Memory: C takes pages and bytes for readers from the same
budgets as everybody; `_enter` and `_leave` carry them over the border around each call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunstack.ip import ipv4, ipv6
from tunstack.ip.header import TCP
from tunstack.nat.fast_brief import BriefFlows
from tunstack.nat.fast_udp import FastDatagrams
from tunstack.nat.poller import ERROR, READ
from tunstack.nat.tcp_flow import READ_MAXIMUM, READ_MINIMUM, RESUME, TcpFlow
from tunstack.native.fastpath import FastPath, lib
from tunstack.stack import Stack
from tunstack.tcp import lease
from tunstack.tcp.connection import Connection
from tunstack.tcp.listener import TcpRequest
from tunstack.tcp.receiver import DELAYED_ACK
from tunstack.tcp.right_sizing import SHARE
from tunstack.tcp.send import SHORT_PATH

if TYPE_CHECKING:
    from tunstack.nat.tcp import TcpNat

_HEADERS = ipv4.HEADER_LENGTH + 32, ipv6.HEADER_LENGTH + 32
"""Bytes of IP and TCP header, with timestamps."""


PATIENCE = 6
"""A connection that carries one request and ends is not worth the two copies: it makes progress six times."""


class _Lease:
    """One flow in C. Implements `tcp.host.Lease`."""

    __slots__ = ("_carrier", "c", "connection", "flow", "link_header")

    def __init__(
        self, carrier: FastFlows, connection: Connection, flow: TcpFlow, c: Any, link_header: bytes
    ) -> None:
        self._carrier = carrier
        self.connection = connection
        self.flow = flow
        self.c = c
        self.link_header = link_header

    def take_back(self, now: float) -> None:
        """See `Lease`."""
        self._carrier.take_back(self, now)

    @property
    def bytes_up(self) -> int:
        """See `Lease`."""
        count: int = self.c.bytes_up
        return count

    def refresh(self) -> None:
        """See `Lease`."""
        lease.refresh(self.connection, self.c)

    def expired(self, now: float) -> float | None:
        """See `Lease`."""
        deadline: float = self.c.deadline
        if deadline > now:
            self.c.armed = deadline
            return deadline
        self.take_back(now)
        return None


class FastFlows:
    """The flows of one gateway that C carries, over one device.

    Attributes:
        datagrams: those of UDP.
        briefs: connections that C opens by itself.
        may_offer: False holds offers back.
    """

    def __init__(self, fast: FastPath, stack: Stack, *, patience: int = PATIENCE) -> None:
        """A flow is offered after it was considered more often than `patience` says."""
        self.fast = fast
        self.patience = patience
        self.may_offer = True
        self._stack = stack
        self.datagrams = FastDatagrams(fast, stack)
        self.briefs = BriefFlows(self, stack)
        self.changes = stack.link.changes
        """Of the neighbours, when all leases were last right."""
        self._leases: dict[Any, _Lease] = {}
        self._candidates: dict[TcpFlow, None] = {}
        c = fast.c
        c.delayed_ack = DELAYED_ACK
        c.read_minimum = READ_MINIMUM
        c.read_maximum = READ_MAXIMUM
        c.resume = RESUME
        c.send_reserve = stack.limits.page_pool - stack.limits.send_share
        c.short_path = SHORT_PATH
        c.receive_share = SHARE

    def __len__(self) -> int:
        return len(self._leases)

    def consider(self, flow: TcpFlow) -> None:
        """See `nat.context.Carrier`."""
        flow.rounds += 1
        if flow.rounds > self.patience:
            self._candidates[flow] = None

    def serve(self, nat: TcpNat) -> None:
        """See `nat.context.Carrier`."""
        self.briefs.serve(nat)

    def visit(self, request: TcpRequest, connection: Connection, destination: bytes) -> None:
        """See `nat.context.Carrier`."""
        self.briefs.visit(request, connection, destination)

    def recall(self) -> None:
        """See `nat.context.Carrier`."""
        self.briefs.recall()

    def offer(self) -> None:
        """Offer what was considered and is common; everything must have been flushed."""
        if not self.may_offer:
            return
        self.datagrams.offer()
        if not self._candidates:
            return
        candidates, self._candidates = self._candidates, {}
        for flow in candidates:
            if flow.is_common and lease.is_common(flow.connection):
                self._offer(flow)

    def run(self, linger: float, deadline: float, rounds: int) -> int:
        """See `FastPath.run`."""
        self._enter()
        try:
            return self.fast.run(linger, deadline, rounds)
        finally:
            self._leave()

    def flush(self) -> None:
        """See `FastPath.flush`."""
        self._enter()
        self.fast.flush()
        self._leave()

    def next_timeout(self) -> float:
        """See `FastPath.next_timeout`."""
        return self.fast.next_timeout()

    def decide(self, now: float) -> list[tuple[TcpFlow, int]]:
        """Deal with C's reports. Returns the flows whose sockets Python must serve, with their readiness."""
        ready: list[tuple[TcpFlow, int]] = []
        self.datagrams.decide(now)
        for c in self.fast.reports():
            held = self._leases.get(c)
            if held is None and not c.is_brief:
                continue
            report = c.report
            if held is None or report & lib.TS_REPORT_RETURN:
                reason = c.reason
                flow = self._take_return(c, held, now)
                if flow is None:
                    continue
                if reason == lib.TS_END_OF_FILE:
                    ready.append((flow, READ))
                elif reason == lib.TS_HANG_UP:
                    ready.append((flow, ERROR))
                elif reason in (lib.TS_SOCKET_ERROR, lib.TS_WRITE_ERROR):
                    flow.fail(now, drained=reason == lib.TS_SOCKET_ERROR)
                continue
            connection = held.connection
            if report & lib.TS_REPORT_ACKS:
                lease.tell_congestion(connection, c, now, report=True)
            if report & lib.TS_REPORT_IDLE:
                lease.restart_idle(connection, c, now)
            if report & lib.TS_REPORT_SIZE:
                lease.resize(connection, c, lib.ts_flow_readable(c), now)
            if report & lib.TS_REPORT_TIMER:
                self._arm(held)
        return ready

    def after_flush(self, now: float) -> None:
        """Take over the timers that have come nearer in the last flush, and the flows that it returned."""
        self.datagrams.count_drops()
        for c in self.fast.reports():
            held = self._leases.get(c)
            if c.report & lib.TS_REPORT_RETURN and (held is not None or c.is_brief):
                self._take_return(c, held, now)
            elif held is not None and c.report & lib.TS_REPORT_TIMER:
                self._arm(held)

    def check_neighbours(self, now: float) -> None:
        """Take back the flows whose neighbour has another MAC, or none that is known to be right."""
        self.changes = self._stack.link.changes
        self.datagrams.check_neighbours(now)
        self.briefs.check_neighbours(now)
        for held in list(self._leases.values()):
            if self._stack.link.known_header(held.connection.remote) != held.link_header:
                self.take_back(held, now)

    def take_train_limit(self) -> None:
        """The stack's limit for super-segments has changed: C's flows go by the new one."""
        self.briefs.recall()
        for held in self._leases.values():
            held.c.train = held.connection.sender.train_limit

    @property
    def segments(self) -> int:
        """Segments that C has received and sent."""
        c = self.fast.c
        count: int = c.segments_fast_in + c.segments_fast_out
        return count

    def close(self, now: float) -> list[memoryview]:
        """Take everything back: the device is gone, or shaped from now on.

        Returns copies of frames that C has kept, virtio-net header first: fragments, which are Python's now.
        """
        self.datagrams.close()
        self.briefs.close(now)
        for held in list(self._leases.values()):
            self.take_back(held, now)
        self._candidates.clear()
        self.fast.leave_fragments()
        return [memoryview(bytes(frame)) for frame in self.fast.frames()]

    def take_back(self, held: _Lease, now: float) -> None:
        """End a lease."""
        c = held.c
        connection = held.connection
        del self._leases[c]
        connection.lease = None
        queued, readable, sent = self.withdraw(c)
        is_batch = bool(c.is_marked or c.reason)
        lease.restore(connection, c, queued, readable, sent, now, is_batch=is_batch)
        held.flow.take_over(c, now)
        self._stack.rearm(connection)
        self.fast.free(c)
        self._candidates[held.flow] = None

    def withdraw(self, c: Any) -> tuple[bytes, bytes, list[tuple[int, int, float]]]:
        """C carries `c` no longer; see `FastPath.drain`."""
        self._enter()
        self.fast.remove(c)
        rest = self.fast.drain(c)
        self._leave()
        return rest

    def describe(self, connection: Connection, c: Any, link_header: bytes) -> None:
        """See `lease.fill`. MemoryError."""
        lease.fill(self.fast, connection, c, link_header + _ip_header(connection), len(link_header))

    def _take_return(self, c: Any, held: _Lease | None, now: float) -> TcpFlow | None:
        """What C has returned is Python's: the flow, if there is one."""
        if held is not None:
            self.take_back(held, now)
            return held.flow
        flow = self.briefs.take(c, now)
        if flow is not None:
            self._candidates[flow] = None
        return flow

    def _offer(self, flow: TcpFlow) -> None:
        connection = flow.connection
        link_header = self._stack.link.known_header(connection.remote)
        if link_header is None:
            return
        fast = self.fast
        c = fast.new_flow()
        flow.lend(c)
        c.armed = self._stack.timer_of(connection)
        self._enter()
        try:
            self.describe(connection, c, link_header)
            taken = fast.offer(c)
        except MemoryError:
            fast.free(c)
            taken = False  # Python carries it on
        finally:
            self._leave()
        if taken:
            lease.hand_over(connection)
            held = _Lease(self, connection, flow, c, link_header)
            self._leases[c] = held
            connection.lease = held

    def _arm(self, held: _Lease) -> None:
        deadline = held.c.deadline
        if deadline < held.c.armed:
            held.c.armed = deadline
            self._stack.set_timer(held.connection, deadline)

    def _enter(self) -> None:
        c = self.fast.c
        pool = self._stack.send_pool
        account = self._stack.receive_account
        kept = self._stack.receive_pool
        c.send_free = pool.limit - pool.used
        c.keep_free = kept.limit - kept.used
        c.receive_free = account.limit - account.used
        self.briefs.enter()

    def _leave(self) -> None:
        c = self.fast.c
        pool = self._stack.send_pool
        account = self._stack.receive_account
        kept = self._stack.receive_pool
        pool.used = pool.limit - c.send_free
        kept.used = kept.limit - c.keep_free
        account.used = account.limit - c.receive_free
        self.briefs.leave()


def _ip_header(connection: Connection) -> bytes:
    """As `ip.layer` builds it; C fills in length, checksum and ECN."""
    local, remote = connection.local, connection.remote
    if len(local) == 4:
        header = ipv4.HeaderTemplate(local, remote, TCP, 64, 0)
        return header.emit(_HEADERS[0], 0, ipv4.DONT_FRAGMENT)
    return ipv6.HeaderTemplate(local, remote, TCP, 64, 0).emit(_HEADERS[1])
