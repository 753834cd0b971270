"""Decisions that are not independent of one another: losses in bursts, and chosen packets."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable


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


class Numbered:
    """A `Chance` for chosen packets, by their numbers; the first packet is number 1."""

    __slots__ = ("_count", "numbers")

    def __init__(self, numbers: Iterable[int]) -> None:
        self.numbers = frozenset(numbers)
        self._count = 0

    def __call__(self) -> bool:
        self._count += 1
        return self._count in self.numbers
