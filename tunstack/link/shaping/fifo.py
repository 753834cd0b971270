"""First in, first out, within bounds: the queue that drop-tail is, and that CoDel looks at."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tunstack.errors import DropReason
from tunstack.native.fastpath import lib
from tunstack.native.pipeline import NativePipeline
from tunstack.packet import Packet


class Fifo:
    """The base of `Queue`s that are one line; what finds it full is dropped.

    `packets` and `size` bound what waits, each if it is given; the packet that is being sent does not wait.

    Attributes:
        size: bytes that wait.
        l2: packets begin with an Ethernet header.
        drop: called for each packet that was pushed and will not be popped.
    """

    __slots__ = ("_bytes", "_packets", "_waiting", "drop", "l2", "size")

    def __init__(self, packets: int | None, size: int | None) -> None:
        self._packets = packets
        self._bytes = size
        self._waiting: deque[tuple[float, Packet]] = deque()
        self.size = 0
        self.l2 = False
        self.drop: Callable[[Packet, DropReason], None]

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, packet: Packet, at: float) -> None:
        """Take `packet`, or drop it."""
        if (self._packets is not None and len(self._waiting) >= self._packets) or (
            self._bytes is not None and self.size + len(packet) > self._bytes
        ):
            self.drop(packet, DropReason.SHAPING_QUEUE_FULL)
            return
        self.put(at, packet)

    def put(self, since: float, packet: Packet) -> None:
        """Let `packet` wait, whatever the bounds say."""
        self.size += len(packet)
        self._waiting.append((since, packet))

    def hand_over(self) -> list[tuple[float, Packet]]:
        """See `Queue`."""
        packets = list(self._waiting)
        self._waiting.clear()
        self.size = 0
        return packets

    def lend_packets(self, native: NativePipeline) -> None:
        """Copy what waits."""
        for since, packet in self._waiting:
            native.put(lib.TS_AT_QUEUE, packet.tobytes(), since)

    def restore_packets(self, native: NativePipeline) -> None:
        """Take it back, in the place of what is here."""
        self.hand_over()
        for since, _, data in native.take(lib.TS_AT_QUEUE):
            self.put(since, Packet(data))
