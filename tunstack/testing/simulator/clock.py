"""The virtual clock: a heap of things to do, and instants at which they are done.

Theory of operation. Time moves from instant to instant. Within one, first everything is done that was ordered
for it (packets arrive, schedules act), then the timers that are due expire, and then whoever was touched says
what it has to say; so what arrives together is acted upon together, as by a host that reads a batch from its
network card. What that causes at the same instant is another one, which comes next. Things ordered for
the same time are done in the order in which they were ordered: a run depends on nothing but its input.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

Action = Callable[[float], None]
"""Something to do; it is told the time (seconds)."""

_TIMER = 1 << 62
"""Added to the number of a timer: it comes after all else of its instant."""
_STANDSTILL = 20_000
"""Instants in a row at the same time, after which the simulation is declared to stand still."""


class StandsStill(Exception):
    """The clock does not move: somebody asks to be called at once, again and again, and does nothing."""


class Speaker(Protocol):
    """Who may have something to say after an instant."""

    touched: bool
    """Whether it is among those who will be asked; owned by the clock."""

    def speak(self, now: float) -> None: ...


class Clock:
    """Runs what it was ordered to do.

    Attributes:
        now: seconds.
        instants: how many there have been.
    """

    __slots__ = ("_count", "_heap", "_touched", "instants", "now")

    def __init__(self, start: float) -> None:
        self.now = start
        self.instants = 0
        self._count = 0
        self._heap: list[tuple[float, int, Action]] = []
        self._touched: list[Speaker] = []

    def at(self, time: float, action: Action) -> None:
        """Do `action` at `time`, or at the next instant if that has passed."""
        self._count += 1
        heapq.heappush(self._heap, (time, self._count, action))

    def expire_at(self, time: float, action: Action) -> None:
        """The same for a timer, which gives way to all else that happens at `time`."""
        self._count += 1
        heapq.heappush(self._heap, (time, self._count + _TIMER, action))

    def touch(self, speaker: Speaker) -> None:
        """`speaker` may have something to say at the end of this instant."""
        if not speaker.touched:
            speaker.touched = True
            self._touched.append(speaker)

    def next_time(self) -> float | None:
        """When the next instant is, or None: nothing will ever happen."""
        if self._touched:
            return self.now
        return self._heap[0][0] if self._heap else None

    def listen(self) -> None:
        """Let those speak who were touched."""
        now = self.now
        while self._touched:
            touched, self._touched = self._touched, []
            for speaker in touched:
                speaker.touched = False
                speaker.speak(now)

    def instant(self) -> None:
        """Go through the next instant. There must be one."""
        heap = self._heap
        pop = heapq.heappop
        self.instants += 1
        now = self.now
        if heap and not self._touched:
            if heap[0][0] > now:
                self.now = now = heap[0][0]
            due = [pop(heap)[2]]
            while heap and heap[0][0] <= now:
                due.append(pop(heap)[2])
            for action in due:  # what they order for this time is for the next instant
                action(now)
        if self._touched:
            self.listen()

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Go on to `until`, which may be infinite; stops early, and says so, when `done`.

        Raises:
            StandsStill: time does not go on.
        """
        self.listen()
        heap = self._heap
        still = 0
        while done is None or not done():
            if not heap or heap[0][0] > until:
                if until != float("inf"):
                    self.now = max(self.now, until)
                return False
            before = self.now
            self.instant()
            if self.now != before:
                still = 0
            elif (still := still + 1) > _STANDSTILL:
                raise StandsStill(f"the clock stands still at {before:.6f} s")
        return True


class Alarm:
    """The next call that one speaker or link wants, armed lazily.

    A deadline that moves later, as most do, leaves its entry in the heap, which asks again when it surfaces.
    """

    __slots__ = ("_action", "_armed", "_deadline", "_order", "_timer")

    def __init__(
        self, clock: Clock, deadline: Callable[[], float | None], action: Action, *, timer: bool
    ) -> None:
        """At the time that `deadline` says `action` is done; `timer`: see `Clock.expire_at`.

        Without `timer` the action may be done when nothing is due, which saves asking.
        """
        self._timer = timer
        self._deadline = deadline
        self._action = action
        self._order = clock.expire_at if timer else clock.at
        self._armed = float("inf")

    def arm(self) -> None:
        """The deadline may have come nearer."""
        deadline = self._deadline()
        if deadline is not None and deadline < self._armed:
            self._armed = deadline
            self._order(deadline, self._ring)

    def _ring(self, now: float) -> None:
        if self._armed > now:
            return  # an entry that an earlier one has replaced
        self._armed = float("inf")
        if self._timer:
            deadline = self._deadline()
            if deadline is None or deadline > now:
                self.arm()
                return
        self._action(now)
        self.arm()
