"""Connects the interface to a gateway, and again whenever the link ends.

Theory of operation. The interface is there all the time. Each connection begins with the question for a link
with headers, and if the other end does not know that, with gvproxy's (`tunstack.vsock.upgrade`); which it was
is remembered, so that the next one does not ask in vain, and forgotten when nobody answers. Attempts follow
each other after `FIRST_WAIT` seconds and twice as much each time up to `LAST_WAIT`; a link that was there
counts as success only after it has carried for `STABLE` seconds, lest one that ends at once is hammered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable

import trio

from tunstack.link.devices.base import DeviceClosed
from tunstack.link.devices.stream import StreamDevice
from tunstack.link.framings import HYPERKIT, QEMU
from tunstack.vsock.addresses import Address
from tunstack.vsock.agent.interface import NO_ADDRESSES, Addresses, Interface, describe, open_interface
from tunstack.vsock.agent.lease import LeaseKeeper
from tunstack.vsock.agent.wire import Wire
from tunstack.vsock.handshakes import Refused
from tunstack.vsock.sockets import closed_on_failure, connect, shake_hands
from tunstack.vsock.upgrade import ALL_OFFLOADS, Terms, ask, ask_plain, can_have_headers

FIRST_WAIT, LAST_WAIT = 0.05, 1.0
"""Seconds between attempts to connect."""
STABLE = 2.0
CONNECT_TIMEOUT = 5.0
"""Seconds for an attempt with all that is said."""


class Gone(Exception):
    """The link has ended, and there is no other; the message is one sentence."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What the agent is to do.

    Attributes:
        address: where the gateway is; None: at standard input and output.
        interface: name of the TAP.
        mac: of it, 6 bytes; None: the usual one.
        mtu: IP MTU in bytes, unless the gateway says another one.
        addresses: what the interface has; None: what DHCP gives.
        resolv_conf: the file that resolvers are written to, or None.
        keep: leave the interface when the agent ends.
        plain: ask for frames without headers only.
        hostname: told to the DHCP server, or None.
    """

    address: Address | None
    interface: str = "tap0"
    mac: bytes | None = None
    mtu: int = 1500
    addresses: Addresses | None = None
    resolv_conf: str | None = None
    keep: bool = False
    plain: bool = False
    hostname: str | None = None


async def run_agent(settings: AgentSettings, tell: Callable[[str], object]) -> None:
    """Be the guest's end of the link, until cancelled. `tell` takes one line about what happens.

    Raises:
        InterfaceError: the interface cannot be made.
        Gone: standard input has ended.
    """
    with open_interface(
        settings.interface,
        mtu=settings.mtu,
        mac=settings.mac,
        keep=settings.keep,
        resolv_conf=settings.resolv_conf,
    ) as interface:
        tell(f"interface {describe(interface)}")
        async with _addressed(interface, settings, tell) as keeper:
            try:
                await _Agent(settings, interface, keeper, tell).run()
            finally:
                if not settings.keep:
                    interface.restore_resolvers()


@contextlib.asynccontextmanager
async def _addressed(
    interface: Interface, settings: AgentSettings, tell: Callable[[str], object]
) -> AsyncIterator[LeaseKeeper | None]:
    """The interface with its addresses, as long as the block."""
    if settings.addresses is not None:
        if settings.addresses != NO_ADDRESSES:
            interface.configure(settings.addresses)
        yield None
        return
    keeper = LeaseKeeper(interface, settings.hostname, tell)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            yield keeper
            nursery.cancel_scope.cancel()
    finally:
        keeper.close()


class _Agent:
    def __init__(
        self,
        settings: AgentSettings,
        interface: Interface,
        keeper: LeaseKeeper | None,
        tell: Callable[[str], object],
    ) -> None:
        self._settings = settings
        self._interface = interface
        self._keeper = keeper
        self._tell = tell
        self._is_plain = settings.plain or not can_have_headers()

    async def run(self) -> None:
        address = self._settings.address
        if address is None:
            from tunstack.vsock.stdio import standard_streams

            async with standard_streams() as sock:
                await self._carry(self._plain_device(sock))
            raise Gone("standard input has ended")
        wait, complaint = FIRST_WAIT, ""
        while True:
            try:
                with trio.fail_after(CONNECT_TIMEOUT):
                    device = await self._connect(address)
            except (OSError, Refused, trio.TooSlowError) as error:
                self._is_plain = self._settings.plain or not can_have_headers()
                reason = getattr(error, "strerror", None) or str(error) or "no answer"
                if reason != complaint:
                    self._tell(f"no link to {address}: {reason}; trying on")
                    complaint = reason
            else:
                complaint, began = "", trio.current_time()
                self._tell(f"connected to {address}, {'with' if device.has_header else 'without'} offloads")
                await self._carry(device)
                self._tell(f"the link to {address} has ended")
                if trio.current_time() - began >= STABLE:
                    wait = FIRST_WAIT
            await trio.sleep(wait)
            wait = min(2 * wait, LAST_WAIT)

    async def _connect(self, address: Address) -> StreamDevice:
        if not self._is_plain:
            sock = await connect(address)
            with closed_on_failure(sock):
                agreed = await shake_hands(sock, ask(Terms(self._settings.mtu, ALL_OFFLOADS)))
                if agreed is not None:
                    self._interface.set_link(mtu=agreed.mtu)
                    return StreamDevice(sock, mtu=agreed.mtu, framing=QEMU, offloads=agreed.device_offloads)
            sock.close()
            self._is_plain = True
        sock = await connect(address)
        with closed_on_failure(sock):
            await shake_hands(sock, ask_plain())
        return self._plain_device(sock)

    def _plain_device(self, sock: socket.socket) -> StreamDevice:
        return StreamDevice(sock, mtu=self._settings.mtu, framing=HYPERKIT)

    async def _carry(self, device: StreamDevice) -> None:
        """Carry frames until the link ends."""
        try:
            if self._keeper is not None:
                self._keeper.link_up()
            await Wire(self._interface.device, device).run()
        except DeviceClosed:
            if self._interface.is_gone():
                raise Gone(f"the interface {self._settings.interface} has been deleted") from None
        finally:
            device.close()
