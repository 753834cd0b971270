"""The stage that delays packets, and reorders them by letting some go at once; and the base of its like."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import ClassVar

from tunstack.errors import DropReason
from tunstack.link.shaping.stage import Chance, Memory, Stage
from tunstack.native.fastpath import lib
from tunstack.native.pipeline import NativePipeline, can_lend
from tunstack.packet import Packet

Draw = Callable[[], float]
"""Gives the delay of one packet, seconds."""


class Constant:
    """A `Draw` that is the same for each packet."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds

    def lend(self, native: NativePipeline) -> None:
        """See `Stage`."""
        native.c.delay = self.seconds


class Uniform:
    """A `Draw` between `seconds - jitter` and `seconds + jitter`, each value as likely as any other."""

    __slots__ = ("_random", "jitter", "rng", "seconds")

    def __init__(self, seconds: float, jitter: float, rng: random.Random) -> None:
        self.seconds = seconds
        self.jitter = jitter
        self.rng = rng
        self._random = rng.random

    def __call__(self) -> float:
        return max(0.0, self.seconds + self.jitter * (2 * self._random() - 1))

    def lend(self, native: NativePipeline) -> None:
        """See `Stage`."""
        native.c.delay = self.seconds
        native.c.jitter = self.jitter
        native.lend_random(native.c.delay_random, self.rng)


class Normal:
    """A `Draw` from the normal distribution with standard deviation `jitter`; what would be negative is 0."""

    __slots__ = ("_gauss", "jitter", "seconds")

    def __init__(self, seconds: float, jitter: float, rng: random.Random) -> None:
        self.seconds = seconds
        self.jitter = jitter
        self._gauss = rng.gauss

    def __call__(self) -> float:
        return max(0.0, self._gauss(self.seconds, self.jitter))


class Holding(Stage):
    """The base of stages that know when a packet leaves as soon as it comes, in whatever order.

    Packets that are due at the same time leave in the order in which they came.
    """

    __slots__ = ("_bytes", "_count", "_held", "_memory")

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self._memory = memory
        self._held: list[tuple[float, int, float, Packet]] = []
        self._count = 0
        self._bytes = 0

    def advance(self, now: float) -> None:
        """See `Stage`."""
        held = self._held
        while held and held[0][0] <= now:
            due, _, since, packet = heapq.heappop(held)
            self._bytes -= len(packet)
            self._memory.give(packet)
            self._waited(due - since)
            self._forward(packet, due)

    def next_timeout(self) -> float | None:
        """See `Stage`."""
        return self._held[0][0] if self._held else None

    def hand_over(self) -> list[tuple[float, float, Packet]]:
        """Give up what is held: when each packet is due, since when it is here, and the packet, in order."""
        packets = [(due, since, packet) for due, _, since, packet in sorted(self._held)]
        for _, _, packet in packets:
            self._memory.give(packet)
        self._held.clear()
        self._bytes = 0
        return packets

    def surrender(self, now: float) -> list[Packet]:
        """See `Stage`."""
        return [packet for _, _, packet in self.hand_over()]

    @property
    def queued(self) -> int:
        """See `Stage`."""
        return len(self._held)

    @property
    def queued_bytes(self) -> int:
        """See `Stage`."""
        return self._bytes

    def _hold(self, packet: Packet, since: float, due: float) -> None:
        """Hold `packet`, which has been taken from the memory."""
        self._bytes += len(packet)
        self._count += 1
        heapq.heappush(self._held, (due, self._count, since, packet))


class Delay(Holding):
    """Holds each packet for as long as `draw` says, any number of them at once.

    Those for which `reorder` says so are not delayed at all and so overtake the ones that are, as netem's
    `reorder` has it. With `keep_order` a packet waits at least as long as the one before it, so that a
    draw that varies does not let packets overtake one another.
    """

    __slots__ = ("_draw", "_keep_order", "_latest", "_reorder", "reordered")

    kind: ClassVar[str] = "delay"

    def __init__(
        self, draw: Draw, memory: Memory, reorder: Chance | None = None, *, keep_order: bool = False
    ) -> None:
        super().__init__(memory)
        self._keep_order = keep_order
        self._latest = float("-inf")
        self._draw = draw
        self._reorder = reorder
        self.reordered = 0
        """Packets that were sent at once."""

    def push(self, packet: Packet, at: float) -> None:
        """See `Stage`."""
        self.received += 1
        if not self._memory.take(packet):
            self._drop(packet, DropReason.SHAPING_MEMORY)
            return
        if self._reorder is not None and self._reorder():
            self.reordered += 1
            due = at
        else:
            due = at + self._draw()
            if self._keep_order:
                self._latest = due = max(due, self._latest)
        self._hold(packet, at, due)

    def hand_over(self) -> list[tuple[float, float, Packet]]:
        """See `Holding`."""
        self._latest = float("-inf")
        return super().hand_over()

    def inherit(self, old: Stage, now: float) -> None:
        """See `Stage`; each packet stays due when it was."""
        if not isinstance(old, Delay):
            super().inherit(old, now)
            return
        for due, since, packet in old.hand_over():
            self.received += 1
            if not self._memory.take(packet):
                self._drop(packet, DropReason.SHAPING_MEMORY)
                continue
            if self._keep_order:
                self._latest = max(due, self._latest)
            self._hold(packet, since, due)

    @property
    def has_native_form(self) -> bool:
        """See `Stage`."""
        draw = self._draw
        if self._reorder is not None:
            return False
        return isinstance(draw, Constant) or (isinstance(draw, Uniform) and can_lend(draw.rng))

    def lend(self, native: NativePipeline) -> None:
        """See `Stage`."""
        super().lend(native)
        c, draw = native.c, self._draw
        assert isinstance(draw, Constant | Uniform)
        c.has_delay = True
        draw.lend(native)
        c.keep_order = self._keep_order
        c.latest = self._latest
        self._memory.lend(native)
        for due, _, since, packet in sorted(self._held):
            native.put(lib.TS_AT_DELAY, packet.tobytes(), since, due)

    def restore(self, native: NativePipeline) -> None:
        """See `Stage`."""
        super().restore(native)
        if isinstance(self._draw, Uniform):
            native.restore_random(native.c.delay_random, self._draw.rng)
        self._latest = native.c.latest
        self._held.clear()
        self._count = self._bytes = 0
        for since, due, data in native.take(lib.TS_AT_DELAY):
            self._hold(Packet(data), since, due)
        self._memory.restore(native)
