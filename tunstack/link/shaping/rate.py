"""The stage that sends at a rate, and the queue before it.

A packet occupies the link for as long as its `Service` says and leaves when its last bit does; the next one
follows without a gap. While one is being sent the others wait in a `Queue`, which is what drops: it
decides, at the time at which a packet comes or goes, which one ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from tunstack.errors import DropReason
from tunstack.link.shaping.codel import CoDel
from tunstack.link.shaping.fifo import Fifo
from tunstack.link.shaping.fq_codel import FqCoDel
from tunstack.link.shaping.stage import Memory, Stage
from tunstack.native.fastpath import lib
from tunstack.native.pipeline import NativePipeline
from tunstack.packet import Packet


class Queue(Protocol):
    """A queue discipline: what waits, what is next, and what is dropped, on arrival or later.

    `l2`: packets begin with an Ethernet header.
    """

    l2: bool
    drop: Callable[[Packet, DropReason], None]
    """Called for each packet that was pushed and will not be popped; set by the stage."""

    @property
    def size(self) -> int:
        """Bytes that wait."""
        ...

    @property
    def marked(self) -> int:
        """Packets that were marked in place of being dropped."""
        ...

    def __len__(self) -> int: ...
    def push(self, packet: Packet, at: float) -> None: ...
    def pop(self, at: float) -> tuple[float, Packet] | None:
        """The packet that is sent from `at` on, behind the time at which it came."""
        ...

    def hand_over(self) -> list[tuple[float, Packet]]:
        """Give up all that waits, with the times at which it came, the oldest first."""
        ...


class Service(Protocol):
    """How long packets take; asked once for each, in the order in which they are sent."""

    def finish(self, at: float, size: int) -> float:
        """When the last bit leaves of a packet of `size` bytes that is next from `at` on."""
        ...


class Steady:
    """A `Service` of fixed rate.

    A packet of n bytes, all headers of the device's layer counted, takes 8 n / rate seconds. With `overhead`
    it counts so many bytes more, and with `cell` it fills whole cells, each of which counts `cell_overhead`
    bytes more (as netem has it). With `burst` the link may catch up after a silence: packets leave at
    once until the time that they take has used up what so many bytes take.
    """

    __slots__ = ("_burst", "_cell", "_cell_overhead", "_free", "_overhead", "_seconds_per_byte")

    def __init__(
        self,
        bits_per_second: float,
        *,
        overhead: int = 0,
        cell: int = 0,
        cell_overhead: int = 0,
        burst: int = 0,
    ) -> None:
        self._seconds_per_byte = 8 / bits_per_second
        self._overhead = overhead
        self._cell = cell
        self._cell_overhead = cell_overhead
        self._burst = burst * self._seconds_per_byte
        self._free = float("-inf")
        """When the link has sent all that it was given, at its rate."""

    def finish(self, at: float, size: int) -> float:
        """See `Service`."""
        size = max(0, size + self._overhead)
        if self._cell:
            size = -(-size // self._cell) * (self._cell + self._cell_overhead)
        self._free = max(self._free, at - self._burst) + size * self._seconds_per_byte
        return max(at, self._free)

    def lend(self, native: NativePipeline) -> None:
        """See `Stage`."""
        c = native.c
        c.seconds_per_byte = self._seconds_per_byte
        c.overhead = self._overhead
        c.cell = self._cell
        c.cell_overhead = self._cell_overhead
        c.burst = self._burst
        c.free = self._free

    def restore(self, native: NativePipeline) -> None:
        """See `Stage`."""
        self._free = native.c.free


class DropTail(Fifo):
    """A `Fifo` that drops nothing but what finds it full."""

    __slots__ = ()

    def __init__(self, *, packets: int | None = None, size: int | None = None) -> None:
        super().__init__(packets, size)

    @property
    def marked(self) -> int:
        """See `Queue`; it marks nothing."""
        return 0

    def pop(self, at: float) -> tuple[float, Packet] | None:
        """See `Queue`."""
        if not self._waiting:
            return None
        entry = self._waiting.popleft()
        self.size -= len(entry[1])
        return entry

    def lend(self, native: NativePipeline) -> None:
        """See `Stage`."""
        native.set_queue(lib.TS_DROP_TAIL, self._packets, self._bytes)
        self.lend_packets(native)

    def restore(self, native: NativePipeline) -> None:
        """See `Stage`."""
        self.restore_packets(native)


class Rate(Stage):
    """Sends one packet after the other, out of `queue`, each for as long as `service` says."""

    __slots__ = ("_begun", "_done", "_memory", "_sending", "_service", "_since", "queue")

    kind: ClassVar[str] = "rate"

    def __init__(self, service: Service, queue: Queue, memory: Memory) -> None:
        super().__init__()
        self.queue = queue
        self._service = service
        self._memory = memory
        self._sending: Packet | None = None
        self._since = 0.0
        self._begun = 0.0
        self._done = 0.0
        queue.drop = self._drop_held

    def push(self, packet: Packet, at: float) -> None:
        """See `Stage`."""
        self.received += 1
        self.advance(at)
        if not self._memory.take(packet):
            self._drop(packet, DropReason.SHAPING_MEMORY)
        elif self._sending is None:
            self._send(packet, at, at)
            self.advance(at)  # a burst leaves at once
        else:
            self.queue.push(packet, at)

    def advance(self, now: float) -> None:
        """See `Stage`."""
        while (packet := self._sending) is not None and self._done <= now:
            done, since = self._done, self._since
            following = self.queue.pop(done)
            if following is None:
                self._sending = None
            else:
                self._send(following[1], following[0], done)
            self._memory.give(packet)
            self._waited(done - since)
            self._forward(packet, done)

    def next_timeout(self) -> float | None:
        """See `Stage`."""
        return None if self._sending is None else self._done

    def hand_over(self, now: float) -> list[tuple[float, Packet, float]]:
        """Give up what is held, in order: since when each packet is here, the packet, and its unsent part."""
        packets = [(since, packet, 1.0) for since, packet in self.queue.hand_over()]
        if self._sending is not None:
            whole = self._done - self._begun
            left = (self._done - now) / whole if 0 < whole < float("inf") else 1.0
            packets.insert(0, (self._since, self._sending, min(1.0, max(0.0, left))))
            self._sending = None
        for _, packet, _ in packets:
            self._memory.give(packet)
        return packets

    def surrender(self, now: float) -> list[Packet]:
        """See `Stage`."""
        return [packet for _, packet, _ in self.hand_over(now)]

    def set_l2(self, l2: bool) -> None:
        """See `Stage`."""
        self.queue.l2 = l2

    def inherit(self, old: Stage, now: float) -> None:
        """See `Stage`; the packet that was being sent goes on from where it is, at the new rate."""
        if not isinstance(old, Rate):
            super().inherit(old, now)
            return
        for since, packet, part in old.hand_over(now):
            self.received += 1
            if not self._memory.take(packet):
                self._drop(packet, DropReason.SHAPING_MEMORY)
            elif self._sending is None:
                self._send(packet, since, now, part)
            else:
                self.queue.push(packet, since)

    @property
    def has_native_form(self) -> bool:
        """See `Stage`."""
        return isinstance(self._service, Steady) and isinstance(self.queue, DropTail | CoDel | FqCoDel)

    def lend(self, native: NativePipeline) -> None:
        """See `Stage`."""
        super().lend(native)
        native.c.has_rate = True
        for part in self._native_parts():
            part.lend(native)
        native.c.begun = self._begun
        native.c.done = self._done
        if self._sending is not None:
            native.put(lib.TS_AT_RATE, self._sending.tobytes(), self._since)

    def restore(self, native: NativePipeline) -> None:
        """See `Stage`."""
        super().restore(native)
        self._begun = native.c.begun
        self._done = native.c.done
        self._sending = None
        for since, _, data in native.take(lib.TS_AT_RATE):
            self._sending, self._since = Packet(data), since
        for part in self._native_parts():
            part.restore(native)

    def _native_parts(self) -> tuple[Steady, DropTail | CoDel | FqCoDel, Memory]:
        service, queue = self._service, self.queue
        assert isinstance(service, Steady) and isinstance(queue, DropTail | CoDel | FqCoDel)
        return service, queue, self._memory

    @property
    def marked(self) -> int:
        """See `Stage`."""
        return self.queue.marked

    @property
    def queued(self) -> int:
        """See `Stage`; the packet that is being sent included."""
        return len(self.queue) + (self._sending is not None)

    @property
    def queued_bytes(self) -> int:
        """See `Stage`; the packet that is being sent included."""
        return self.queue.size + (0 if self._sending is None else len(self._sending))

    def _send(self, packet: Packet, since: float, start: float, part: float = 1.0) -> None:
        self._sending = packet
        self._since = since
        self._begun = start
        self._done = self._service.finish(start, round(len(packet) * part))

    def _drop_held(self, packet: Packet, reason: DropReason) -> None:
        self._memory.give(packet)
        self._drop(packet, reason)
