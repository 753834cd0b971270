"""The one door of a link to its device: completes, segments, keeps what was refused, in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence

from tunstack import native
from tunstack.errors import DropCounters, DropReason
from tunstack.limits import Limits
from tunstack.link.devices.base import Device, Offloads
from tunstack.packet import Checksum, GsoType, Packet

_PARTIAL = int(Checksum.PARTIAL)
_BATCH = 64
"""Packets from the line that the device is asked to take at once."""


def fitting(packets: Sequence[Packet], offloads: Offloads) -> list[Packet]:
    """`packets` as a device with these offloads takes them: trains cut, checksums complete, if need be."""
    kinds = _kinds(offloads)
    fit: list[Packet] = []
    for packet in packets:
        fit += [packet] if _takes(packet, kinds, offloads.checksum) else _on_wire(packet, offloads.l2)
    return fit


def _takes(packet: Packet, kinds: frozenset[int], checksum: bool) -> bool:
    """Whether `packet` is one for a device that cuts trains of `kinds`, and completes checksums or not."""
    if packet.gso_size:
        return packet.gso_type in kinds and checksum
    return checksum or packet.checksum != _PARTIAL


def _on_wire(packet: Packet, l2: bool) -> list[Packet]:
    """What `packet` is without any offload."""
    if packet.gso_size:
        return list(map(Packet, native.segment(packet, l2)))
    return [native.complete_checksum(packet)]


def _kinds(offloads: Offloads) -> frozenset[int]:
    """The types of packets that need not be cut."""
    able = {
        0: True,
        GsoType.TCPV4: offloads.tso4,
        GsoType.TCPV6: offloads.tso6,
        GsoType.UDP_L4: offloads.uso,
    }
    return frozenset(int(kind) for kind in able if able[kind])


class TransmitQueue:
    """Packets on their way into `device`; nothing is reordered, every loss is counted.

    A train stays a train until the device is about to take it: it is cut apart only if the device's
    offloads, as they are then, lack its kind. `limits.transmit_queue` bounds the packets (trains) that wait
    for a device which refuses; beyond it the newest are dropped as TRANSMIT_QUEUE_FULL. The wire packets
    of trains that are partly gone may come on top: fewer than 64 and one train.
    """

    __slots__ = (
        "_backlog",
        "_checksum",
        "_complete",
        "_device",
        "_drops",
        "_fresh",
        "_kinds",
        "_limit",
        "_offloads",
        "_wire",
    )

    def __init__(self, device: Device, limits: Limits, drops: DropCounters, limit: int | None = None) -> None:
        """`limit`: in the place of `limits.transmit_queue`."""
        self._device = device
        self._limit = limits.transmit_queue if limit is None else limit
        self._drops = drops
        self._fresh: list[Packet] = []
        self._backlog: deque[Packet] = deque()
        self._wire: deque[Packet] = deque()
        self._look_at(device.offloads)

    def __len__(self) -> int:
        """Packets that have not left: a train that is partly gone counts as its remaining wire packets."""
        return len(self._wire) + len(self._backlog) + len(self._fresh)

    def push(self, packets: Sequence[Packet]) -> None:
        """Add `packets`; they are borrowed until the next `flush`, and copied there if they must wait.

        Raises `DeviceClosed` if there are so many that it has to flush.
        """
        fresh = self._fresh
        fresh.extend(packets)
        if len(fresh) > self._limit:
            self.flush()

    def adopt(self, packets: Sequence[Packet]) -> None:
        """Begin with `packets`, what another queue has handed over; the bound of this one grows by them."""
        for packet in packets:
            packet.detach()
        self._backlog.extend(packets)
        self._limit += len(packets)

    def hand_over(self) -> list[Packet]:
        """Give up what waits, in order."""
        packets = [*self._wire, *self._backlog, *self._fresh]
        self._wire.clear()
        self._backlog.clear()
        self._fresh.clear()
        return packets

    def flush(self) -> bool:
        """Write what the device takes; True if nothing waits any more. Raises `DeviceClosed`."""
        device = self._device
        fresh = self._fresh
        if device.offloads is not self._offloads:
            self._look_at(device.offloads)
        refused = False
        taken = 0
        if not self._backlog and not self._wire and (self._complete or all(map(self._takes, fresh))):
            taken = device.write_batch(fresh) if fresh else 0
            if taken == len(fresh):
                fresh.clear()
                return True
            refused = True
        self._backlog.extend(fresh[taken:])
        arrived = len(fresh) - taken
        fresh.clear()
        if not refused and self._drain():
            return True
        self._keep(arrived)
        return False

    def _drain(self) -> bool:
        """Write from the line until it is empty (True) or the device refuses."""
        wire, backlog = self._wire, self._backlog
        while wire or backlog:
            if not wire:
                self._convert()
            line = wire or backlog
            ready = list(wire or itertools.takewhile(self._takes, itertools.islice(backlog, _BATCH)))
            taken = self._device.write_batch(ready)
            for _ in range(taken):
                line.popleft()
            if taken < len(ready):
                return False
        return True

    def _convert(self) -> None:
        """Make wire packets of the first ones in line that the device cannot take as they are."""
        wire, backlog = self._wire, self._backlog
        while backlog and len(wire) < _BATCH and not self._takes(backlog[0]):
            wire.extend(_on_wire(backlog.popleft(), self._offloads.l2))

    def _keep(self, arrived: int) -> None:
        """Bound the line and copy what is borrowed in it: the last `arrived` packets at most."""
        wire, backlog = self._wire, self._backlog
        arrived = min(arrived, len(backlog))
        excess = min(len(wire) + len(backlog) - self._limit, arrived)
        if excess > 0:
            for _ in range(excess):
                backlog.pop()
            arrived -= excess
            self._drops.add(DropReason.TRANSMIT_QUEUE_FULL, excess)
        for packet in wire:
            packet.detach()
        for index in range(-arrived, 0):
            backlog[index].detach()

    def _look_at(self, offloads: Offloads) -> None:
        self._offloads = offloads
        self._checksum = offloads.checksum
        self._kinds = _kinds(offloads)
        self._complete = offloads.checksum and offloads.tso4 and offloads.tso6 and offloads.uso

    def _takes(self, packet: Packet) -> bool:
        """Whether the device's offloads cover `packet`."""
        return _takes(packet, self._kinds, self._checksum)
