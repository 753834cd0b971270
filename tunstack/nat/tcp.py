"""TCP from the guest: dial first, answer later.

Theory of operation. A SYN arrives as a request that nobody has answered. A route to a service leads there;
for the rest policy decides. Then the destination is dialled, by a proxy if a route says so, and the guest
is told what became of it:

===============================  ==========================================
connected                        SYN-ACK; a `TcpFlow` joins the two
refused                          RST
unreachable, prohibited          ICMP unreachable of that kind
silent for `dial_timeout`        silence until then, then ICMP host unreachable
no descriptor, no port           silence and a counter; the next SYN tries anew
===============================  ==========================================

Dials under way are bounded for each guest and in total. At a limit the oldest dial, the one whose
destination has been silent for longest, gives way (in total: the oldest of the guest with the most): its SYN
is dropped and counted, and its retransmission is a new request. So silent destinations, however many, do
not delay a good one.

What was decided for a plain dial is good for the next one, too, until something changes: the carrier is told
of it (`Carrier.visit`) and may dial and accept in our place, of which it tells by `count_brief`, `adopt_dial`
and `adopt_flow`.
"""

from __future__ import annotations

import socket
from typing import Any

from tunstack.errors import DropReason, LocalError
from tunstack.ip.header import TCP
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.nat.context import Context
from tunstack.nat.dialer import (
    Dial,
    Dialer,
    DirectDialer,
    Outcome,
    Refusal,
    refusal_of,
    reset_and_close,
)
from tunstack.nat.routes import Routes
from tunstack.nat.tcp_flow import TcpFlow
from tunstack.tcp.connection import Connection
from tunstack.tcp.listener import TcpRequest

_ANSWERS = {
    Refusal.UNREACHABLE: IcmpErrorKind.HOST_UNREACHABLE,
    Refusal.NET_UNREACHABLE: IcmpErrorKind.NET_UNREACHABLE,
    Refusal.TIMEOUT: IcmpErrorKind.HOST_UNREACHABLE,
    Refusal.PROHIBITED: IcmpErrorKind.ADMIN_PROHIBITED,
}


class TcpNat:
    """Admits the guest's connections.

    Attributes:
        flows: those that are joined.
        routes: destinations that are dialled in another way.
    """

    __slots__ = ("_context", "_dialer", "_guests", "_pending", "flows", "routes")

    def __init__(self, context: Context, dialer: Dialer) -> None:
        self._context = context
        self._dialer = dialer
        self._pending: dict[TcpRequest, _Pending] = {}
        self._guests: dict[bytes, dict[_Pending, None]] = {}
        self.flows: set[TcpFlow] = set()
        self.routes = Routes()

    @property
    def pending(self) -> int:
        """Dials under way."""
        return len(self._pending)

    def request(self, request: TcpRequest, now: float) -> None:
        """Decide on a SYN that nobody has answered, or forget one that the guest has reset."""
        if request.cancelled or request.answered:
            self._cancel(request)
            return
        context = self._context
        dialer, destination = self._dialer, request.dst
        route = self.routes.find(request.dst, request.dst_port)
        if route is not None and route.is_end and route.dialer is not None:
            dialer = route.dialer
        else:
            verdict = context.policy.decide(TCP, request.src, request.dst, request.dst_port)
            if not verdict.allow:
                context.drops.add(DropReason.POLICY)
                if verdict.kind is None:
                    context.stack.reset(request, now)
                else:
                    context.stack.unreachable(request, verdict.kind, now)
                return
            destination = verdict.destination
            if route is not None and route.dialer is not None and destination == request.dst:
                dialer = route.dialer
        self._make_room(request.src)
        if not context.budget.take():
            context.drops.add(DropReason.FLOW_LIMIT)
            context.stack.discard(request)
            return
        context.counters.tcp_dials += 1
        pending = _Pending(self, request)
        if route is None and isinstance(dialer, DirectDialer) and context.policy.is_lasting:
            pending.destination = destination
        dial = dialer.dial(destination, request.dst_port, now, pending.done)
        if pending.open:
            self._wait(pending, dial, now)

    # an accelerator that dials in our place

    @property
    def free_descriptors(self) -> int:
        """How many descriptors there may be besides."""
        budget = self._context.budget
        return budget.limit - budget.used

    def count_brief(self, dials: int, accepted: int, descriptors: int) -> None:
        """The accelerator has dialled and accepted so many, and has so many descriptors more, or less."""
        counters = self._context.counters
        counters.tcp_dials += dials
        counters.tcp_flows += accepted
        self._context.budget.used += descriptors

    def adopt_dial(
        self, request: TcpRequest, sock: socket.socket, code: int, started: float, now: float
    ) -> None:
        """Go on with a dial by `sock`, which was `started` and has failed with errno `code`, unless 0."""
        if code:
            family = sock.family
            sock.close()
            self._refuse(request, refusal_of(code, family), now)
            return
        context = self._context
        self._make_room(request.src)
        context.budget.used += 1
        pending = _Pending(self, request)
        pending.destination = context.policy.decide(
            TCP, request.src, request.dst, request.dst_port
        ).destination
        dialer = self._dialer
        assert isinstance(dialer, DirectDialer)
        dial = dialer.resume(sock, pending.destination, request.dst_port, pending.done)
        self._wait(pending, dial, started)

    def adopt_flow(self, connection: Connection, sock: socket.socket, brief: Any) -> TcpFlow:
        """Go on with a flow that the accelerator has opened; `brief` is its `struct ts_brief`."""
        self._context.budget.used += 1
        flow = TcpFlow(self._context, self.flows, connection, sock, brief.opened_at)
        flow.adopt(brief)
        return flow

    def _wait(self, pending: _Pending, dial: Dial, started: float) -> None:
        pending.dial = dial
        self._pending[pending.request] = pending
        self._guests.setdefault(pending.request.src, {})[pending] = None
        self._context.timers.set(pending, started + self._context.limits.dial_timeout)

    def close(self) -> None:
        """Give up all dials and reset all flows."""
        for pending in list(self._pending.values()):
            self.give_up(pending)
        for flow in list(self.flows):
            flow.close()

    def give_up(self, pending: _Pending) -> None:
        """End a dial without an answer to the guest."""
        self._forget(pending)
        self._context.budget.give()
        if pending.dial is not None:
            pending.dial.cancel()
        self._context.stack.discard(pending.request)

    def finish(self, pending: _Pending, outcome: Outcome, now: float) -> None:
        """A dial has ended: tell the guest."""
        context = self._context
        self._forget(pending)
        if isinstance(outcome, Refusal):
            context.budget.give()
            self._refuse(pending.request, outcome, now)
            return
        try:
            connection = context.stack.accept(pending.request, now)
        except LocalError:
            # The request has gone meanwhile, or the stack is full.
            reset_and_close(outcome)
            context.budget.give()
            return
        context.counters.tcp_flows += 1
        TcpFlow(context, self.flows, connection, outcome, now)
        if pending.destination is not None and (carrier := context.carrier) is not None:
            carrier.visit(pending.request, connection, pending.destination)

    def expire(self, pending: _Pending, now: float) -> None:
        """A destination has been silent for too long."""
        if pending.dial is not None:
            pending.dial.cancel()
        self.finish(pending, Refusal.TIMEOUT, now)

    def _cancel(self, request: TcpRequest) -> None:
        pending = self._pending.get(request)
        if pending is not None:
            self.give_up(pending)
        elif not request.answered:
            self._context.stack.discard(request)

    def _refuse(self, request: TcpRequest, refusal: Refusal, now: float) -> None:
        stack = self._context.stack
        if refusal is Refusal.REFUSED:
            stack.reset(request, now)
        elif refusal is Refusal.NO_DESCRIPTORS:
            self._context.drops.add(DropReason.FLOW_LIMIT)
            stack.discard(request)
        else:
            stack.unreachable(request, _ANSWERS[refusal], now)

    def _make_room(self, guest: bytes) -> None:
        """Keep the limits of dials under way with one more from `guest`."""
        limits = self._context.limits
        dials = self._guests.get(guest)
        if dials is not None and len(dials) >= limits.pending_dials_guest:
            self._context.drops.add(DropReason.PENDING_DIALS_GUEST)
        elif len(self._pending) >= limits.pending_dials:
            self._context.drops.add(DropReason.PENDING_DIALS_TOTAL)
            dials = max(self._guests.values(), key=len)
        else:
            return
        self.give_up(next(iter(dials)))

    def _forget(self, pending: _Pending) -> None:
        pending.open = False
        if self._pending.pop(pending.request, None) is None:
            return
        guest = pending.request.src
        dials = self._guests[guest]
        del dials[pending]
        if not dials:
            del self._guests[guest]
        self._context.timers.cancel(pending)


class _Pending:
    """A dial under way and the request that waits for it."""

    __slots__ = ("_nat", "destination", "dial", "open", "request")

    def __init__(self, nat: TcpNat, request: TcpRequest) -> None:
        self._nat = nat
        self.request = request
        self.dial: Dial | None = None
        self.open = True
        self.destination: bytes | None = None
        """Who is dialled, if the next dial would not need a decision."""

    def done(self, outcome: Outcome, now: float) -> None:
        if self.open:
            self._nat.finish(self, outcome, now)
        elif isinstance(outcome, socket.socket):
            outcome.close()

    def on_timeout(self, now: float) -> None:
        self._nat.expire(self, now)
