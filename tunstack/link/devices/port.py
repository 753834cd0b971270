"""The places at a segment: what a port of it is, how it is watched, and how that is interrupted."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tunstack.errors import DropCounters, DropReason
from tunstack.link.devices.base import READ
from tunstack.link.devices.framed import FramedDevice
from tunstack.link.devices.linux import new_eventfd, read_eventfd, write_eventfd
from tunstack.link.transmit import fitting
from tunstack.native.fastpath import PortOpener
from tunstack.native.fastpath import Switch as NativeSwitch
from tunstack.packet import Checksum, Packet

_PARTIAL = int(Checksum.PARTIAL)
_MOST = 64
"""Packets that a device is asked to take at once."""


class Port:
    """A guest's place at a segment. Made by `SegmentDevice.connect`.

    Attributes:
        number: of the switch's port.
        device: what is behind it.
        is_closed: nobody is there any more.
        on_closed: called when that comes to be, with the reason as text.
    """

    def __init__(self, number: int, device: FramedDevice, drops: DropCounters, most: int) -> None:
        """`most`: bytes that may wait."""
        self.number = number
        self.device = device
        self.is_closed = False
        self.on_closed: Callable[[str], None] | None = None
        self.interest = READ
        self.ready = 0
        """What the poller has said and nobody has looked at."""
        self.is_lent = False
        self._fd = device.fileno()
        self._drops = drops
        self._most = most
        self._queue: deque[Packet] = deque()
        self._queued = 0

    def fileno(self) -> int:
        """The descriptor that is watched, also when the device has been closed."""
        return self._fd

    def on_ready(self, ready: int, now: float) -> None:
        """See `Token` of the poller: it is looked at in the same round."""
        self.ready |= ready

    def write(self, packets: Sequence[Packet]) -> None:
        """Write `packets`, borrowed until the return, or keep what the device refuses. `DeviceClosed`."""
        if any(packet.gso_size or packet.checksum == _PARTIAL for packet in packets):
            packets = fitting(packets, self.device.offloads)
        taken = 0 if self._queue else self.device.write_batch(packets)
        if self.is_lent:  # what waits, waits there
            if taken < len(packets):
                self._drops.add(DropReason.PORT_QUEUE_FULL, len(packets) - taken)
            return
        for packet in packets[taken:]:
            size = len(packet)
            if self._queued + size > self._most:
                self._drops.add(DropReason.PORT_QUEUE_FULL)
                continue
            packet.detach()
            self._queue.append(packet)
            self._queued += size

    def flush(self) -> bool:
        """Write what waits; True if nothing does any more. `DeviceClosed`."""
        queue = self._queue
        while queue:
            ready = [queue[number] for number in range(min(_MOST, len(queue)))]
            taken = self.device.write_batch(ready)
            for _ in range(taken):
                self._queued -= len(queue.popleft())
            if taken < len(ready):
                return False
        return self.device.flush()

    def lend(self, switch: NativeSwitch, *, is_isolated: bool) -> None:
        """Let a fast path carry frames from and to the device, and what waits with them."""
        self.device.lend(PortOpener(switch, self.number, self._most))
        if is_isolated:
            switch.isolate(self.number)
        self.is_lent = True
        waiting = list(self._queue)
        self._queue.clear()
        self._queued = 0
        self.write(waiting)

    def take_back(self) -> None:
        """Carry them here again."""
        self.device.take_back()
        self.is_lent = False


class Watched(Protocol):
    """What a poller watches."""

    def fileno(self) -> int: ...

    def on_ready(self, ready: int, now: float) -> None: ...


class PortPoller(Protocol):
    """What a segment needs of the gateway's kind of poller; see `tunstack.nat.poller.Poller`."""

    on_ready: Callable[[], None] | None

    def fileno(self) -> int: ...

    def add(self, sock: Watched, token: Watched, interest: int) -> None: ...

    def modify(self, sock: Watched, token: Watched, interest: int) -> None: ...

    def remove(self, sock: Watched) -> None: ...

    def poll(self) -> Sequence[tuple[Any, int]]: ...

    def close(self) -> None: ...


class Wakeup:
    """Readable if ports may have frames of which their descriptors do not tell."""

    def __init__(self) -> None:
        self._fd = new_eventfd()

    def fileno(self) -> int:
        return self._fd

    def on_ready(self, ready: int, now: float) -> None:
        """It has been seen."""
        with contextlib.suppress(BlockingIOError):
            read_eventfd(self._fd)

    def set(self) -> None:
        """Be readable."""
        write_eventfd(self._fd, 1)

    def close(self) -> None:
        os.close(self._fd)
