"""The stage that sends at a fixed rate, and the queue before it.

A packet of n bytes, all headers of the device's layer counted, occupies the link for 8 n / rate seconds and
leaves when its last bit does; the next one follows without a gap. While one is being sent the others wait in
a `Queue`, which is what drops: it decides, at the time at which a packet comes or goes, which one ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import ClassVar, Protocol

from tunstack.errors import DropReason
from tunstack.link.shaping.stage import Memory, Stage
from tunstack.packet import Packet


class Queue(Protocol):
    """A queue discipline: what waits, what is next, and what is dropped, on arrival or later."""

    drop: Callable[[Packet, DropReason], None]
    """Called for each packet that was pushed and will not be popped; set by the stage."""

    @property
    def size(self) -> int:
        """Bytes that wait."""
        ...

    def __len__(self) -> int: ...
    def push(self, packet: Packet, at: float) -> None: ...
    def pop(self, at: float) -> Packet | None: ...


class DropTail:
    """First in, first out; what finds the queue full is dropped.

    `packets` and `size` bound what waits, each if it is given; the packet that is being sent does not wait.
    """

    __slots__ = ("_bytes", "_packets", "_waiting", "drop", "size")

    def __init__(self, *, packets: int | None = None, size: int | None = None) -> None:
        self._packets = packets
        self._bytes = size
        self._waiting: deque[Packet] = deque()
        self.size = 0
        self.drop: Callable[[Packet, DropReason], None]

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, packet: Packet, at: float) -> None:
        """Take `packet`, or drop it."""
        size = self.size + len(packet)
        if (self._packets is not None and len(self._waiting) >= self._packets) or (
            self._bytes is not None and size > self._bytes
        ):
            self.drop(packet, DropReason.SHAPING_QUEUE_FULL)
            return
        self.size = size
        self._waiting.append(packet)

    def pop(self, at: float) -> Packet | None:
        """The packet that is sent from `at` on, or None."""
        if not self._waiting:
            return None
        packet = self._waiting.popleft()
        self.size -= len(packet)
        return packet


class Rate(Stage):
    """Sends one packet after the other at `bits_per_second`, out of `queue`."""

    __slots__ = ("_done", "_memory", "_queue", "_seconds_per_byte", "_sending", "bits_per_second")

    kind: ClassVar[str] = "rate"

    def __init__(self, bits_per_second: float, queue: Queue, memory: Memory) -> None:
        super().__init__()
        self.bits_per_second = bits_per_second
        self._seconds_per_byte = 8 / bits_per_second
        self._queue = queue
        self._memory = memory
        self._sending: Packet | None = None
        self._done = 0.0
        queue.drop = self._drop_held

    def push(self, packet: Packet, at: float) -> None:
        """See `Stage`."""
        self.received += 1
        self.advance(at)
        if not self._memory.take(packet):
            self._drop(packet, DropReason.SHAPING_MEMORY)
        elif self._sending is None:
            self._send(packet, at)
        else:
            self._queue.push(packet, at)

    def advance(self, now: float) -> None:
        """See `Stage`."""
        while (packet := self._sending) is not None and self._done <= now:
            done = self._done
            following = self._queue.pop(done)
            if following is None:
                self._sending = None
            else:
                self._send(following, done)
            self._memory.give(packet)
            self._forward(packet, done)

    def next_timeout(self) -> float | None:
        """See `Stage`."""
        return None if self._sending is None else self._done

    def clear(self) -> None:
        """See `Stage`."""
        packet = self._sending
        self._sending = None
        while packet is not None:
            self._drop_held(packet, DropReason.SHAPING_DETACHED)
            packet = self._queue.pop(self._done)

    @property
    def queued(self) -> int:
        """See `Stage`; the packet that is being sent included."""
        return len(self._queue) + (self._sending is not None)

    @property
    def queued_bytes(self) -> int:
        """See `Stage`; the packet that is being sent included."""
        return self._queue.size + (0 if self._sending is None else len(self._sending))

    def _send(self, packet: Packet, start: float) -> None:
        self._sending = packet
        self._done = start + len(packet) * self._seconds_per_byte

    def _drop_held(self, packet: Packet, reason: DropReason) -> None:
        self._memory.give(packet)
        self._drop(packet, reason)
