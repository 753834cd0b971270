"""The DNS service, imported and made when the first query comes, which not every command sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from tunstack.services.dns import DnsService, UdpEndpoint

Datagram = tuple[bytes, tuple[bytes, int]]


class LateDns:
    """Stands at the sockets in the place of the service that `make` makes."""

    def __init__(self, make: Callable[[], DnsService]) -> None:
        self._make = make
        self._service: DnsService | None = None

    async def serve_udp(self, endpoint: UdpEndpoint) -> None:
        """See `DnsService.serve_udp`."""
        try:
            first = await endpoint.receive_from()
        except trio.ClosedResourceError:
            return
        await self._get().serve_udp(_Begun(endpoint, first))

    async def serve_tcp(self, listener: trio.abc.Listener[trio.abc.Stream]) -> None:
        """See `DnsService.serve_tcp`."""
        try:
            first = await listener.accept()
        except trio.ClosedResourceError:
            return
        except OSError:  # the service knows what to do about it when it happens again
            await self._get().serve_tcp(listener)
            return
        await self._get().serve_tcp(_BegunListener(listener, first))

    def _get(self) -> DnsService:
        if self._service is None:
            self._service = self._make()
        return self._service


class _Begun:
    """An endpoint from which one datagram has been received already."""

    def __init__(self, endpoint: UdpEndpoint, first: Datagram) -> None:
        self._endpoint = endpoint
        self._first: Datagram | None = first
        self.send_to = endpoint.send_to

    async def receive_from(self) -> Datagram:
        first, self._first = self._first, None
        return await self._endpoint.receive_from() if first is None else first


class _BegunListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener from which one stream has been accepted already."""

    def __init__(self, listener: trio.abc.Listener[trio.abc.Stream], first: trio.abc.Stream) -> None:
        self._listener = listener
        self._first: trio.abc.Stream | None = first

    async def accept(self) -> trio.abc.Stream:
        first, self._first = self._first, None
        return await self._listener.accept() if first is None else first

    async def aclose(self) -> None:
        await self._listener.aclose()
