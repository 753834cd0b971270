"""Wintun: IP packets to and from Windows, by two rings in memory.

Theory of operation. The device has no descriptor. While it is open a task waits for the ring's event, tells
the engine, and waits again only when the engine has read all that there is: the event is set for each packet,
also while nobody waits, so none is missed between. Packets are read in the engine's task, as each call of
the DLL lets go of the GIL and would fight for it elsewhere.

A ring that is full takes no more; nothing tells when it has room again, so the rest is offered anew after
`RETRY` seconds, or sooner if anything else happens. An adapter that goes away - Windows removes it, or its
driver is updated - is `DeviceClosed`. To make and to close an adapter takes seconds and happens in threads.

In the end, in this order: the task has ended, and with it its thread; the session; the adapter. The engine
closes the device before that, from when on nobody uses the session, which must not end under the waiter.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable, Sequence

import trio

from tunstack.background import beside
from tunstack.link.devices.base import DeviceClosed, Offloads
from tunstack.link.devices.events import Events, Waiter, system_events
from tunstack.link.devices.interface import InterfaceSettings, is_foreign, set_up_interface
from tunstack.link.devices.iphlpapi import Interfaces, system_interfaces
from tunstack.link.devices.wintun_api import (
    ALREADY_EXISTS,
    CAPACITY,
    LARGEST,
    TAKEN,
    Adapter,
    Library,
    Session,
    WintunError,
    guid_of,
    load,
)
from tunstack.packet import Checksum, Packet

log = logging.getLogger(__name__)

RETRY = 0.005
"""Seconds until what a full ring has refused is offered again."""
ATTEMPTS = 4
"""To make an adapter whose identity somebody still holds: an earlier run of ours, for some seconds."""
PAUSE = 1.0
"""Seconds between them."""


class WintunDevice:
    """A session of an adapter. Implements `Device`; made by `open_wintun`.

    Attributes:
        adapter: what it belongs to.
    """

    def __init__(self, adapter: Adapter, session: Session, events: Events, *, mtu: int) -> None:
        """`mtu`: of the IP packets that are sent, bytes; Windows may send larger ones."""
        self.adapter = adapter
        self.name = adapter.name
        self.offloads = Offloads(l2=False, mtu=mtu, max_frame=LARGEST)
        self.on_ready: Callable[[], None] | None = None
        self.write_errors = 0
        self._session = session
        self._waiter = Waiter(events, session.read_event)
        self._is_closed = False
        self._is_empty = trio.Event()
        self._has_refused = trio.Event()

    def set_offloads(self, enabled: bool) -> None:
        """See `Device`; there are none."""

    def fileno(self) -> None:
        """None: there is no descriptor."""

    def read_batch(self, limit: int) -> list[Packet]:
        """See `Device`. `DeviceClosed` also where the ring is broken, which is logged."""
        self._check_open()
        try:
            packets = self._session.receive(limit)
        except WintunError as error:
            log.error("%s", error.strerror)
            raise DeviceClosed(str(error.strerror)) from None
        if len(packets) < limit:
            self._is_empty.set()
        return [Packet(packet, (), 0, 0, Checksum.UNKNOWN) for packet in packets if packet]

    def write_batch(self, packets: Sequence[Packet]) -> int:
        """See `Device`."""
        self._check_open()
        for number, packet in enumerate(packets):
            if packet.gso_size or not 0 < len(packet) <= self.offloads.mtu:
                self.write_errors += 1
            elif not self._session.send(packet.tobytes()):
                self._has_refused.set()
                return number
        return len(packets)

    def flush(self) -> bool:
        """See `Device`; nothing waits here."""
        return True

    def close(self) -> None:
        """Nothing is read or written any more; the rest is `open_wintun`'s to end."""
        self._is_closed = True

    async def serve(self) -> None:
        """Tell whoever reads of what comes, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._retry)
            while True:
                await self._waiter.wait()
                self._is_empty = trio.Event()
                self._tell()
                await self._is_empty.wait()

    def end(self) -> None:
        """End the session; `serve` has ended."""
        self._waiter.close()
        self._session.end()

    async def _retry(self) -> None:
        while True:
            await self._has_refused.wait()
            self._has_refused = trio.Event()
            await trio.sleep(RETRY)
            self._tell()

    def _tell(self) -> None:
        if self.on_ready is not None:
            self.on_ready()

    def _check_open(self) -> None:
        if self._is_closed:
            raise DeviceClosed(f"{self.name} is closed")


@contextlib.asynccontextmanager
async def open_wintun(
    name: str,
    *,
    mtu: int,
    interface: InterfaceSettings | None = None,
    capacity: int = CAPACITY,
    library: Library | str | os.PathLike[str] | None = None,
    interfaces: Interfaces | None = None,
) -> AsyncIterator[WintunDevice]:
    """An adapter `name` of one's own, and its packets, as long as the block.

    `interface`: the addresses, routes and resolvers that Windows gets with it; None: it is as Windows makes
    it, with its own MTU. `capacity`: bytes of a ring, a power of two. `library`: wintun.dll or where it is;
    see `find_library`. `interfaces`: the functions that know the interfaces, in place of this machine's.

    Raises:
        WintunError: there is no DLL, no right to make adapters, …; one sentence says what to do.
        InterfaceError: Windows does not take what `interface` says.
        ValueError: `capacity` cannot be; `interface` is given, and this is no Windows.
    """
    if not isinstance(library, Library):
        library = load(library)
    interfaces = interfaces or system_interfaces()
    if interface is not None and interfaces is None:
        raise ValueError("interfaces are set up on Windows alone")
    library.log_to(log)
    if interfaces is not None and is_foreign(interfaces, name, _identities(name)):
        # Wintun would give it another name.
        raise WintunError(TAKEN, f"the adapter '{name}' cannot be made")
    adapter = await _create(library, name)
    try:
        if interface is not None and interfaces is not None:
            await set_up_interface(interfaces, adapter.luid, name, interface, mtu)
        session = adapter.start(capacity)
        device = WintunDevice(adapter, session, system_events(), mtu=mtu)
        try:
            async with beside(device.serve):
                yield device
        finally:
            device.end()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(adapter.close)


def _identities(name: str) -> list[uuid.UUID]:
    """Those that are tried for an adapter, one after the other.

    The last one is for who crashed: nobody lets go of that identity before the machine is started anew.
    """
    return [*[guid_of(name)] * (ATTEMPTS - 1), guid_of(name, 1)]


async def _create(library: Library, name: str) -> Adapter:
    """Make an adapter, in a thread; an identity that is still in use is waited for, and then given up."""
    *identities, last = _identities(name)
    for guid in identities:
        try:
            return await trio.to_thread.run_sync(library.create, name, guid)
        except WintunError as error:
            if error.code != ALREADY_EXISTS:
                raise
        await trio.sleep(PAUSE)
    return await trio.to_thread.run_sync(library.create, name, last)
