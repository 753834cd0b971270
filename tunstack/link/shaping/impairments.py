"""The stages that decide on a packet at once: loss, duplication and corruption."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import ClassVar

from tunstack.errors import DropReason
from tunstack.link.shaping.stage import Bernoulli, Chance, Stage
from tunstack.native.pipeline import NativePipeline, can_lend
from tunstack.packet import Packet


class Loss(Stage):
    """Drops the packets for which `chance` says so."""

    __slots__ = ("_chance",)

    kind: ClassVar[str] = "loss"

    def __init__(self, chance: Chance) -> None:
        super().__init__()
        self._chance = chance

    def push(self, packet: Packet, at: float) -> None:
        """See `Stage`."""
        self.received += 1
        if self._chance():
            self._drop(packet, DropReason.SHAPING_LOSS)
        else:
            self._forward(packet, at)

    @property
    def has_native_form(self) -> bool:
        """See `Stage`."""
        return isinstance(self._chance, Bernoulli) and can_lend(self._chance.rng)

    def lend(self, native: NativePipeline) -> None:
        """See `Stage`."""
        super().lend(native)
        chance, rng = self._independent()
        native.c.has_loss = True
        native.c.loss = chance.probability
        native.lend_random(native.c.loss_random, rng)

    def restore(self, native: NativePipeline) -> None:
        """See `Stage`."""
        super().restore(native)
        native.restore_random(native.c.loss_random, self._independent()[1])

    def _independent(self) -> tuple[Bernoulli, random.Random]:
        chance = self._chance
        assert isinstance(chance, Bernoulli) and isinstance(chance.rng, random.Random)
        return chance, chance.rng


class Duplicate(Stage):
    """Sends the packets for which `chance` says so twice, one right behind the other."""

    __slots__ = ("_chance",)

    kind: ClassVar[str] = "duplicate"

    def __init__(self, chance: Chance) -> None:
        super().__init__()
        self._chance = chance

    def push(self, packet: Packet, at: float) -> None:
        """See `Stage`."""
        self.received += 1
        self._forward(packet, at)
        if self._chance():
            self.added += 1
            self._forward(Packet(packet.head, packet.payload), at)


class LossWhere(Stage):
    """Drops the packets of which `judge` says so: what a `Chance`, which sees no packet, cannot decide."""

    __slots__ = ("_judge",)

    kind: ClassVar[str] = "loss"

    def __init__(self, judge: Callable[[Packet], bool]) -> None:
        super().__init__()
        self._judge = judge

    def push(self, packet: Packet, at: float) -> None:
        """See `Stage`."""
        self.received += 1
        if self._judge(packet):
            self._drop(packet, DropReason.SHAPING_LOSS)
        else:
            self._forward(packet, at)


class Corrupt(Stage):
    """Inverts one bit, drawn from `rng`, of the packets for which `chance` says so."""

    __slots__ = ("_chance", "_rng", "corrupted")

    kind: ClassVar[str] = "corrupt"

    def __init__(self, chance: Chance, rng: random.Random) -> None:
        super().__init__()
        self._chance = chance
        self._rng = rng
        self.corrupted = 0
        """Packets in which a bit was inverted."""

    def push(self, packet: Packet, at: float) -> None:
        """See `Stage`."""
        self.received += 1
        if self._chance() and len(packet):
            self.corrupted += 1
            packet = invert_bit(packet, self._rng.randrange(8 * len(packet)))
        self._forward(packet, at)


def invert_bit(packet: Packet, bit: int) -> Packet:
    """A copy of `packet` in which bit number `bit`, modulo its length, has changed."""
    data = bytearray(packet.tobytes())
    if data:
        data[bit // 8 % len(data)] ^= 0x80 >> bit % 8
    return Packet(bytes(data))
