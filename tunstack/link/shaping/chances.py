"""Decisions that are not independent of one another: losses in bursts, chosen packets, gaps."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from tunstack.link.shaping.stage import Chance


@dataclasses.dataclass(frozen=True, slots=True)
class Bursts:
    """The probabilities (0..1) of the model of Gilbert and Elliott, in the order of netem's `gemodel`.

    Attributes:
        to_bad: of a packet in the good state, that the state turns bad (p).
        to_good: of a packet in the bad state, that the state turns good (r).
        loss_bad: of a packet in the bad state, that it is lost (1 - h).
        loss_good: the same in the good state (1 - k).
    """

    to_bad: float
    to_good: float
    loss_bad: float = 1.0
    loss_good: float = 0.0

    @property
    def loss(self) -> float:
        """The share of packets that are lost in the long run."""
        change = self.to_bad + self.to_good
        if not change:
            return self.loss_good
        return (self.to_bad * self.loss_bad + self.to_good * self.loss_good) / change


class GilbertElliott:
    """A `Chance` with two states: few are chosen while it is good, many while it is bad.

    A packet is judged by the state in which it finds the link, as in netem; the first one finds it good.
    """

    __slots__ = ("_random", "bad", "bursts")

    def __init__(self, bursts: Bursts, rng: random.Random) -> None:
        self.bursts = bursts
        self.bad = False
        self._random = rng.random

    def __call__(self) -> bool:
        bursts = self.bursts
        turn, loss = self._random(), self._random()
        if self.bad:
            self.bad = turn >= bursts.to_good
            return loss < bursts.loss_bad
        self.bad = turn < bursts.to_bad
        return loss < bursts.loss_good


@dataclasses.dataclass(frozen=True, slots=True)
class Markov:
    """The probabilities (0..1) of the model of four states, in the order of netem's `loss state`.

    The states are 1: received outside of bursts, 2: received within one, 3: lost in a burst, 4: lost alone.

    Attributes:
        p13: from 1 to 3: a burst begins.
        p31: from 3 to 1: it ends.
        p32: from 3 to 2: it pauses.
        p23: from 2 to 3: it goes on.
        p14: from 1 to 4, from where the next packet goes back to 1.
    """

    p13: float
    p31: float
    p32: float = 0.0
    p23: float = 1.0
    p14: float = 0.0

    @property
    def loss(self) -> float:
        """The share of packets that are lost in the long run."""
        if self.p13 and self.p32 and not self.p23:
            return 0.0  # in the end a burst pauses for ever
        if self.p13 and not self.p31:
            return self.p23 / (self.p23 + self.p32) if self.p32 else 1.0
        lost = self.p13 / self.p31 if self.p13 else 0.0
        paused = self.p32 / self.p23 * lost if self.p32 else 0.0
        return (lost + self.p14) / (1 + lost + paused + self.p14)


class FourStates:
    """A `Chance` by the model of four states; a packet meets the state that it has brought about."""

    __slots__ = ("_random", "markov", "state")

    def __init__(self, markov: Markov, rng: random.Random) -> None:
        self.markov = markov
        self.state = 1
        self._random = rng.random

    def __call__(self) -> bool:
        markov, turn = self.markov, self._random()
        if self.state == 1:
            if turn < markov.p14:
                self.state = 4
            elif turn < markov.p14 + markov.p13:
                self.state = 3
        elif self.state == 2:
            if turn < markov.p23:
                self.state = 3
        elif self.state == 3:
            if turn < markov.p32:
                self.state = 2
            elif turn < markov.p32 + markov.p31:
                self.state = 1
        else:
            self.state = 1
        return self.state > 2


class Gap:
    """A `Chance` that chooses as `chance` does, but not before `gap - 1` packets were left alone."""

    __slots__ = ("_alone", "_chance", "gap")

    def __init__(self, chance: Chance, gap: int) -> None:
        self.gap = gap
        self._chance = chance
        self._alone = 0

    def __call__(self) -> bool:
        if self._alone < self.gap - 1 or not self._chance():
            self._alone += 1
            return False
        self._alone = 0
        return True


class Numbered:
    """A `Chance` for chosen packets, by their numbers; the first packet is number 1."""

    __slots__ = ("_count", "numbers")

    def __init__(self, numbers: Iterable[int]) -> None:
        self.numbers = frozenset(numbers)
        self._count = 0

    def __call__(self) -> bool:
        self._count += 1
        return self._count in self.numbers


class Pattern:
    """A `Chance` that follows `bits`, a text of 0 and 1, over and over again."""

    __slots__ = ("_place", "bits")

    def __init__(self, bits: str) -> None:
        self.bits = bits
        self._place = -1

    def __call__(self) -> bool:
        self._place = (self._place + 1) % len(self.bits)
        return self.bits[self._place] == "1"
