"""Ping from the guest: ping sockets, else a raw socket, else an honest refusal.

Theory of operation. A session is one guest (address, identifier). In mode ``ping`` it has an ICMP
datagram socket of its own (`net.ipv4.ping_group_range` permits them), whose identifier the kernel
chooses; in mode ``raw`` (CAP_NET_RAW) all sessions share one raw socket for each family and each has an
identifier of its own. In mode ``none`` every request is answered by "administratively prohibited".

A session remembers its last requests, so that a reply goes back with the guest's own
identifier and sequence number, and an error (time exceeded, for traceroute) quotes the guest's own packet.
It ends after `echo_idle` (RFC 5508 REQ-2); at `echo_sessions` the one that is idle for longest goes.
"""

from __future__ import annotations

import random
import socket
import struct
from collections import OrderedDict

from tunstack import native
from tunstack.errors import DropReason
from tunstack.ip.header import ICMP, ICMPV6
from tunstack.ip.icmp import EchoRequest, IcmpErrorKind
from tunstack.nat.context import Context
from tunstack.nat.datagram_socket import Address, DatagramSocket, hop_limit_of
from tunstack.nat.error_queue import QueuedError
from tunstack.nat.poller import ERROR, READ

QUOTE = 128
"""Bytes of a request kept for ICMP errors."""
RECEIVE_BURST = 32
NOTICE = (
    "ping is not forwarded: add the group of this process to the sysctl net.ipv4.ping_group_range "
    "or give it CAP_NET_RAW"
)

_header = struct.Struct("!BBHHH")
_SOL_RAW = 255
_ICMP_FILTER = 1
_ICMP6_FILTER = 1
_ONLY_REPLIES_V4 = struct.pack("=I", ~(1 << 0) & 0xFFFFFFFF)
_ONLY_REPLIES_V6 = bytes(b ^ 0xFF for b in struct.pack("=8I", *(1 << 1 if i == 4 else 0 for i in range(8))))
"""Filters whose set bits are the types that the kernel keeps back; echo reply is 0, in ICMPv6 129."""


def _family(address: bytes) -> socket.AddressFamily:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def _open_socket(family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
    protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    return sock


def find_mode() -> str:
    """What this process may do: "ping", "raw" or "none"."""
    for mode, kind in (("ping", socket.SOCK_DGRAM), ("raw", socket.SOCK_RAW)):
        try:
            _open_socket(socket.AF_INET, kind).close()
        except OSError:
            continue
        return mode
    return "none"


class EchoNat:
    """All echo sessions of a gateway. `mode` says which of the three ways is taken."""

    __slots__ = ("_context", "_raw", "_sessions", "idents", "mode")

    def __init__(self, context: Context, mode: str | None = None) -> None:
        self._context = context
        self._sessions: OrderedDict[tuple[bytes, int], EchoSession] = OrderedDict()
        self._raw: dict[socket.AddressFamily, RawEcho] = {}
        self.idents: dict[int, EchoSession] = {}
        """Of the raw sockets."""
        self.mode = find_mode() if mode is None else mode

    def __len__(self) -> int:
        return len(self._sessions)

    def request(self, request: EchoRequest, now: float) -> None:
        """Send the guest's ping on its way."""
        context = self._context
        protocol = ICMP if len(request.dst) == 4 else ICMPV6
        verdict = context.policy.decide(protocol, request.src, request.dst, 0)
        if not verdict.allow:
            self._refuse(request, DropReason.POLICY, verdict.kind, now)
        elif self.mode == "none":
            self._refuse(request, DropReason.ECHO_UNAVAILABLE, IcmpErrorKind.ADMIN_PROHIBITED, now)
        else:
            key = (request.src, request.ident)
            session = self._sessions.get(key)
            if session is None:
                session = self._open(key)
                if session is None:
                    # RFC 5508 REQ-8: out of resources.
                    self._refuse(request, DropReason.ECHO_LIMIT, IcmpErrorKind.ADMIN_PROHIBITED, now)
                    return
                self._sessions[key] = session
                context.counters.echo_sessions += 1
            else:
                self._sessions.move_to_end(key)
            context.timers.set(session, now + context.limits.echo_idle)
            session.send(request, verdict.destination, now)

    def remove(self, session: EchoSession) -> None:
        """End a session."""
        if self._sessions.pop(session.key, None) is None:
            return
        self._context.timers.cancel(session)
        self.idents.pop(session.ident, None)
        if session.own_socket:
            self._context.poller.remove(session.socket.sock)
            session.socket.sock.close()
            self._context.budget.give()

    def close(self) -> None:
        """End all sessions and close the raw sockets."""
        for session in list(self._sessions.values()):
            self.remove(session)
        for raw in self._raw.values():
            self._context.poller.remove(raw.socket.sock)
            raw.socket.sock.close()
        self._raw.clear()

    def _refuse(
        self, request: EchoRequest, reason: DropReason, kind: IcmpErrorKind | None, now: float
    ) -> None:
        self._context.drops.add(reason)
        if kind is not None:
            self._context.stack.send_icmp_error(request.quote, kind, now)

    def _open(self, key: tuple[bytes, int]) -> EchoSession | None:
        context = self._context
        if len(self._sessions) >= context.limits.echo_sessions:
            context.drops.add(DropReason.ECHO_LIMIT)
            self.remove(next(iter(self._sessions.values())))
        family = _family(key[0])
        if self.mode == "raw":
            raw = self._raw_socket(family)
            if raw is None:
                return None
            ident = random.randrange(65536)
            while ident in self.idents:
                ident = (ident + 1) & 0xFFFF
            session = EchoSession(self, context, key, raw.socket, ident)
            self.idents[ident] = session
            return session
        if not context.budget.take():
            return None
        try:
            sock = _open_socket(family, socket.SOCK_DGRAM)
        except OSError:
            context.budget.give()
            return None
        session = EchoSession(self, context, key, sock, -1)
        context.poller.add(sock, session, READ)
        return session

    def _raw_socket(self, family: socket.AddressFamily) -> RawEcho | None:
        raw = self._raw.get(family)
        if raw is None:
            try:
                sock = _open_socket(family, socket.SOCK_RAW)
            except OSError:
                return None
            if family == socket.AF_INET:
                sock.setsockopt(_SOL_RAW, _ICMP_FILTER, _ONLY_REPLIES_V4)
            else:
                sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, _ONLY_REPLIES_V6)
            raw = self._raw[family] = RawEcho(self, sock)
            self._context.poller.add(sock, raw, READ)
        return raw


class EchoSession:
    """One guest (address, identifier). With a ping socket of its own it is its token."""

    __slots__ = ("_context", "_nat", "_requests", "_v4", "ident", "key", "own_socket", "socket")

    def __init__(
        self,
        nat: EchoNat,
        context: Context,
        key: tuple[bytes, int],
        sock: socket.socket | DatagramSocket,
        ident: int,
    ) -> None:
        self._nat = nat
        self._context = context
        self.key = key
        self.ident = ident
        """On the raw socket; -1: the session has a ping socket, whose identifier is the kernel's."""
        self.own_socket = isinstance(sock, socket.socket)
        self.socket = DatagramSocket(sock, self.report) if isinstance(sock, socket.socket) else sock
        self._v4 = len(key[0]) == 4
        self._requests: OrderedDict[tuple[str, int], EchoRequest] = OrderedDict()

    def send(self, request: EchoRequest, destination: bytes, now: float) -> None:
        """Send `request` to `destination`, the host-side address of `request.dst`."""
        host = socket.inet_ntop(_family(destination), destination)
        kept = self._remember(request, host)
        failure = self.socket.deliver(
            self._message(request),
            (host, 0),
            request.hop_limit,
            request.traffic_class,
            request.dont_fragment,
            0,
            now,
        )
        if failure is not None:
            self._context.drops.add(failure.reason)
            if failure.kind is not None:
                self._context.stack.send_icmp_error(kept.quote, failure.kind, now, mtu=failure.mtu)

    def reply(self, host: str, message: memoryview, hop_limit: int, now: float) -> None:
        """An ICMP message from `host`; it goes to the guest if it answers a request."""
        if len(message) < 8 or message[0] != (0 if self._v4 else 129):
            return
        _, _, _, _, seq = _header.unpack_from(message)
        request = self._requests.get((host, seq))
        if request is None:
            self._context.drops.add(DropReason.ICMP_NO_MATCH)
            return
        self._context.stack.send_echo_reply(request, message[8:], now, hop_limit=max(1, hop_limit - 1))

    def on_ready(self, ready: int, now: float) -> None:
        """Replies or errors are there."""
        if ready & ERROR:
            self.socket.drain(now)
        if not ready & READ:
            return
        try:
            data, ancillary, _, address = self.socket.receive()
        except BlockingIOError:
            return
        except OSError:
            self.socket.drain(now)
            return
        self.reply(address[0], memoryview(data), hop_limit_of(ancillary), now)

    def on_timeout(self, now: float) -> None:
        self._nat.remove(self)

    def report(self, error: QueuedError, now: float) -> None:
        """An error about an earlier request becomes one about the guest's own."""
        if error.kind is None or error.host is None or len(error.data) < 8:
            return
        _, _, _, _, seq = _header.unpack_from(error.data)
        request = self._requests.get((error.host, seq))
        if request is None:
            self._context.drops.add(DropReason.ICMP_NO_MATCH)
            return
        source = self._context.policy.reporter(error.offender, error.host, request.dst)
        self._context.stack.send_icmp_error(request.quote, error.kind, now, mtu=error.mtu, source=source)

    def _message(self, request: EchoRequest) -> bytes:
        kind = 8 if self._v4 else 128
        if self.own_socket or not self._v4:
            # The kernel writes the checksum (and for a ping socket the identifier).
            return _header.pack(kind, 0, 0, max(self.ident, 0), request.seq) + request.payload
        total = native.ones_sum(request.payload, kind << 8) + self.ident + request.seq
        return _header.pack(kind, 0, -total % 0xFFFF, self.ident, request.seq) + request.payload

    def _remember(self, request: EchoRequest, host: str) -> EchoRequest:
        """Keep a copy without the payload; the request's views are borrowed."""
        requests = self._requests
        if len(requests) >= self._context.limits.echo_requests:
            requests.popitem(last=False)
        kept = requests[host, request.seq] = EchoRequest(
            request.src,
            request.dst,
            request.ident,
            request.seq,
            b"",
            request.hop_limit,
            request.traffic_class,
            request.dont_fragment,
            bytes(request.quote[:QUOTE]),
        )
        return kept


class RawEcho:
    """The raw ICMP socket of one family, shared by all sessions; the token of the socket."""

    __slots__ = ("_nat", "_v4", "socket")

    def __init__(self, nat: EchoNat, sock: socket.socket) -> None:
        self._nat = nat
        self._v4 = sock.family == socket.AF_INET
        self.socket = DatagramSocket(sock, self._report)

    def on_ready(self, ready: int, now: float) -> None:
        """Replies (to anybody on this host) or errors are there."""
        if ready & ERROR:
            self.socket.drain(now)
        if not ready & READ:
            return
        for _ in range(RECEIVE_BURST):
            try:
                data, ancillary, _, address = self.socket.receive()
            except BlockingIOError:
                return
            except OSError:
                self.socket.drain(now)
                continue
            self._reply(data, hop_limit_of(ancillary), address, now)

    def _reply(self, data: bytes, hop_limit: int, address: Address, now: float) -> None:
        message = memoryview(data)
        if self._v4:  # raw IPv4 sockets deliver the IP header as well
            message = message[(data[0] & 0x0F) * 4 :]
        session = self._session(message)
        if session is not None:
            session.reply(address[0], message, hop_limit, now)

    def _report(self, error: QueuedError, now: float) -> None:
        session = self._session(error.data)
        if session is not None:
            session.report(error, now)

    def _session(self, message: bytes | memoryview) -> EchoSession | None:
        if len(message) < 8:
            return None
        return self._nat.idents.get(_header.unpack_from(message)[3])
