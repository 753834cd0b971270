"""The words in which shaping is ordered, as in netem: `delay 100ms loss 1% rate 10mbit limit 50`.

    delay TIME          every packet takes this much longer (us, ms, s)
    delay TIME JITTER   and up to JITTER more or less, each decided on its own; with `normal` behind it the
                        jitter is the standard deviation of a normal distribution
    loss PERCENT        of the packets are dropped
    loss gemodel P R [1-H [1-K]]
                        they are dropped in bursts: P and R are the probabilities of going over to the bad
                        state and back to the good one, 1-H and 1-K those of a loss in them (100%, 0%)
    duplicate PERCENT   of the packets are sent twice
    corrupt PERCENT     of the packets have one bit inverted
    reorder PERCENT     of the packets are not delayed, and so overtake those that are; with `delay` only
    rate RATE           bits per second (bit, kbit, mbit, gbit; also kibit …) or bytes (bps, kbps, mbps, gbps)
    limit SIZE          of the queue before the rate: packets (a bare number) or bytes (b, kb, mb)
    seed NUMBER         the same seed and the same input give the same output

The units mean what they mean to tc(8), `bps` being bytes per second. Numbers without a unit (tc takes times
for microseconds) are refused except for `limit` and `seed`. The words come in any order and each once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from tunstack.link.shaping.chances import Bursts

MAX_DELAY = 3600.0
"""Seconds."""
MAX_RATE = 1e12
"""Bits per second."""
MAX_LIMIT = 2**32 - 1
"""Packets or bytes, as in netem's `limit`; memory is bounded by `Limits.shaping_memory` all the same."""
MAX_SEED = 2**64 - 1

QUEUE_SECONDS = 0.1
"""Length of the queue if no limit is given, in time at the full rate: no bufferbloat."""
QUEUE_FLOOR = 24 * 1024
"""Bytes of that queue on links so slow that 0.1 s would be a few packets: 16 of 1500 bytes."""

_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([a-z%]*)", re.ASCII)

_TIMES = {"s": Decimal(1), "ms": Decimal("1e-3"), "us": Decimal("1e-6"), "ns": Decimal("1e-9")}
_PERCENT = {"%": Decimal("0.01")}
_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_PREFIXES = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_RATES = {
    prefix + unit: Decimal(factor * bits)
    for prefix, factor in (_PREFIXES | _BINARY_PREFIXES).items()
    for unit, bits in (("bit", 1), ("bps", 8))
}
_SIZES = {"b": 1, "k": 2**10, "kb": 2**10, "m": 2**20, "mb": 2**20, "g": 2**30, "gb": 2**30}

_DISTRIBUTIONS = ("uniform", "normal")
_PROBABILITIES = ("loss", "duplicate", "corrupt", "reorder")
"""Words whose value is one probability, in the order in which they are printed."""

_SYNONYMS = {"sec": "s", "secs": "s", "msec": "ms", "msecs": "ms", "usec": "us", "usecs": "us"}


class ShapeError(ValueError):
    """A specification that cannot be; one sentence."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShapeSpec:
    """What one direction of a link does to packets. `ShapeSpec.parse(str(spec)) == spec`.

    Attributes:
        delay: seconds.
        jitter: by how much it varies, seconds: at most, or the standard deviation.
        distribution: of the jitter: "uniform" or "normal".
        loss: probability, 0..1; so `duplicate`, `corrupt` and `reorder`.
        bursts: losses in bursts in place of independent ones.
        rate: bits per second, 0 for no limit.
        limit_packets: bound of the queue before the rate.
        limit_bytes: the same in bytes. At most one of the two; None and None mean 0.1 s, at least 24 KiB.
        seed: of all random decisions; None leaves it to who builds the pipeline.
    """

    delay: float = 0.0
    jitter: float = 0.0
    distribution: str = "uniform"
    loss: float = 0.0
    bursts: Bursts | None = None
    duplicate: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    rate: float = 0.0
    limit_packets: int | None = None
    limit_bytes: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raises `ShapeError` for values out of range, or that make no sense together."""
        if not 0 <= self.delay <= MAX_DELAY:
            raise ShapeError(f"delay is at most {MAX_DELAY:.0f}s and not negative")
        if not 0 <= self.jitter <= MAX_DELAY:
            raise ShapeError(f"the jitter of a delay is at most {MAX_DELAY:.0f}s and not negative")
        if self.distribution not in _DISTRIBUTIONS:
            raise ShapeError(f"the jitter of a delay is {' or '.join(_DISTRIBUTIONS)}")
        if self.distribution != "uniform" and not self.jitter:
            raise ShapeError(
                f"a {self.distribution} delay needs a jitter: it is the spread of the distribution"
            )
        for word in _PROBABILITIES:
            if not 0 <= getattr(self, word) <= 1:
                raise ShapeError(f"{word} is between 0% and 100%")
        if self.bursts is not None:
            if self.loss:
                raise ShapeError("loss is either a percentage or a gemodel")
            if not all(0 <= probability <= 1 for probability in dataclasses.astuple(self.bursts)):
                raise ShapeError("loss gemodel: a probability is between 0% and 100%")
        if self.reorder and not self.delay:
            raise ShapeError("reorder needs a delay: it sends packets at once while others are delayed")
        if self.rate and not 1 <= self.rate <= MAX_RATE:
            raise ShapeError("rate is between 1bit and 1tbit a second")
        limits = [limit for limit in (self.limit_packets, self.limit_bytes) if limit is not None]
        if limits and not self.rate:
            raise ShapeError("limit needs a rate: it is the length of the queue before it")
        if len(limits) > 1:
            raise ShapeError("limit is in packets or in bytes, not both")
        if limits and not 1 <= limits[0] <= MAX_LIMIT:
            raise ShapeError(f"limit is between 1 and {MAX_LIMIT}")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise ShapeError(f"seed is between 0 and {MAX_SEED}")

    @classmethod
    def parse(cls, text: str) -> ShapeSpec:
        """Read the words; `ShapeError` says in one sentence what is wrong with them."""
        tokens = text.lower().split()
        if not tokens:
            raise ShapeError(f"nothing is ordered; the words are {', '.join(_WORDS)}")
        fields: dict[str, Any] = {}
        seen: set[str] = set()
        while tokens:
            word = tokens.pop(0)
            if word not in _WORDS:
                raise ShapeError(f"unknown word '{word}'; the words are {', '.join(_WORDS)}")
            if word in seen:
                raise ShapeError(f"{word} is given twice")
            seen.add(word)
            if not tokens or tokens[0] in _WORDS:
                raise ShapeError(f"{word} needs a value, such as '{word} {_EXAMPLES[word]}'")
            fields |= _WORDS[word](word, tokens)
        if "rate" in seen and not fields["rate"]:
            raise ShapeError("rate is between 1bit and 1tbit a second")
        return cls(**fields)

    def __str__(self) -> str:
        words = []
        if self.delay or self.jitter:
            words.append(f"delay {_seconds(self.delay)}")
        if self.jitter:
            words.append(_seconds(self.jitter))
            if self.distribution != "uniform":
                words.append(self.distribution)
        if self.bursts is not None:
            words += ["loss gemodel", *map(_percentage, dataclasses.astuple(self.bursts))]
        for word in _PROBABILITIES:
            if value := getattr(self, word):
                words.append(f"{word} {_percentage(value)}")
        if self.rate:
            words.append(f"rate {_scaled(self.rate, _RATES, ('gbit', 'mbit', 'kbit', 'bit'))}")
        if self.limit_packets is not None:
            words.append(f"limit {self.limit_packets}")
        if self.limit_bytes is not None:
            words.append(f"limit {self.limit_bytes}b")
        if self.seed is not None:
            words.append(f"seed {self.seed}")
        return " ".join(words) or "delay 0s"

    @property
    def queue_packets(self) -> int | None:
        """The bound of the queue in packets, if it has one."""
        return self.limit_packets

    @property
    def queue_bytes(self) -> int | None:
        """The bound of the queue in bytes, if it has one: every queue has one or the other."""
        if self.limit_bytes is not None or self.limit_packets is not None:
            return self.limit_bytes
        return max(QUEUE_FLOOR, int(self.rate / 8 * QUEUE_SECONDS))


def _quantity(word: str, text: str, units: Mapping[str, Decimal], names: str) -> Decimal:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ShapeError(f"{word}: '{text}' is not a number with a unit, such as {_EXAMPLES[word]}")
    number, unit = match.groups()
    factor = units.get(_SYNONYMS.get(unit, unit))
    if factor is None:
        what = f"unknown unit '{unit}'" if unit else f"'{text}' has no unit"
        raise ShapeError(f"{word}: {what}; the units are {names}")
    return Decimal(number) * factor


def _delay(word: str, tokens: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {word: _time(word, tokens.pop(0))}
    if tokens and _NUMBER.fullmatch(tokens[0]):
        fields["jitter"] = _time("the jitter of a delay", tokens.pop(0))
    if tokens and tokens[0] == "distribution":  # which tc wants before the name, and we take
        tokens.pop(0)
        if not tokens or tokens[0] not in _DISTRIBUTIONS:
            raise ShapeError(f"the distribution of a delay is {' or '.join(_DISTRIBUTIONS)}")
    if tokens and tokens[0] in _DISTRIBUTIONS:
        fields["distribution"] = tokens.pop(0)
    return fields


def _time(word: str, text: str) -> float:
    return float(_quantity(word, text, _TIMES, "s, ms, us and ns"))


def _loss(word: str, tokens: list[str]) -> dict[str, Any]:
    if tokens[0] != "gemodel":
        return _probability(word, tokens)
    tokens.pop(0)
    values: list[float] = []
    while tokens and len(values) < 4 and _NUMBER.fullmatch(tokens[0]):
        values.append(_share("loss gemodel", tokens.pop(0)))
    if len(values) < 2:
        raise ShapeError("loss gemodel needs two probabilities at least, such as 'loss gemodel 1% 10%'")
    return {"bursts": Bursts(*values)}


def _probability(word: str, tokens: list[str]) -> dict[str, Any]:
    return {word: _share(word, tokens.pop(0))}


def _share(word: str, text: str) -> float:
    return float(_quantity(word, text, _PERCENT, "only %"))


def _rate(word: str, tokens: list[str]) -> dict[str, Any]:
    text = tokens.pop(0)
    names = "bit, kbit, mbit, gbit (bits per second) and bps, kbps, mbps, gbps (bytes per second)"
    return {word: float(_quantity(word, text, _RATES, names))}


def _limit(word: str, tokens: list[str]) -> dict[str, Any]:
    text = tokens.pop(0)
    match = re.fullmatch(r"(\d+)([a-z]*)", text, re.ASCII)
    if match is None or (match[2] and match[2] not in _SIZES):
        raise ShapeError(f"{word}: '{text}' is neither a number of packets nor of bytes (b, kb, mb)")
    number = _integer(word, match[1])
    return {"limit_bytes": number * _SIZES[match[2]]} if match[2] else {"limit_packets": number}


def _seed(word: str, tokens: list[str]) -> dict[str, Any]:
    text = tokens.pop(0)
    if not re.fullmatch(r"\d+", text, re.ASCII):
        raise ShapeError(f"{word}: '{text}' is not a whole number")
    return {word: _integer(word, text)}


def _integer(word: str, digits: str) -> int:
    if len(digits) > 20:  # more than any bound here
        raise ShapeError(f"{word}: {digits[:20]}… is too large")
    return int(digits)


def _scaled(value: float, units: Mapping[str, Decimal], order: tuple[str, ...]) -> str:
    """`value` exactly, in the first unit of `order` in which it is at least 1, or else in the last."""
    exact = Decimal(repr(value))
    unit = next((unit for unit in order if exact >= units[unit]), order[-1])
    return f"{(exact / units[unit]).normalize():f}{unit}"


def _seconds(value: float) -> str:
    return _scaled(value, _TIMES, ("s", "ms", "us"))


def _percentage(value: float) -> str:
    return _scaled(value, _PERCENT, ("%",))


_WORDS: dict[str, Callable[[str, list[str]], dict[str, Any]]] = {
    "delay": _delay,
    "loss": _loss,
    "duplicate": _probability,
    "corrupt": _probability,
    "reorder": _probability,
    "rate": _rate,
    "limit": _limit,
    "seed": _seed,
}

_EXAMPLES = {
    "delay": "100ms",
    "loss": "1%",
    "duplicate": "1%",
    "corrupt": "0.1%",
    "reorder": "2%",
    "rate": "10mbit",
    "limit": "100",
    "seed": "1",
}
