"""What every stage of a pipeline is, and the memory that the stages of one pipeline share.

Theory of operation. A stage takes packets with the times at which they reach it (`push`) and hands each on to
its sink with the time at which it leaves: at once, or, if it holds packets, out of `advance` when that time
has come. Times are those of the link, not of the calls: whoever calls late finds the same departure times
as whoever calls to the microsecond, because a stage passes on the time at which a packet *was due*. Three
rules make that work:

- what a stage is told comes in order of time: no `push` or `advance` is earlier than the one before;
- what a stage hands on is in order of time as well, and never later than the call that it happens in;
- a row of stages is advanced from its first to its last (`Pipeline` does).

Packets are wire-size (no `gso_size`), complete (no partial checksum) and own their bytes. Two may share them:
a stage that changes bytes copies first. Randomness comes as a `Chance`, a function without arguments, so that
correlated, bursty or scripted decisions take the place of independent ones without a new stage.

Some stages have a native form, which does the same in C. They *lend* it all that they are and hold; until
that is *restored* they are not to be used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from mypy_extensions import mypyc_attr

from tunstack.errors import DropCounters, DropReason
from tunstack.link.shaping.laws import Source
from tunstack.packet import Packet

if TYPE_CHECKING:
    from tunstack.native.pipeline import NativePipeline

Sink = Callable[[Packet, float], None]
"""Takes a packet and the time at which it arrives there."""

Chance = Callable[[], bool]
"""Decides once for each packet."""

Read = Callable[[str], str]
"""Gives the text of the file of that name, or raises `ShapeError`."""

OnDrop = Callable[[Packet, DropReason], None]
"""Told of each packet that a stage drops, and why."""

PACKET_OVERHEAD = 384
"""Bytes that a held packet occupies beside its own: the objects around it and its place in a queue."""


class Bernoulli:
    """A `Chance` of fixed probability (0..1); decisions are as independent as the numbers of `rng`."""

    __slots__ = ("_random", "probability", "rng")

    def __init__(self, probability: float, rng: Source) -> None:
        self.probability = probability
        self.rng = rng
        self._random = rng.random

    def __call__(self) -> bool:
        return self._random() < self.probability


class Memory:
    """The bytes that the stages of one pipeline hold together, at most `limit`."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, packet: Packet) -> bool:
        """Account for `packet`; False, and nothing is taken, if there is no room."""
        used = self.used + len(packet) + PACKET_OVERHEAD
        if used > self.limit:
            return False
        self.used = used
        return True

    def give(self, packet: Packet) -> None:
        """`packet`, which was taken, is held no longer."""
        self.used -= len(packet) + PACKET_OVERHEAD

    def lend(self, native: NativePipeline) -> None:
        """See `Stage`."""
        native.c.memory_limit = self.limit
        native.c.memory_used = self.used
        native.c.memory_overhead = PACKET_OVERHEAD

    def restore(self, native: NativePipeline) -> None:
        """See `Stage`."""
        self.used = native.c.memory_used


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageStatistics:
    """What a stage has done: at any time `received + added` is the sum of `sent`, `queued` and `dropped`.

    Attributes:
        stage: its kind, the word of the specification.
        received: packets that came in.
        added: packets that the stage made itself.
        sent: packets that it handed on.
        dropped: packets that ended here, by cause.
        queued: packets that it holds now.
        queued_bytes: their bytes on the wire.
        marked: packets that were marked with Congestion Experienced (ECN) in place of being dropped.
        sojourn: seconds that a packet that was sent has spent in the stage, on average.
        longest: the same, at the most.
    """

    stage: str
    received: int
    added: int
    sent: int
    dropped: dict[DropReason, int]
    queued: int
    queued_bytes: int
    marked: int = 0
    sojourn: float = 0.0
    longest: float = 0.0


@mypyc_attr(allow_interpreted_subclasses=True)
class Stage:
    """The base of all, which passes everything on as it comes.

    Subclasses define `push`; if they hold packets `advance`, `next_timeout`, `surrender` and the properties;
    `set_l2` if they look into packets; `inherit` if packets that come anew are not all to take over; and
    `has_native_form`, `lend` and `restore` if there is a native form.
    """

    __slots__ = ("_drops", "_sink", "_time", "added", "dropped", "longest", "on_drop", "received", "sent")

    kind: ClassVar[str] = "pass"

    def __init__(self) -> None:
        self.received = 0
        self.added = 0
        self.sent = 0
        self.dropped: dict[DropReason, int] = {}
        self.longest = 0.0
        self._time = 0.0
        self._sink: Sink | None = None
        self._drops: DropCounters | None = None
        self.on_drop: OnDrop | None = None

    def connect(self, sink: Sink, drops: DropCounters) -> None:
        """Hand packets on to `sink`, and count drops in `drops` too; before the first packet."""
        self._sink = sink
        self._drops = drops

    def push(self, packet: Packet, at: float) -> None:
        """Take `packet`, which arrives at time `at`."""
        self.received += 1
        self._forward(packet, at)

    def advance(self, now: float) -> None:
        """Hand on everything that leaves at `now` or before."""

    def next_timeout(self) -> float | None:
        """When the next packet leaves, or None: nothing is held."""
        return None

    def clear(self) -> None:
        """Drop everything that is held: the link was cut."""
        for packet in self.surrender(0.0):
            self._drop(packet, DropReason.SHAPING_DETACHED)

    def set_l2(self, l2: bool) -> None:
        """Say whether packets begin with an Ethernet header; without a word they do not."""

    def inherit(self, old: Stage, now: float) -> None:
        """Take over what `old`, one of the same `kind`, is and holds; before the first `push`.

        Here what it holds comes anew.
        """
        for packet in old.surrender(now):
            self.push(packet, now)

    def surrender(self, now: float) -> list[Packet]:
        """Give up what is held, in the order in which it would leave; it was neither sent nor dropped."""
        return []

    @property
    def has_native_form(self) -> bool:
        """Whether it can be lent."""
        return False

    def lend(self, native: NativePipeline) -> None:
        """Copy all that the stage is and holds; nothing is given up yet. MemoryError."""
        counts = native.counts(self.kind)
        counts.received = self.received
        counts.sent = self.sent
        counts.waited = self._time
        counts.longest = self.longest

    def restore(self, native: NativePipeline) -> None:
        """Take all of it back, in the place of what is here."""
        self.count_drops(native)
        counts = native.counts(self.kind)
        self.received = counts.received
        self.sent = counts.sent
        self._time = counts.waited
        self.longest = counts.longest

    def count_drops(self, native: NativePipeline) -> None:
        """Count what the native form has dropped."""
        assert self._drops is not None, "the stage is not connected"
        for reason, count in native.take_drops(self.kind):
            self.dropped[reason] = self.dropped.get(reason, 0) + count
            self._drops.add(reason, count)

    @property
    def marked(self) -> int:
        """Packets that were marked."""
        return 0

    @property
    def queued(self) -> int:
        """Packets held."""
        return 0

    @property
    def queued_bytes(self) -> int:
        """Bytes of the packets held, as on the wire."""
        return 0

    def statistics(self) -> StageStatistics:
        """A snapshot."""
        return StageStatistics(
            stage=self.kind,
            received=self.received,
            added=self.added,
            sent=self.sent,
            dropped=dict(self.dropped),
            queued=self.queued,
            queued_bytes=self.queued_bytes,
            marked=self.marked,
            sojourn=self._time / self.sent if self.sent else 0.0,
            longest=self.longest,
        )

    def _waited(self, seconds: float) -> None:
        """A packet that leaves was here for so long."""
        self._time += seconds
        if seconds > self.longest:
            self.longest = seconds

    def _forward(self, packet: Packet, at: float) -> None:
        self.sent += 1
        assert self._sink is not None, "the stage is not connected"
        self._sink(packet, at)

    def _drop(self, packet: Packet, reason: DropReason) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        assert self._drops is not None, "the stage is not connected"
        self._drops.add(reason)
        if self.on_drop is not None:
            self.on_drop(packet, reason)
