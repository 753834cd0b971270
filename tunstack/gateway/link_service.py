"""Who is connected at a link, and when: virtual machines come and go, and the gateway stays.

Any number of machines may be connected at a link that listens; each is behind a port of its own at the
gateway's segment. Datagram sockets know no connections: there the machine that sends first is the one, until
it is not at its path any more, which is looked at each second.
"""

from __future__ import annotations

import contextlib
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

RETRY = 1.0
"""Seconds between attempts to dial a link that nobody answers, and looks at a datagram socket's peer."""
HANDSHAKE_TIMEOUT = 10.0
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
            from tunstack.gateway.stdio import standard_streams

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
        async with trio.open_nursery() as nursery:

            async def serve(client: socket.socket) -> None:
                if self._link.protocol == "vpnkit" and not await self._shake_hands(client):
                    client.close()
                    return
                await self._serve(self._device(client))
                if self._once:
                    nursery.cancel_scope.cancel()

            while True:
                await trio.lowlevel.wait_readable(sock)
                with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                    client, _ = sock.accept()
                    nursery.start_soon(serve, client)

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

    async def _shake_hands(self, client: socket.socket) -> bool:
        """vpnkit's handshake; False if there was none."""
        from tunstack.gateway import vpnkit

        client.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client.dup()))
        reason = f"there was no handshake within {HANDSHAKE_TIMEOUT:g} s"
        async with stream:
            with trio.move_on_after(HANDSHAKE_TIMEOUT):
                try:
                    await stream.send_all(vpnkit.check_hello(await _read(stream, vpnkit.HELLO.sizeof())))
                    command = await _read(stream, vpnkit.COMMAND.sizeof())
                    await stream.send_all(vpnkit.answer_command(command, self._gateway.plan.mtu))
                    return True
                except (vpnkit.HandshakeError, trio.BrokenResourceError) as error:
                    reason = str(error)
        self._tell(f"somebody was turned away at {self._link.url}: {reason}")
        return False


async def _read(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await stream.receive_some(size - len(data))
        if not part:
            raise trio.BrokenResourceError("it went without a handshake")
        data += part
    return data


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
