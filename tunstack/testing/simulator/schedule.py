"""Impairments as data: which packet of which direction meets which fate.

A schedule is a value with a text, so that a test can draw it, shrink it, print it, and run it again:

    seed 7; a>b 1 drop; b>a 0 delay 250ms; a>b @1.5s corrupt 17

Packets are counted from 0 in each direction; `@TIME` means the first packet at that time or later.
"""

from __future__ import annotations

import dataclasses
import heapq
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from tunstack.errors import DropReason
from tunstack.link.shaping.impairments import invert_bit
from tunstack.link.shaping.stage import Stage
from tunstack.packet import Packet

if TYPE_CHECKING:
    from tunstack.testing.simulator.network import Network

DROP = "drop"
"""The packet is lost."""
DUPLICATE = "duplicate"
"""It arrives twice."""
DELAY = "delay"
"""It takes so many seconds longer, and others overtake it."""
CORRUPT = "corrupt"
"""The bit of this number, modulo the size of the packet, is inverted."""
EFFECTS = (DROP, DUPLICATE, DELAY, CORRUPT)

_IMPAIRMENT = re.compile(r"(\S+) (?:(\d+)|@([\d.e+-]+)s) (drop|duplicate|delay ([\d.e+-]+)s|corrupt (\d+))")


@dataclasses.dataclass(frozen=True, slots=True)
class Impairment:
    """What happens to one packet.

    Attributes:
        way: the name of the direction, "client>server".
        at: the number of the packet (int), or the time from which on the next one is meant (float, seconds).
        effect: one of `EFFECTS`.
        value: of a delay, seconds; of a corruption, the number of the bit; else 0.
    """

    way: str
    at: int | float
    effect: str
    value: float = 0

    def __post_init__(self) -> None:
        """Raises ValueError for an effect that there is not, or a value or place that makes no sense."""
        if self.effect not in EFFECTS:
            raise ValueError(f"there is no effect {self.effect}; there are {', '.join(EFFECTS)}")
        if not (0 <= self.at < float("inf") and 0 <= self.value < float("inf")):
            raise ValueError("places and values are not negative, and finite")

    def __str__(self) -> str:
        place = f"@{self.at!r}s" if isinstance(self.at, float) else str(self.at)
        value = {DELAY: f" {float(self.value)!r}s", CORRUPT: f" {int(self.value)}"}.get(self.effect, "")
        return f"{self.way} {place} {self.effect}{value}"


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """Everything in a run that is not the program: the seed of the network, and the impairments.

    `Schedule.parse(str(schedule)) == schedule`, so what a failing test prints runs again.
    """

    seed: int = 0
    impairments: tuple[Impairment, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read what `str` gives.

        Raises:
            ValueError: with the part that cannot be read.
        """
        first, *parts = (part.strip() for part in text.split(";"))
        match = re.fullmatch(r"seed (\d+)", first)
        if match is None:
            raise ValueError(f"a schedule begins with 'seed NUMBER', not {first!r}")
        return cls(int(match[1]), tuple(map(_parse, parts)))

    def __str__(self) -> str:
        return "; ".join((f"seed {self.seed}", *map(str, self.impairments)))

    def stage(self, way: str) -> Impairments:
        """The stage that does to the packets of `way` what the schedule says."""
        return Impairments(one for one in self.impairments if one.way == way)

    def apply(self, network: Network) -> None:
        """Put a stage for it before all others of each direction that it names.

        Raises:
            ValueError: there is no such direction.
        """
        for way in sorted({one.way for one in self.impairments}):
            if way not in network.directions:
                raise ValueError(f"there is no direction {way}; there are {', '.join(network.directions)}")
            direction = network.directions[way]
            direction.shape((self.stage(way), *direction.pipeline.stages))


class Impairments(Stage):
    """Does to chosen packets what was scheduled; all others pass.

    The number of a packet is the one that it has on arrival here. Where several impairments name one packet
    it is corrupted by all, delayed by the sum, and sent as often as they say in all, or not at all.
    """

    __slots__ = ("_bytes", "_count", "_held", "_numbered", "_timed")

    kind: ClassVar[str] = "schedule"

    def __init__(self, impairments: Iterable[Impairment]) -> None:
        super().__init__()
        self._numbered: dict[int, list[Impairment]] = {}
        self._timed: list[Impairment] = []
        for one in impairments:
            if isinstance(one.at, float):
                self._timed.append(one)
            else:
                self._numbered.setdefault(one.at, []).append(one)
        self._timed.sort(key=lambda one: one.at, reverse=True)
        self._held: list[tuple[float, int, Packet]] = []
        self._count = 0
        self._bytes = 0

    def push(self, packet: Packet, at: float) -> None:
        """See `Stage`."""
        chosen = self._numbered.pop(self.received, None) if self._numbered else None
        self.received += 1
        timed = self._timed
        if timed and timed[-1].at <= at:
            chosen = [*(chosen or ()), timed.pop()]
        if chosen is None:
            self._forward(packet, at)
            return
        late = 0.0
        copies = 1
        for one in chosen:
            if one.effect == DROP:
                self._drop(packet, DropReason.SHAPING_LOSS)
                return
            if one.effect == CORRUPT:
                packet = invert_bit(packet, int(one.value))
            elif one.effect == DELAY:
                late += one.value
            else:
                copies += 1
        self.added += copies - 1
        for _ in range(copies):
            if late:
                self._count += 1
                self._bytes += len(packet)
                heapq.heappush(self._held, (at + late, self._count, packet))
            else:
                self._forward(packet, at)

    def advance(self, now: float) -> None:
        """See `Stage`."""
        while self._held and self._held[0][0] <= now:
            due, _, packet = heapq.heappop(self._held)
            self._bytes -= len(packet)
            self._forward(packet, due)

    def next_timeout(self) -> float | None:
        """See `Stage`."""
        return self._held[0][0] if self._held else None

    def clear(self) -> None:
        """See `Stage`."""
        for _, _, packet in self._held:
            self._drop(packet, DropReason.SHAPING_DETACHED)
        self._held.clear()
        self._bytes = 0

    @property
    def queued(self) -> int:
        """See `Stage`."""
        return len(self._held)

    @property
    def queued_bytes(self) -> int:
        """See `Stage`."""
        return self._bytes


def _parse(text: str) -> Impairment:
    match = _IMPAIRMENT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no impairment, such as 'a>b 3 drop' or 'a>b @1.5s delay 0.25s'")
    way, number, time, words, seconds, bit = match.groups()
    value = float(seconds) if seconds else int(bit) if bit else 0
    return Impairment(way, int(number) if number else float(time), words.split()[0], value)
