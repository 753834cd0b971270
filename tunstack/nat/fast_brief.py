"""Connections that C opens by itself: which it may open, and what becomes of those that are not brief.

Theory of operation. When the second connection of a guest to one address and port has been accepted, and
the next would need no decision - policy's verdict lasts, there is no route, a plain socket was dialled - C
is told of a *door*: it answers the next SYN to there as `TcpNat` and `Stack.accept` would have done. Such a
connection is *brief* until something uncommon happens, or for `PATIENCE` seconds. Then it is *adopted*: the
SYN is read again, the request is accepted at the time at which that was done, and `tcp.lease.adopt` makes of
the connection what it would have been. Nobody sees a difference but who looks for a brief connection among
the others; what asks for one by its key, or for all, has them adopted first.

The doors are closed when anything that was decided could be decided differently (`recall`), when the link
changes, and one by one when the guest's MAC changes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

from tunstack.errors import BadPacket
from tunstack.link.neighbour import REACHABLE_TIME
from tunstack.nat.dialer import reset_and_close
from tunstack.nat.tcp_flow import READ_MINIMUM, TcpFlow
from tunstack.native.briefs import Briefs, brief_of
from tunstack.native.fastpath import lib
from tunstack.tcp import lease
from tunstack.tcp.isn import SequenceSource
from tunstack.tcp.right_sizing import LONGEST, MEMORY, ROUND, SHORTEST
from tunstack.tcp.states import State

if TYPE_CHECKING:
    from tunstack.nat.fast import FastFlows
    from tunstack.nat.tcp import TcpNat
    from tunstack.stack import Stack
    from tunstack.tcp.connection import Connection
    from tunstack.tcp.listener import FlowKey, TcpRequest

PATIENCE = 0.5
"""Seconds for which a connection is brief."""
MOST = 256
"""Brief connections that have a descriptor; a fraction of the limits on flows."""
_VISITED = 1024
"""Destinations that are remembered because of one connection."""


class BriefFlows:
    """The doors of one gateway, and what comes through them. Implements `stack.connections.Accelerator`."""

    def __init__(self, carrier: FastFlows, stack: Stack) -> None:
        self._carrier = carrier
        self._stack = stack
        self._briefs = Briefs(carrier.fast)
        self._nat: TcpNat | None = None
        self._visited: set[bytes] = set()
        self._is_known = False
        """Whether the stack knows of this."""
        self._held = 0
        """Descriptors that are in the NAT's budget."""
        c = self._briefs.c
        c.patience = PATIENCE
        c.sizing_round, c.sizing_shortest, c.sizing_longest, c.sizing_memory = (
            ROUND,
            SHORTEST,
            LONGEST,
            MEMORY,
        )

    def serve(self, nat: TcpNat) -> None:
        """Open connections in the place of `nat`."""
        self._nat = nat

    def visit(self, request: TcpRequest, connection: Connection, destination: bytes) -> None:
        """See `Carrier.visit`."""
        hot = connection.hot
        key = request.key
        if not (hot.timestamps and hot.sack and hot.rcv_shift and request.mss) or request.ecn:
            return
        if connection.state is not State.SYN_RECEIVED or self._briefs.has_door(key):
            return
        name = key[:-4] + key[-2:]
        if name not in self._visited:
            if len(self._visited) >= _VISITED:
                self._visited.clear()
            self._visited.add(name)
            return
        sequence = self._stack.sequence
        link_header = self._stack.link.known_header(connection.remote)
        if type(sequence) is not SequenceSource or link_header is None or self._nat is None:
            return
        self._introduce(sequence)
        with contextlib.suppress(MemoryError):  # Python goes on opening them
            door = self._briefs.new_door()
            self._carrier.describe(connection, door.model, link_header)
            door.model.ports = b"\0\0" + key[-2:]
            door.model.fd = -1
            door.model.read_size = READ_MINIMUM
            target = _sockaddr(destination, request.dst_port)
            door.target[0 : len(target)] = list(target)
            door.target_length = len(target)
            door.guest_mss = request.mss
            door.path_mss = connection.path_mss
            self._briefs.open(door)

    def recall(self) -> None:
        """Close all doors."""
        self._visited.clear()
        for door in self._briefs.doors():
            self._briefs.close(door)

    def close(self, now: float) -> None:
        """The device goes: Python has all connections again."""
        self.recall()
        self.adopt_all(now)
        if self._is_known:
            self._is_known = False
            self._stack.set_accelerator(None)

    def check_neighbours(self, now: float) -> None:
        """Forget what depends on a MAC that is another now, or is not known to be right.

        Python would use the entry with every connection, and so keep it fresh.
        """
        for door in self._briefs.doors():
            if door.used_at > now - REACHABLE_TIME:
                self._stack.link.use_header(_guest_of(door.model), now)
            if self._has_moved(door.model):
                self._briefs.close(door)
        for flow in self._briefs.flows():
            if self._has_moved(flow):
                self.take(flow, now)

    def enter(self) -> None:
        """Before each call of C: what it may do."""
        nat, stack, c = self._nat, self._stack, self._briefs.c
        if nat is not None:
            free = min(nat.free_descriptors, stack.limits.connections - len(stack.connections) - c.count)
            c.most = max(0, min(MOST, self._held + free))

    def leave(self) -> None:
        """After each: what it has done."""
        c = self._briefs.c
        past = c.past
        nat, stack = self._nat, self._stack
        if nat is None:
            return
        if past.dials or past.accepted or c.descriptors != self._held:
            nat.count_brief(past.dials, past.accepted, c.descriptors - self._held)
            self._held = c.descriptors
            past.dials = past.accepted = 0
        if past.ended:
            stack.count_past(past.ended, past.bytes_in, past.bytes_out, past.segments_in, past.segments_out)
            past.ended = past.bytes_in = past.bytes_out = past.segments_in = past.segments_out = 0
        stack.set_reserved(c.count)

    # what the stack asks

    def adopt(self, key: FlowKey, now: float) -> None:
        """See `Accelerator.adopt`."""
        if (flow := self._briefs.find(key)) is not None:
            self.take(flow, now)

    def adopt_all(self, now: float) -> None:
        """See `Accelerator.adopt_all`."""
        for flow in self._briefs.flows():
            self.take(flow, now)

    def claim(self, key: FlowKey, by: int) -> None:
        """See `Accelerator.claim`."""
        self._briefs.claim(key, by)

    # adoption

    def take(self, c: Any, now: float) -> TcpFlow | None:
        """Let Python have the brief flow `c`. Its flow, if its socket still has something to say."""
        assert self._nat is not None
        queued, readable, sent = self._carrier.withdraw(c)
        brief = brief_of(c)
        family = socket.AF_INET if c.family == 4 else socket.AF_INET6
        sock = None
        if c.fd >= 0:
            sock = socket.socket(family, socket.SOCK_STREAM, fileno=c.fd)
            sock.setblocking(False)
        flow = None
        try:
            request = self._stack.reopen(bytes(brief.syn[0 : brief.syn_length]), brief.asked_at)
        except BadPacket:
            if sock is not None:
                reset_and_close(sock)
        else:
            if c.phase == lib.TS_CONNECTING:
                assert sock is not None
                self._nat.adopt_dial(request, sock, c.socket_errno, brief.asked_at, now)
            else:
                connection = self._stack.accept_at(request, brief.opened_at, answered=not brief.syn_due)
                lease.adopt(connection, brief, queued, readable, sent, now)
                if sock is not None:
                    flow = self._nat.adopt_flow(connection, sock, brief)
                self._stack.rearm(connection)
        self._carrier.fast.free(c)
        return flow

    def _introduce(self, sequence: SequenceSource) -> None:
        """Before the first door is opened."""
        if not self._is_known:
            self._is_known = True
            self._briefs.set_secret(sequence.secret)
            self._stack.set_accelerator(self)

    def _has_moved(self, flow: Any) -> bool:
        header = bytes(flow.head[0 : flow.link_length])
        return self._stack.link.known_header(_guest_of(flow)) != header


def _guest_of(flow: Any) -> bytes:
    return bytes(flow.address[0 : 4 if flow.family == 4 else 16])


def _sockaddr(address: bytes, port: int) -> bytes:
    """As connect() takes it."""
    if len(address) == 4:
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, address)
    return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", port, 0, address, 0)
