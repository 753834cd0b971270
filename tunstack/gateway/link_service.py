"""Who is connected at a link, and when: virtual machines come and go, and the gateway stays.

Any number of machines may be connected at a link that listens; each is behind a port of its own at the
gateway's segment. Datagram sockets know no connections: there the machine that sends first is the one, until
it is not at its path any more, which is looked at each second.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

import trio

from tunstack.errors import LocalError
from tunstack.gateway import link_sockets
from tunstack.gateway.gateway import Gateway
from tunstack.gateway.links import Link, LinkError
from tunstack.link.devices.base import DeviceClosed
from tunstack.link.devices.datagram import DatagramDevice
from tunstack.link.devices.framed import FramedDevice
from tunstack.link.devices.stream import StreamDevice
from tunstack.link.framings import HYPERKIT, QEMU
from tunstack.vsock.handshakes import Refused
from tunstack.vsock.sockets import closed_on_failure, shake_hands
from tunstack.vsock.upgrade import ALL_OFFLOADS, Terms, accept, can_have_headers

RETRY = 1.0
"""Seconds between attempts to dial a link that nobody answers, and looks at a datagram socket's peer."""
HANDSHAKE_TIMEOUT = 10.0
MOST_STRANGERS = 32
"""Clients of one link whose handshake is not over; more wait to be accepted."""
_GREETING = b"VFKT"

Tell = Callable[[str], object]
"""Takes one line about what happens at a link."""


class LinkService:
    """Serves one link."""

    def __init__(self, link: Link, gateway: Gateway, *, once: bool, tell: Tell) -> None:
        """`once`: end when the first machine has gone."""
        self._link = link
        self._gateway = gateway
        self._once = once
        self._tell = tell

    async def run(self) -> None:
        """Let virtual machines come and go, until cancelled; with `once` until the first has gone.

        Raises:
            LinkError: the descriptor is no socket for a link.
            OSError: somebody else listens there, or the socket cannot be made.
        """
        link = self._link
        if link.protocol == "stdio":
            from tunstack.vsock.stdio import standard_streams

            async with standard_streams() as sock:
                await self._serve(StreamDevice(sock, **self._options(), framing=HYPERKIT))
        elif link.connect:
            await self._dial()
        else:
            with link_sockets.bound(link) as sock:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    self._tell(f"waiting at {link.url}")
                    await self._listen(sock)
                elif isinstance(link.address, int):
                    await self._serve(self._device(sock.dup()))
                else:
                    self._tell(f"waiting at {link.url}")
                    await self._meet(sock)

    def _options(self) -> dict[str, Any]:
        gateway, link = self._gateway, self._link
        return {
            "mtu": gateway.plan.mtu,
            "drops": gateway.stack.drops,
            "name": link.url,
            "is_trusted": link.is_trusted,
        }

    def _device(self, sock: socket.socket) -> FramedDevice:
        if sock.type != socket.SOCK_STREAM:
            return DatagramDevice(sock, **self._options())
        link_sockets.set_up(sock)
        framing = HYPERKIT if self._link.protocol == "vpnkit" else QEMU
        return StreamDevice(sock, **self._options(), framing=framing)

    async def _serve(self, device: FramedDevice) -> None:
        """One machine, until it has gone."""
        link, gateway = self._link, self._gateway
        try:
            port = gateway.connect(device, is_isolated=link.is_isolated, is_guarded=link.is_guarded)
        except LocalError as error:
            device.close()
            self._tell(f"a virtual machine was turned away at {link.url}: {error}")
            return
        gone = trio.Event()
        port.on_closed = lambda why: gone.set()
        self._tell(f"a virtual machine is connected at {link.url}, port {port.number}")
        try:
            if isinstance(device, DatagramDevice):
                await self._watch(device, gone)
            await gone.wait()
        finally:
            gateway.disconnect(port)
        self._tell(f"the virtual machine at {link.url}, port {port.number}, has gone")

    async def _watch(self, device: DatagramDevice, gone: trio.Event) -> None:
        while True:
            with trio.move_on_after(RETRY):
                await gone.wait()
                return None
            try:
                device.check_peer()
            except DeviceClosed:
                return gone.set()

    async def _listen(self, sock: socket.socket) -> None:
        strangers = trio.Semaphore(MOST_STRANGERS)
        async with trio.open_nursery() as nursery:

            async def serve(client: socket.socket) -> None:
                client.setblocking(False)
                try:
                    with closed_on_failure(client):
                        device = await self._welcome(client)
                finally:
                    strangers.release()
                if device is None:
                    client.close()
                    return
                await self._serve(device)
                if self._once:
                    nursery.cancel_scope.cancel()

            while True:
                await strangers.acquire()
                nursery.start_soon(serve, await self._accept(sock))

    async def _accept(self, sock: socket.socket) -> socket.socket:
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                return sock.accept()[0]
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:  # there are no descriptors; somebody may go
                self._tell(f"nobody can be accepted at {self._link.url}: {error.strerror}")
                await trio.sleep(RETRY)

    async def _dial(self) -> None:
        is_told = False
        while True:
            try:
                client = await link_sockets.dial(self._link)
            except OSError as error:
                if self._once:
                    raise
                if not is_told:
                    url = self._link.url
                    self._tell(f"nobody answers at {url} ({error.strerror}); trying again each second")
                    is_told = True
                await trio.sleep(RETRY)
                continue
            is_told = False
            await self._serve(self._device(client))
            if self._once:
                return
            await trio.sleep(RETRY)

    async def _meet(self, sock: socket.socket) -> None:
        """Serve who sends to a bound datagram socket, one machine at a time."""
        peer = self._link.peer
        while True:
            address = peer or await self._first_sender(sock)
            try:
                sock.connect(address)
            except OSError:
                await trio.sleep(RETRY)
                continue
            await self._serve(self._device(sock.dup()))
            if self._once:
                return
            link_sockets.dissolve(sock)

    async def _first_sender(self, sock: socket.socket) -> str:
        """Who has sent the first datagram, which stays to be read unless it is a greeting."""
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                data, address = sock.recvfrom(len(_GREETING) + 1, socket.MSG_PEEK)
                if data == _GREETING or not address:  # nobody could be answered who has no path
                    sock.recv(1)
            except BlockingIOError:
                continue
            if address:
                return str(address)

    async def _welcome(self, client: socket.socket) -> FramedDevice | None:
        """The device of who has connected, after the protocol's handshake; None: there was none."""
        protocol = self._link.protocol
        if protocol not in ("vpnkit", "agent"):
            return self._device(client)
        reason = f"there was no handshake within {HANDSHAKE_TIMEOUT:g} s"
        with trio.move_on_after(HANDSHAKE_TIMEOUT):
            try:
                if protocol == "agent":
                    return await self._welcome_agent(client)
                from tunstack.gateway.vpnkit import serve

                await shake_hands(client, serve(self._gateway.plan.mtu))
                return self._device(client)
            except (Refused, OSError) as error:
                reason = str(error)
        self._tell(f"somebody was turned away at {self._link.url}: {reason}")
        return None

    async def _welcome_agent(self, client: socket.socket) -> FramedDevice:
        gateway = self._gateway
        link_sockets.set_up(client)
        mine = Terms(gateway.plan.mtu, ALL_OFFLOADS if can_have_headers() else frozenset())
        refusal = None if gateway.switch.has_free_port else "there are as many machines as there can be"
        agreed = await shake_hands(client, accept(mine, refusal))
        if agreed is None:
            return StreamDevice(client, **self._options(), framing=HYPERKIT)
        return StreamDevice(client, **self._options(), framing=QEMU, offloads=agreed.device_offloads)


class LinkServices:
    """The links of a gateway, which may change."""

    def __init__(self, gateway: Gateway, *, once: bool, tell: Tell) -> None:
        """`once`: end when the first machine has gone."""
        self._gateway = gateway
        self._once = once
        self._tell = tell
        self._scopes: dict[Link, trio.CancelScope] = {}
        self._nursery: trio.Nursery

    async def run(self, links: Iterable[Link]) -> None:
        """Serve `links` until all have ended. Raises what `LinkService.run` raises."""
        async with trio.open_nursery() as self._nursery:
            for link in links:
                self._nursery.start_soon(self._serve, link, False)

    def change(self, links: Iterable[Link]) -> None:
        """Serve these from now on: others end, with their machines; what cannot be served is told of."""
        wanted = list(links)
        for link in wanted:
            if link not in self._scopes:
                self._nursery.start_soon(self._serve, link, True)
        for link, scope in self._scopes.items():
            if link not in wanted:
                self._tell(f"{link.url} is not served any more")
                scope.cancel()

    async def _serve(self, link: Link, is_lenient: bool) -> None:
        with trio.CancelScope() as scope:
            self._scopes[link] = scope
            try:
                await LinkService(link, self._gateway, once=self._once, tell=self._tell).run()
            except (LinkError, OSError) as error:
                if not is_lenient:
                    raise
                self._tell(f"{link.url}: {error}")
            finally:
                del self._scopes[link]
        if self._once and not scope.cancelled_caught:
            self._nursery.cancel_scope.cancel()
