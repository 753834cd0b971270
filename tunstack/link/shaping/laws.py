"""What random delays look like: the distributions of jitter, and decisions that depend on the one before.

Theory of operation. A distribution is its quantile function with mean 0: a uniform number becomes a delay
`seconds + jitter * quantile(u)`. Correlation comes in before: a `Correlated` source gives numbers that are
uniform each, but taken in turn follow a Gaussian process of order 1 (a Gaussian copula). So whatever is made
of them keeps its own distribution exactly, and losses their share. netem mixes each number with the one
before, which draws all of them towards the middle: with `loss 25% 25%` it loses less than a quarter.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Protocol

from tunstack.link.shaping.units import ShapeError, whole

_SHAPE = 3.0
"""Of the Pareto distribution, as in iproute2's table: the smallest whole number with a finite variance."""
_MEAN = _SHAPE / (_SHAPE - 1)
_DEVIATION = math.sqrt(_SHAPE / (_SHAPE - 2)) / (_SHAPE - 1)
_PARETO_PART = 0.75
_NORMAL_PART = 0.25
_MIXED = math.hypot(_PARETO_PART, _NORMAL_PART)
_LEAST = 2.0**-60
_MOST = 1 - 2.0**-53
_SQRT2 = math.sqrt(2)
_inverse_normal = NormalDist().inv_cdf

Quantile = Callable[[float], float]
"""Of 0 < u < 1."""


class Source(Protocol):
    """Gives uniform numbers, 0 <= u < 1; a `random.Random` is one."""

    def random(self) -> float: ...


class Correlated:
    """A `Source` whose numbers depend on the one before; `rho` (0..1) correlates their normal scores."""

    __slots__ = ("_gauss", "_innovation", "_last", "rho")

    def __init__(self, rho: float, rng: random.Random) -> None:
        self.rho = rho
        self._innovation = math.sqrt(1 - rho * rho)
        self._gauss = rng.gauss
        self._last = rng.gauss(0.0, 1.0)

    def random(self) -> float:
        """The next number."""
        self._last = self.rho * self._last + self._innovation * self._gauss(0.0, 1.0)
        return min(_MOST, 0.5 * math.erfc(-self._last / _SQRT2))


def source(correlation: float, rng: random.Random) -> Source:
    """`rng`, or what correlates its numbers."""
    return Correlated(correlation, rng) if correlation else rng


def uniform(u: float) -> float:
    """Between -1 and 1."""
    return 2 * u - 1


def normal(u: float) -> float:
    """With standard deviation 1."""
    return _inverse_normal(max(u, _LEAST))


def pareto(u: float) -> float:
    """A Pareto distribution of shape 3 with mean 0 and standard deviation 1: a few are very late."""
    return (float((1 - u) ** (-1 / _SHAPE)) - _MEAN) / _DEVIATION


class Spread:
    """A `Draw`: `seconds` and `jitter` times what `quantile` makes of `numbers`; never less than 0."""

    __slots__ = ("_quantile", "_random", "jitter", "seconds")

    def __init__(self, seconds: float, jitter: float, quantile: Quantile, numbers: Source) -> None:
        self.seconds = seconds
        self.jitter = jitter
        self._quantile = quantile
        self._random = numbers.random

    def __call__(self) -> float:
        return max(0.0, self.seconds + self.jitter * self._quantile(self._random()))


class ParetoNormal:
    """A `Draw`, a quarter normal and three quarters Pareto, as iproute2 mixes them, of deviation `jitter`."""

    __slots__ = ("_normal", "_pareto", "jitter", "seconds")

    def __init__(self, seconds: float, jitter: float, first: Source, second: Source) -> None:
        """`first` and `second`: independent of one another."""
        self.seconds = seconds
        self.jitter = jitter
        self._normal = first.random
        self._pareto = second.random

    def __call__(self) -> float:
        mixed = _NORMAL_PART * normal(self._normal()) + _PARETO_PART * pareto(self._pareto())
        return max(0.0, self.seconds + self.jitter * mixed / _MIXED)


class Table:
    """A `Quantile` that was measured: `values`, ascending, in units of the jitter."""

    __slots__ = ("_values",)

    def __init__(self, values: Sequence[float]) -> None:
        """ValueError for none."""
        if not values:
            raise ValueError("a table has one value at least")
        self._values = tuple(sorted(values))

    def __call__(self, u: float) -> float:
        values = self._values
        place = u * (len(values) - 1)
        low = int(place)
        if low + 1 >= len(values):
            return values[-1]
        return values[low] + (place - low) * (values[low + 1] - values[low])


class Measured:
    """A `Draw` from delays that were measured, in seconds: between two neighbours all are equally likely."""

    __slots__ = ("_quantile", "_random")

    def __init__(self, delays: Sequence[float], numbers: Source) -> None:
        """ValueError for none, or for negative ones."""
        if not delays or min(delays) < 0:
            raise ValueError("measured delays: at least one, and none of them negative")
        self._quantile = Table(delays)
        self._random = numbers.random

    def __call__(self) -> float:
        return self._quantile(self._random())


TABLE_SCALE = 8192
"""What stands for one jitter in a table of iproute2."""


def parse_table(text: str) -> tuple[float, ...]:
    """The values of a table as iproute2 has them (NAME.dist): whole numbers, `TABLE_SCALE` times as large.

    Raises:
        ShapeError: it is none.
    """
    values = []
    for number, line in enumerate(text.splitlines(), 1):
        for word in line.partition("#")[0].split():
            try:
                value = whole("a value", word)
            except ShapeError as error:
                raise ShapeError(f"line {number}: {error}") from None
            values.append(value / TABLE_SCALE)
    if not values:
        raise ShapeError("there are no values")
    return tuple(values)
