"""The DNS service behind TCP, imported and made when the first query comes, which not every command sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from tunstack.services.dns import DnsService


class LateDns:
    """Stands at the listeners in the place of the service that `make` makes."""

    def __init__(self, make: Callable[[], DnsService]) -> None:
        self._make = make

    async def serve_tcp(self, listener: trio.abc.Listener[trio.abc.Stream]) -> None:
        """See `DnsService.serve_tcp`."""
        try:
            first = await listener.accept()
        except trio.ClosedResourceError:
            return
        except OSError:  # the service knows what to do about it when it happens again
            await self._make().serve_tcp(listener)
            return
        await self._make().serve_tcp(_BegunListener(listener, first))


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
