"""Limits for guests and for each of their flows: a quota of bytes, and rates that none exceeds."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

from tunstack.errors import DropReason
from tunstack.link.shaping.delay import Holding
from tunstack.link.shaping.fq_codel import flow_key, guest_key
from tunstack.link.shaping.rate import Steady
from tunstack.link.shaping.stage import Memory, Stage
from tunstack.packet import Packet

FLOWS = 4096
"""Flows that are told apart at once; the one that was silent longest makes room."""
LONGEST = 0.1
"""Seconds that a packet of a flow may wait for the flow's own rate."""
FLOOR = 24 * 1024
"""Bytes that may wait in any case, on rates so low that `LONGEST` would be a few packets."""


class Quota(Stage):
    """Drops everything once `size` bytes have passed.

    Attributes:
        used: bytes that have passed.
    """

    __slots__ = ("size", "used")

    kind: ClassVar[str] = "quota"

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.used = 0

    def push(self, packet: Packet, at: float) -> None:
        """See `Stage`."""
        self.received += 1
        used = self.used + len(packet)
        if used > self.size:
            self._drop(packet, DropReason.SHAPING_QUOTA)
        else:
            self.used = used
            self._forward(packet, at)

    def inherit(self, old: Stage, now: float) -> None:
        """See `Stage`; what has been used is used."""
        if isinstance(old, Quota):
            self.used += old.used


class FlowRate(Holding):
    """Sends each flow at `bits_per_second` at the most, as if it had a link of its own.

    What would wait longer than `LONGEST`, and behind more than `FLOOR` bytes, is dropped.

    Attributes:
        l2: packets begin with an Ethernet header.
    """

    __slots__ = ("_flows", "_longest", "_rate", "l2")

    kind: ClassVar[str] = "perflow"

    def __init__(self, bits_per_second: float, memory: Memory) -> None:
        super().__init__(memory)
        self._rate = bits_per_second
        self._longest = max(LONGEST, FLOOR * 8 / bits_per_second)
        self._flows: OrderedDict[bytes, tuple[Steady, float]] = OrderedDict()
        self.l2 = False

    def push(self, packet: Packet, at: float) -> None:
        """See `Stage`."""
        self.received += 1
        key = self._key(packet)
        service, free = self._flows.pop(key, (None, 0.0))
        if service is None:
            service = Steady(self._rate)
            if len(self._flows) >= FLOWS:
                self._flows.popitem(last=False)
        if free - at > self._longest:
            self._drop(packet, DropReason.SHAPING_QUEUE_FULL)
        elif not self._memory.take(packet):
            self._drop(packet, DropReason.SHAPING_MEMORY)
        else:
            free = service.finish(max(at, free), len(packet))
            self._hold(packet, at, free)
        self._flows[key] = (service, free)

    def set_l2(self, l2: bool) -> None:
        """See `Stage`."""
        self.l2 = l2

    def _key(self, packet: Packet) -> bytes:
        return flow_key(packet, self.l2)


class GuestRate(FlowRate):
    """Sends what each guest of a segment exchanges at `bits_per_second` at the most."""

    __slots__ = ()

    kind: ClassVar[str] = "perguest"

    def _key(self, packet: Packet) -> bytes:
        return guest_key(packet, self.l2)
