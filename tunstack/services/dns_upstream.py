"""DNS queries to the host's resolvers, over the host's own sockets.

Theory of operation. One query is a race: the first server is asked; when it stays silent for
its share of the time, the next one is asked as well while the earlier ones may still answer;
when it refuses or fails, the next one is asked at once. The first answer that settles the
question wins and ends the race. Each server of a race has a connected UDP socket of its own
(a fresh source port from the kernel, and only that server can be heard) and a fresh random id
(RFC 5452 section 9.2); it is sent again on the same socket for as many attempts as the
configuration says. What does not match is ignored, and the wait goes on. An answer with TC
is fetched again over TCP from the same server.

A server that stayed silent or unreachable while another one answered goes to the end of the
order for `AVOID` seconds, so that a dead first server costs one query some time and not each.

Bounds: `limits.dns_timeout` for a race; one socket per server and race.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import trio

from tunstack.limits import Limits
from tunstack.services import dns_wire
from tunstack.services.resolv_conf import Nameserver, Upstreams

AVOID = 10.0
"""Seconds for which a silent server is asked last."""

_MAX_UDP_QUERY = 1232
"""A longer query goes over TCP: it would not fit the smallest IPv6 MTU (RFC 8200 section 5)."""

_NEXT_SERVER = (dns_wire.SERVFAIL, dns_wire.NOTIMP, dns_wire.REFUSED)
"""Answers upon which the C library, too, asks the next server."""


class Forwarder:
    """Asks the resolvers that `upstreams` names; `clock` gives seconds."""

    def __init__(self, upstreams: Upstreams, limits: Limits, clock: Callable[[], float]) -> None:
        self._upstreams = upstreams
        self._limits = limits
        self._clock = clock
        self._avoid: dict[Nameserver, float] = {}

    @property
    def resolvers(self) -> tuple[Nameserver, ...]:
        """Those that are asked now."""
        return self._upstreams.current(self._clock()).nameservers

    async def exchange(self, query: bytes, question_end: int) -> bytes | None:
        """The resolvers' answer to `query`, with its id; all else as it came from the wire.

        `question_end` is the offset behind the only question. The answer may be an error or,
        where TCP failed, truncated; None if there was none at all.
        """
        resolvers = self._upstreams.current(self._clock())
        servers = self._in_order(resolvers.nameservers)
        share = min(resolvers.timeout, self._limits.dns_timeout / (len(servers) * resolvers.attempts))
        race = _Race(query, question_end, resolvers.attempts, share * len(servers))
        with trio.move_on_after(self._limits.dns_timeout):
            await self._run(race, servers, share)
        if race.answer is None:
            return None
        return query[:2] + race.answer[2:]

    async def _run(self, race: _Race, servers: list[Nameserver], share: float) -> None:
        results, outcomes = trio.open_memory_channel[tuple[Nameserver, bool]](len(servers))
        waiting = list(servers)
        failed: set[Nameserver] = set()
        async with trio.open_nursery() as nursery:
            while waiting or len(failed) < len(servers):
                if waiting:
                    nursery.start_soon(race.ask, waiting.pop(0), results)
                with trio.move_on_after(share if waiting else float("inf")):
                    server, settled = await outcomes.receive()
                    if settled:
                        self._remember(server, servers, race)
                        break
                    failed.add(server)
            nursery.cancel_scope.cancel()

    def _in_order(self, servers: tuple[Nameserver, ...]) -> list[Nameserver]:
        now = self._clock()
        self._avoid = {server: until for server, until in self._avoid.items() if until > now}
        # sorted() is stable: the configured order holds within both groups. A server that is
        # listed twice is one.
        return sorted(dict.fromkeys(servers), key=lambda server: server in self._avoid)

    def _remember(self, winner: Nameserver, servers: list[Nameserver], race: _Race) -> None:
        self._avoid.pop(winner, None)
        until = self._clock() + AVOID
        for server in servers[: servers.index(winner)]:
            if server not in race.heard:
                self._avoid[server] = until


class _Race:
    """One query and what has come of it."""

    __slots__ = ("_attempts", "_query", "_question_end", "_resend", "answer", "heard")

    def __init__(self, query: bytes, question_end: int, attempts: int, resend: float) -> None:
        self._query = query
        self._question_end = question_end
        self._attempts = attempts
        self._resend = resend
        self.answer: bytes | None = None
        self.heard: set[Nameserver] = set()

    async def ask(self, server: Nameserver, results: trio.MemorySendChannel[tuple[Nameserver, bool]]) -> None:
        """Put to one server; reports whether the question is settled. Never fails."""
        try:
            settled = await self._ask(server)
        except OSError:
            settled = False
        results.send_nowait((server, settled))

    async def _ask(self, server: Nameserver) -> bool:
        if len(self._query) <= _MAX_UDP_QUERY:
            answer = await self._ask_udp(server)
            if answer is None or not dns_wire.is_truncated(answer):
                return self._offer(server, answer)
            # Better than nothing, should TCP fail.
            self._offer(server, answer)
        with trio.move_on_after(self._resend):
            return self._offer(server, await self._ask_tcp(server))
        return False

    def _offer(self, server: Nameserver, answer: bytes | None) -> bool:
        if answer is None:
            return False
        self.heard.add(server)
        truncated = dns_wire.is_truncated(answer)
        settled = not truncated and dns_wire.rcode(answer) not in _NEXT_SERVER
        if settled or truncated or self.answer is None:
            self.answer = answer
        return settled

    def _fresh_query(self) -> bytes:
        return os.urandom(2) + self._query[2:]

    async def _ask_udp(self, server: Nameserver) -> bytes | None:
        family, address = _socket_address(server)
        query = self._fresh_query()
        with trio.socket.socket(family, socket.SOCK_DGRAM) as sock:
            await sock.connect(address)
            for _ in range(self._attempts):
                await sock.send(query)
                with trio.move_on_after(self._resend):
                    while True:
                        answer = await sock.recv(65535)
                        if dns_wire.is_answer(answer, query, self._question_end):
                            return answer
        return None

    async def _ask_tcp(self, server: Nameserver) -> bytes | None:
        family, address = _socket_address(server)
        query = self._fresh_query()
        with trio.socket.socket(family, socket.SOCK_STREAM) as sock:
            await sock.connect(address)
            stream = trio.SocketStream(sock)
            await stream.send_all(len(query).to_bytes(2, "big") + query)
            received = bytearray()
            while len(received) < 2 or len(received) < 2 + int.from_bytes(received[:2], "big"):
                try:
                    chunk = await stream.receive_some(65536)
                except trio.BrokenResourceError:
                    return None
                if not chunk:
                    return None
                received += chunk
        answer = bytes(received[2 : 2 + int.from_bytes(received[:2], "big")])
        return answer if dns_wire.is_answer(answer, query, self._question_end) else None


def _socket_address(server: Nameserver) -> tuple[socket.AddressFamily, tuple[str | int, ...]]:
    """Family and address for a socket; OSError if the scope names no interface."""
    if len(server.address) == 4:
        return socket.AF_INET, (socket.inet_ntop(socket.AF_INET, server.address), server.port)
    scope = 0
    if server.scope:
        scope = int(server.scope) if server.scope.isdecimal() else socket.if_nametoindex(server.scope)
    return socket.AF_INET6, (socket.inet_ntop(socket.AF_INET6, server.address), server.port, 0, scope)
