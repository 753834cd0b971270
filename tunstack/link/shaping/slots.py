"""The stage that lets packets leave together, in slots: what a shared medium does that grants turns."""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from typing import ClassVar

from tunstack.errors import DropReason
from tunstack.link.shaping import units
from tunstack.link.shaping.stage import Memory, Stage
from tunstack.packet import Packet

_SILENCE = 1000
"""Slots of the greatest length after which those that pass unused are no longer counted one by one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    """When packets may leave, and how many.

    Attributes:
        least: seconds from one slot to the next at the least.
        most: and at the most.
        packets: that leave in one slot at the most, 0 for any number.
        size: bytes that leave in one slot at the most, 0 for any number; a larger packet leaves alone.
    """

    least: float
    most: float
    packets: int = 0
    size: int = 0

    def check(self, longest: float, largest: int) -> None:
        """Raise `units.ShapeError` for values out of range."""
        if not 0 < self.least <= self.most <= longest:
            raise units.ShapeError(f"slot: more than 0s, at most {longest:.0f}s, and the longer time last")
        if not (0 <= self.packets <= largest and 0 <= self.size <= largest):
            raise units.ShapeError(f"slot: packets and bytes are {largest} at most")

    def __str__(self) -> str:
        text = [units.seconds(self.least)]
        if self.most != self.least:
            text.append(units.seconds(self.most))
        if self.packets:
            text.append(f"packets {self.packets}")
        if self.size:
            text.append(f"bytes {self.size}b")
        return " ".join(text)


class Slot(Stage):
    """Holds packets until the next slot that has room for them.

    A slot is a moment. They follow one another from the first packet on, at distances that `rng` draws, each
    as likely as any other, whether something waits or not.
    """

    __slots__ = ("_bytes", "_held", "_memory", "_next", "_random", "slots")

    kind: ClassVar[str] = "slot"

    def __init__(self, slots: Slots, rng: random.Random, memory: Memory) -> None:
        super().__init__()
        self.slots = slots
        self._random = rng.random
        self._memory = memory
        self._held: deque[tuple[float, Packet]] = deque()
        self._bytes = 0
        self._next: float | None = None

    def push(self, packet: Packet, at: float) -> None:
        """See `Stage`."""
        self.received += 1
        self.advance(at)
        if not self._memory.take(packet):
            self._drop(packet, DropReason.SHAPING_MEMORY)
            return
        if self._next is None or at - self._next > _SILENCE * self.slots.most:
            self._next = at + self._distance()
        while self._next < at:
            self._next += self._distance()
        self._bytes += len(packet)
        self._held.append((at, packet))

    def advance(self, now: float) -> None:
        """See `Stage`."""
        held, slots = self._held, self.slots
        while held and self._next is not None and self._next <= now:
            packets = size = 0
            while held:
                since, packet = held[0]
                packets += 1
                size += len(packet)
                if packets > 1 and ((slots.packets and packets > slots.packets) or (0 < slots.size < size)):
                    break
                held.popleft()
                self._bytes -= len(packet)
                self._memory.give(packet)
                self._waited(self._next - since)
                self._forward(packet, self._next)
            self._next += self._distance()

    def next_timeout(self) -> float | None:
        """See `Stage`."""
        return self._next if self._held else None

    def surrender(self, now: float) -> list[Packet]:
        """See `Stage`."""
        packets = [packet for _, packet in self._held]
        for packet in packets:
            self._memory.give(packet)
        self._held.clear()
        self._bytes = 0
        return packets

    @property
    def queued(self) -> int:
        """See `Stage`."""
        return len(self._held)

    @property
    def queued_bytes(self) -> int:
        """See `Stage`."""
        return self._bytes

    def _distance(self) -> float:
        slots = self.slots
        if slots.most == slots.least:
            return slots.least
        return slots.least + self._random() * (slots.most - slots.least)
