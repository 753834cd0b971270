"""The DNS service of the gateway: own names answered here, all else relayed to the host's resolvers.

Theory of operation. `DnsService.answer` is the heart: a query's bytes in, an answer's bytes
out. The header is looked at first; what has none, or is itself a response, is dropped, and
what is no plain query gets FORMERR or NOTIMP. Questions about own names are answered from
the table `names`. Others are relayed as bytes, so that record types and options that nobody
here knows pass untouched; only the id differs on the far side. They go to the resolvers of
the longest zone in `routes` that the name lies in, or else to those of the host. What comes
back is kept as long as it lasts (`dns_cache`), but for no longer than the resolvers are the
same. An answer too long for the client's datagram is cut and marked with TC.

`serve_udp` and `serve_tcp` are the two ways in; they work on anything that looks like a
socket of the virtual network or of the host.

Bounds: `limits.dns_queries` relayed at once, at most half of them for one client address and
half for all of TCP; beyond, a UDP query is dropped (its client will ask again) and a TCP query gets SERVFAIL.
Own names are never refused for lack of a place. For TCP: `dns_connections`, `dns_pipeline`
queries each, `dns_idle` seconds without a query, `dns_query_size` bytes of a query.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

import trio

from tunstack.errors import BadPacket, DropCounters, DropReason
from tunstack.limits import DEFAULT_LIMITS, Limits
from tunstack.services import dns_wire
from tunstack.services.dns_cache import DnsCache
from tunstack.services.dns_upstream import Forwarder
from tunstack.services.local_names import Labels, LocalNames
from tunstack.services.resolv_conf import Nameserver, Upstreams

if TYPE_CHECKING:
    from tunstack.services.dns_messages import Query

Transport = Literal["udp", "tcp"]

_MAX_RECORDS = 4
"""Records beside the question: EDNS, a signature, an IXFR's SOA. More cost time to no end."""

_ACCEPT_PAUSE = 0.1
"""Seconds before another accept when the system has no descriptor or memory left."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class UdpEndpoint(Protocol):
    """A bound UDP socket; addresses are 4 or 16 bytes."""

    async def receive_from(self) -> tuple[bytes, tuple[bytes, int]]: ...

    async def send_to(self, payload: bytes, address: bytes, port: int) -> None: ...


class DnsService:
    """Answers queries.

    `names` are the gateway's own and may be replaced at any time; `upstreams` says whom to
    ask for the rest, but for the zones in `routes`; `clock` gives seconds, by default trio's.

    Attributes:
        cache: what the resolvers have answered.
    """

    def __init__(
        self,
        names: LocalNames,
        upstreams: Upstreams,
        limits: Limits = DEFAULT_LIMITS,
        drops: DropCounters | None = None,
        clock: Callable[[], float] = trio.current_time,
        routes: Mapping[Labels, Upstreams] | None = None,
    ) -> None:
        self.names = names
        self.cache = DnsCache(limits.dns_cache, limits.dns_cache_size)
        self.limits = limits
        self.drops = DropCounters() if drops is None else drops
        self._clock = clock
        self._forwarders: dict[Labels, Forwarder] = {}
        """By the zone that they are for, () for all others."""
        self._known: list[tuple[Nameserver, ...]] = []
        self.ask(upstreams, routes or {})
        self._places = _Places(limits.dns_queries)
        self._connections = 0

    def ask(self, upstreams: Upstreams, routes: Mapping[Labels, Upstreams]) -> None:
        """From now on ask these."""
        asked = {(): upstreams, **routes}
        self._forwarders = {zone: Forwarder(one, self.limits, self._clock) for zone, one in asked.items()}
        self._known = []
        self.cache.clear()

    async def answer(
        self, query: bytes, transport: Transport, client: Hashable | None = None
    ) -> bytes | None:
        """The answer to `query`, or None if it is to be dropped, which is counted.

        `client` is whose share of the places this takes; by default that of the transport.
        An answer for "udp" is no longer than the client said it takes (RFC 6891 section 6.2.3).
        """
        step = self._begin(query, transport)
        if step is None or isinstance(step, bytes):
            return step
        client = transport if client is None else client
        if not self._places.take(client):
            return self._no_place(step, transport)
        try:
            return await self._relay(step, transport)
        finally:
            self._places.give_back(client)

    def _begin(self, wire: bytes, transport: Transport) -> Query | bytes | None:
        """The answer, None for none, or a query that has to be relayed."""
        if len(wire) < dns_wire.HEADER_SIZE or dns_wire.is_response(wire):
            # Whoever answers a response has a loop.
            self.drops.add(DropReason.BAD_DNS)
            return None
        if dns_wire.opcode(wire):
            return dns_wire.error_reply(wire, dns_wire.NOTIMP)
        questions, *records = dns_wire.counts(wire)
        try:
            if questions != 1 or sum(records) > _MAX_RECORDS or len(wire) > self.limits.dns_query_size:
                raise BadPacket(DropReason.BAD_DNS)
            cached = self._find_cached(wire, transport)
            if cached is not None:
                return cached
            from tunstack.services import dns_messages  # late: see there

            query = dns_messages.parse_query(wire)
        except BadPacket as bad:
            self.drops.add(bad.reason)
            return dns_wire.error_reply(wire, dns_wire.FORMERR)
        local = self.names.find(query.name)
        if local is not None:
            return dns_messages.local_answer(query, local, transport, self.names.find)
        if query.is_transfer:
            return dns_messages.error_answer(query, dns_wire.REFUSED)
        return query

    def _find_cached(self, wire: bytes, transport: Transport) -> bytes | None:
        """What was answered before, if the name is not our own; BadPacket."""
        question = dns_wire.read_question(wire)
        if question is None or not len(self.cache):
            return None
        name, end = question
        if self.names.find(name) is not None:
            return None
        self._check_resolvers()
        edns = dns_wire.find_edns(wire, end)
        answer = self.cache.find(wire, end, edns, self._clock())
        if answer is None or transport == "tcp" or len(answer) <= (limit := dns_wire.udp_limit(edns)):
            return answer
        return dns_wire.truncate(answer, limit, b"" if edns is None else dns_wire.opt_record(edns.dnssec_ok))

    def _check_resolvers(self) -> None:
        """Forget what other resolvers than those of now have said."""
        known = [forwarder.resolvers for forwarder in self._forwarders.values()]
        if known != self._known:
            self._known = known
            self.cache.clear()

    def _forwarder_for(self, name: Labels) -> Forwarder:
        for start in range(len(name)):
            forwarder = self._forwarders.get(name[start:])
            if forwarder is not None:
                return forwarder
        return self._forwarders[()]

    def _no_place(self, query: Query, transport: Transport) -> bytes | None:
        from tunstack.services import dns_messages

        self.drops.add(DropReason.DNS_QUERY_LIMIT)
        if transport == "udp":
            return None
        return dns_messages.error_answer(query, dns_wire.SERVFAIL)

    async def _relay(self, query: Query, transport: Transport) -> bytes:
        from tunstack.services import dns_messages

        self._check_resolvers()
        known = self._known
        answer = await self._forwarder_for(query.name).exchange(query.wire, query.question_end)
        if answer is None:
            return dns_messages.error_answer(query, dns_wire.SERVFAIL)
        if known is self._known:
            self.cache.keep(query.wire, query.question_end, query.edns, answer, self._clock())
        if transport == "udp" and len(answer) > query.udp_limit:
            return dns_wire.truncate(answer, query.udp_limit, query.opt)
        return answer

    async def serve_udp(self, endpoint: UdpEndpoint) -> None:
        """Answer what arrives at `endpoint`, until it is closed."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    payload, (address, port) = await endpoint.receive_from()
                except trio.ClosedResourceError:
                    nursery.cancel_scope.cancel()
                    return
                step = self.begin(bytes(payload), address)
                if isinstance(step, bytes):
                    await _send_datagram(endpoint, step, address, port)
                elif step is not None:
                    nursery.start_soon(self._relay_datagram, step, endpoint, address, port)

    def begin(self, payload: bytes, client: Hashable) -> Query | bytes | None:
        """The answer to a datagram of `client`, None for none, or a query to call `finish` with."""
        step = self._begin(payload, "udp")
        if step is None or isinstance(step, bytes) or self._places.take(client):
            return step
        return self._no_place(step, "udp")

    async def finish(self, query: Query, client: Hashable) -> bytes:
        """The answer to what `begin` has left."""
        try:
            return await self._relay(query, "udp")
        finally:
            self._places.give_back(client)

    async def _relay_datagram(self, query: Query, endpoint: UdpEndpoint, address: bytes, port: int) -> None:
        await _send_datagram(endpoint, await self.finish(query, address), address, port)

    async def serve_tcp(self, listener: trio.abc.Listener[trio.abc.Stream]) -> None:
        """Answer on each connection that `listener` accepts, until it is closed.

        Connections that are open then may finish.
        """
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    stream = await listener.accept()
                except trio.ClosedResourceError:
                    return
                except OSError as error:
                    if error.errno not in _EXHAUSTED:
                        raise
                    await trio.sleep(_ACCEPT_PAUSE)
                    continue
                if self._connections >= self.limits.dns_connections:
                    self.drops.add(DropReason.DNS_QUERY_LIMIT)
                    await trio.aclose_forcefully(stream)
                    continue
                self._connections += 1
                nursery.start_soon(self._serve_stream, stream)

    async def _serve_stream(self, stream: trio.abc.Stream) -> None:
        try:
            async with stream:
                await _TcpClient(self, stream).run()
        finally:
            self._connections -= 1


async def _send_datagram(endpoint: UdpEndpoint, payload: bytes, address: bytes, port: int) -> None:
    # An answer that cannot be sent is as one that the network lost.
    with contextlib.suppress(OSError, trio.ClosedResourceError):
        await endpoint.send_to(payload, address, port)


class _Places:
    """Places for queries under way: `total` of them, half of them for any one client."""

    __slots__ = ("_share", "_taken", "_total", "_used")

    def __init__(self, total: int) -> None:
        self._total = total
        self._share = max(1, total // 2)
        self._used = 0
        self._taken: dict[Hashable, int] = {}

    def take(self, client: Hashable) -> bool:
        mine = self._taken.get(client, 0)
        if self._used >= self._total or mine >= self._share:
            return False
        self._used += 1
        self._taken[client] = mine + 1
        return True

    def give_back(self, client: Hashable) -> None:
        self._used -= 1
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]


class _TcpClient:
    """One TCP connection: queries, each behind its length, answered as they get ready (RFC 7766)."""

    __slots__ = ("_buffer", "_places", "_reading", "_sending", "_service", "_stream")

    def __init__(self, service: DnsService, stream: trio.abc.Stream) -> None:
        self._service = service
        self._stream = stream
        self._buffer = bytearray()
        self._places = trio.Semaphore(service.limits.dns_pipeline)
        self._sending = trio.Lock()
        self._reading = trio.CancelScope()

    async def run(self) -> None:
        """Until the client has nothing more to ask and has all its answers, or misbehaves."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._places.acquire()
                query = await self._receive()
                if query is None:
                    return
                nursery.start_soon(self._answer, query, nursery.cancel_scope)

    async def _receive(self) -> bytes | None:
        """The next query; None at the end, after too long a silence, or if it is too long."""
        buffer = self._buffer
        with trio.move_on_after(self._service.limits.dns_idle) as self._reading:
            while True:
                if len(buffer) >= 2:
                    end = 2 + int.from_bytes(buffer[:2], "big")
                    if end - 2 > self._service.limits.dns_query_size:
                        self._service.drops.add(DropReason.BAD_DNS)
                        return None
                    if len(buffer) >= end:
                        query = bytes(buffer[2:end])
                        del buffer[:end]
                        return query
                try:
                    chunk = await self._stream.receive_some(4096)
                except trio.BrokenResourceError:
                    return None
                if not chunk:
                    return None
                buffer += chunk
        return None

    async def _answer(self, query: bytes, connection: trio.CancelScope) -> None:
        idle = self._service.limits.dns_idle
        try:
            answer = await self._service.answer(query, "tcp")
            if answer is None:
                # Without a header where one must be, the lengths cannot be trusted either.
                connection.cancel()
                return
            with trio.move_on_after(idle) as sending:
                async with self._sending:
                    await self._stream.send_all(len(answer).to_bytes(2, "big") + answer)
            if sending.cancelled_caught:
                connection.cancel()
            self._reading.deadline = trio.current_time() + idle
        except trio.BrokenResourceError:
            connection.cancel()
        finally:
            self._places.release()
