"""Carries frames between two devices, until one of them ends.

Theory of operation. In each direction a batch is read, coalesced if the device has cut what it carries, and
written through a transmit queue, which cuts it again if the other device needs that. While a queue is not
empty its source is not read: what is to wait waits in the kernel, and pressure travels.
"""

from __future__ import annotations

import contextlib

from tunstack import native
from tunstack.errors import DropCounters
from tunstack.limits import DEFAULT_LIMITS
from tunstack.link.devices.base import Device
from tunstack.link.transmit import TransmitQueue
from tunstack.nat.poller import READ, WRITE, EpollPoller
from tunstack.packet import Checksum, GsoType, Packet

_ROUNDS = 8
"""Batches of one direction before the other has its turn."""
_BATCH = 64
_ETHERNET, _IPV6, _TCP_CHECKSUM = 14, 40, 16
"""Bytes of the headers, and where the checksum stands in TCP's."""


class Wire:
    """Two devices that have descriptors."""

    def __init__(self, one: Device, other: Device) -> None:
        drops = DropCounters()
        self._ends = (_End(one, other, drops), _End(other, one, drops))
        self._ends[0].opposite, self._ends[1].opposite = self._ends[1], self._ends[0]

    async def run(self) -> None:
        """Until cancelled, or until `DeviceClosed` is raised."""
        poller = EpollPoller()
        with contextlib.closing(poller):
            for end in self._ends:
                poller.add(end, end, READ)
            while True:
                for token, ready in await poller.wait():
                    token.on_ready(ready, 0.0)
                for end in self._ends:
                    end.update(poller)


def _mark_partial(train: Packet) -> None:
    """Say what is true of a train that `native.coalesce` has made: its checksum is the pseudo-header's."""
    is_v4 = train.gso_type == GsoType.TCPV4
    train.csum_start = _ETHERNET + (4 * (train.head[_ETHERNET] & 15) if is_v4 else _IPV6)
    train.csum_offset = _TCP_CHECKSUM
    train.checksum = Checksum.PARTIAL


class _End:
    """One device, whose packets go to `sink`; the token of it."""

    opposite: _End

    def __init__(self, source: Device, sink: Device, drops: DropCounters) -> None:
        self._source = source
        self._sink = sink
        self._queue = TransmitQueue(sink, DEFAULT_LIMITS, drops)
        self._coalesces = not source.offloads.tso4
        self._interest = READ
        self.is_stuck = False
        """Whether the sink has refused something."""

    def fileno(self) -> int:
        fd = self._source.fileno()
        assert fd is not None
        return fd

    def on_ready(self, ready: int, now: float) -> None:
        if ready & ~WRITE:
            self._carry()
        if ready & WRITE:
            self.opposite.flush()

    def flush(self) -> None:
        """Write what waits for the sink."""
        done = self._queue.flush()
        self.is_stuck = not (self._sink.flush() and done)

    def _carry(self) -> None:
        for _ in range(_ROUNDS):
            if self.is_stuck:
                return
            packets = self._source.read_batch(_BATCH)
            if not packets:
                return
            if self._coalesces and len(packets) > 1:
                packets = native.coalesce(packets, True)
                for packet in packets:
                    if packet.gso_size:
                        _mark_partial(packet)
            self._queue.push(packets)
            self.flush()

    def update(self, poller: EpollPoller) -> None:
        """Wait for what there is to wait for."""
        interest = (0 if self.is_stuck else READ) | (WRITE if self.opposite.is_stuck else 0)
        if interest != self._interest:
            self._interest = interest
            poller.modify(self, self, interest)
