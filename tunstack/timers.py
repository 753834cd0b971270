"""One heap of deadlines for many keys, with lazy re-arming.

Most deadlines of a network stack move later before they expire (each ACK restarts the
RTO). `set` with a later deadline therefore only writes a dictionary entry; the heap entry
that is already there re-arms itself when it surfaces. Stale entries are dropped at the
pop, and pruned in one go when they outnumber the live ones.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class TimerHeap(Generic[Key]):
    """Deadlines (seconds, on the clock of the caller), at most one for each key."""

    __slots__ = ("_armed", "_count", "_deadlines", "_heap")

    def __init__(self) -> None:
        self._deadlines: dict[Key, float] = {}
        self._armed: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._deadlines)

    def set(self, key: Key, deadline: float) -> None:
        """Arm `key`, replacing its former deadline."""
        self._deadlines[key] = deadline
        armed = self._armed.get(key)
        if armed is None or deadline < armed:
            self._push(key, deadline)
            if len(self._heap) > 64 + 2 * len(self._deadlines):
                self._prune()

    def cancel(self, key: Key) -> None:
        """Disarm `key`; nothing happens if it was not armed."""
        self._deadlines.pop(key, None)

    def get(self, key: Key) -> float | None:
        """The deadline of `key`, or None."""
        return self._deadlines.get(key)

    def next_deadline(self) -> float | None:
        """A time before which nothing expires, or None if nothing is armed.

        Stale heads are removed first, so the answer is exact.
        """
        heap = self._heap
        while heap:
            deadline, _, key = heap[0]
            if self._armed.get(key) != deadline:
                heapq.heappop(heap)
                continue
            wanted = self._deadlines.get(key)
            if wanted == deadline:
                return deadline
            heapq.heappop(heap)
            del self._armed[key]
            if wanted is not None:
                self._push(key, wanted)
        return None

    def expired(self, now: float) -> list[Key]:
        """The keys whose deadline is at or before `now`, earliest first; they are disarmed."""
        keys: list[Key] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._armed[key]
            del self._deadlines[key]
            keys.append(key)
        return keys

    def _push(self, key: Key, deadline: float) -> None:
        self._armed[key] = deadline
        heapq.heappush(self._heap, (deadline, next(self._count), key))

    def _prune(self) -> None:
        self._armed = dict(self._deadlines)
        self._heap = [(d, next(self._count), key) for key, d in self._deadlines.items()]
        heapq.heapify(self._heap)
