"""Links that follow a recording: delivery opportunities of mahimahi, or rows of time, rate, delay and loss.

Two kinds of file:

- one whole number a line, milliseconds, none less than the one before: *opportunities* to deliver
  `OPPORTUNITY` bytes each (the format of mahimahi's traces). After the last it starts again from there. A
  packet may use several opportunities, several packets one; what nobody uses when it comes is lost.
- comma-separated values under a heading of `time` and one or more of `rate`, `delay` and `loss`: each row
  holds from its time on, the last one for ever. Numbers have the units of the words (`10mbit`, `20ms`, `1%`),
  or are seconds, bits per second, and parts of 1.

A recording begins with the first packet that meets it.
"""

from __future__ import annotations

import bisect
import csv
import dataclasses
import random

from tunstack.link.shaping import units
from tunstack.link.shaping.delay import Delay
from tunstack.link.shaping.impairments import Loss
from tunstack.link.shaping.stage import Memory
from tunstack.link.shaping.units import ShapeError
from tunstack.packet import Packet

OPPORTUNITY = 1504
"""Bytes that one opportunity delivers; mahimahi's figure, for an MTU of 1500 and its own header of 4."""
_ROUNDING = 1e-6
"""Bits that are none: what sums of times leave of a packet must not wait for a rate that may never come."""
_COLUMNS = ("time", "rate", "delay", "loss")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What holds from `time` (seconds) on: bits per second, seconds, probability; None: no such column."""

    time: float
    rate: float | None
    delay: float | None
    loss: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """What a file says: either opportunities or rows.

    Attributes:
        opportunities: milliseconds, none less than the one before.
        rows: by time, the first at 0.
    """

    opportunities: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()

    @property
    def rate(self) -> float:
        """Bits per second: of the opportunities on average, or of the fastest row; 0 if it gives no rate."""
        if self.opportunities:
            return len(self.opportunities) * OPPORTUNITY * 8000 / self.opportunities[-1]
        return max((row.rate for row in self.rows if row.rate is not None), default=0.0)

    def gives(self, column: str) -> bool:
        """Whether there are rows with this column: "rate", "delay" or "loss"."""
        return bool(self.rows) and getattr(self.rows[0], column) is not None


def parse(text: str) -> Trace:
    """What a file with this text says; `ShapeError` if it is neither kind of file."""
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if "," in first or first.strip() in _COLUMNS:
        return Trace(rows=_rows(lines))
    times = []
    for number, line in enumerate(lines, 1):
        if not (word := line.strip()):
            continue
        if not (word.isascii() and word.isdecimal() and len(word) < 16):
            raise ShapeError(f"line {number} is not a number of milliseconds")
        times.append(int(word))
        if len(times) > 1 and times[-1] < times[-2]:
            raise ShapeError(f"line {number} goes back in time")
    if not times or not times[-1]:
        raise ShapeError("there is no delivery opportunity after 0 ms")
    return Trace(opportunities=tuple(times))


def _rows(lines: list[str]) -> tuple[Row, ...]:
    reader = csv.DictReader(lines, skipinitialspace=True)
    names = [name.strip().lower() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    if "time" not in names or len(set(names)) < max(2, len(names)) or set(names) - set(_COLUMNS):
        raise ShapeError(f"the heading is time and some of {', '.join(_COLUMNS[1:])}, each once")
    rows: list[Row] = []
    for cells in reader:
        try:
            row = _row(cells)
        except ShapeError as error:
            raise ShapeError(f"line {reader.line_num}: {error}") from None
        if rows and row.time <= rows[-1].time:
            raise ShapeError(f"line {reader.line_num}: the time is not after that of the row before")
        if not rows and row.time:
            raise ShapeError(f"line {reader.line_num}: the first row is at time 0")
        rows.append(row)
    if not rows:
        raise ShapeError("there are no rows")
    return tuple(rows)


def _row(cells: dict[str, str | None]) -> Row:
    if None in cells.values() or None in cells:
        raise ShapeError("it has not as many cells as the heading")
    values: dict[str, float | None] = dict.fromkeys(_COLUMNS)
    readers = {"time": units.time, "rate": units.rate, "delay": units.time, "loss": units.share}
    for name, cell in cells.items():
        text = (cell or "").strip().lower()
        plain = units.NUMBER.fullmatch(text)
        values[name] = float(text) if plain is not None and not plain[2] else readers[name](name, text)
    time, loss = values["time"], values["loss"]
    assert time is not None
    if loss is not None and loss > 1:
        raise ShapeError("loss is between 0 and 1, or 0% and 100%")
    return Row(time, values["rate"], values["delay"], loss)


class Opportunities:
    """A `Service` that delivers at the times of `trace`."""

    __slots__ = ("_next", "_period", "_rest", "_start", "_time", "_times")

    def __init__(self, trace: Trace) -> None:
        self._times = trace.opportunities
        self._period = trace.opportunities[-1]
        self._start: float | None = None
        self._next = 0
        self._time = float("-inf")
        self._rest = 0

    def finish(self, at: float, size: int) -> float:
        """See `Service`."""
        if self._start is None:
            self._start = at
        if self._time < at:  # nobody was there to use the rest
            self._rest = 0
            self._skip(at)
        while size > self._rest:
            size -= self._rest
            self._time = self._when(self._next)
            self._next += 1
            self._rest = OPPORTUNITY
        self._rest -= size
        return max(at, self._time)

    def _skip(self, at: float) -> None:
        """Go on to the first opportunity at `at` or later."""
        assert self._start is not None
        elapsed = int((at - self._start) * 1000)
        # The last of a cycle may be at the time of the first of the next, which is 0.
        cycles = max(0, elapsed - 1) // self._period
        place = bisect.bisect_left(self._times, elapsed - cycles * self._period)
        self._next = max(self._next, cycles * len(self._times) + place)
        while self._when(self._next) < at:
            self._next += 1

    def _when(self, number: int) -> float:
        assert self._start is not None
        cycles, place = divmod(number, len(self._times))
        return self._start + (cycles * self._period + self._times[place]) / 1000


class Playback:
    """A trace with rows that is being played: whoever first seeks in it begins it, for all others too."""

    __slots__ = ("rows", "start")

    def __init__(self, trace: Trace) -> None:
        self.rows = trace.rows
        self.start: float | None = None


class Cursor:
    """A place in the rows of a playback, that only moves on."""

    __slots__ = ("_place", "_playback", "_rows")

    def __init__(self, playback: Playback) -> None:
        self._playback = playback
        self._rows = playback.rows
        self._place = 0

    def seek(self, at: float) -> Row:
        """The row that holds at time `at`."""
        if self._playback.start is None:
            self._playback.start = at
        while self.end <= at:
            self._place += 1
        return self._rows[self._place]

    @property
    def end(self) -> float:
        """Until when the row holds."""
        following = self._place + 1
        start = self._playback.start
        if following == len(self._rows) or start is None:
            return float("inf")
        return start + self._rows[following].time


class Recorded:
    """A `Service` whose rate is that of the rows of `playback`."""

    __slots__ = ("_cursor",)

    def __init__(self, playback: Playback) -> None:
        self._cursor = Cursor(playback)

    def finish(self, at: float, size: int) -> float:
        """See `Service`; infinity if the rest of the trace has no rate."""
        cursor, bits = self._cursor, float(8 * size)
        while True:
            rate = cursor.seek(at).rate or 0.0
            room = (cursor.end - at) * rate if rate else 0.0
            if rate and bits <= room + _ROUNDING:
                return min(at + bits / rate, cursor.end)
            bits -= room
            at = cursor.end
            if at == float("inf"):
                return at


class RecordedLoss(Loss):
    """Loses packets with the probability of the row of `playback` in which they come."""

    __slots__ = ("_cursor", "_probability")

    def __init__(self, playback: Playback, rng: random.Random) -> None:
        self._cursor = Cursor(playback)
        self._probability = 0.0
        draw = rng.random
        super().__init__(lambda: draw() < self._probability)

    def push(self, packet: Packet, at: float) -> None:
        """See `Stage`."""
        self._probability = self._cursor.seek(at).loss or 0.0
        super().push(packet, at)


class RecordedDelay(Delay):
    """Delays packets by what the row of `playback` says in which they come."""

    __slots__ = ("_cursor", "_seconds")

    def __init__(self, playback: Playback, memory: Memory) -> None:
        self._cursor = Cursor(playback)
        self._seconds = 0.0
        super().__init__(lambda: self._seconds, memory)

    def push(self, packet: Packet, at: float) -> None:
        """See `Stage`."""
        self._seconds = self._cursor.seek(at).delay or 0.0
        super().push(packet, at)
