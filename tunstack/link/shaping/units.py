"""Quantities as tc(8) writes them: times, shares, rates and sizes with their units, to and from text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([a-z%]*)", re.ASCII)
"""A number and its unit, in lower case."""

TIMES = {"s": Decimal(1), "ms": Decimal("1e-3"), "us": Decimal("1e-6"), "ns": Decimal("1e-9")}
PERCENT = {"%": Decimal("0.01")}
_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_PREFIXES = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
RATES = {
    prefix + unit: Decimal(factor * bits)
    for prefix, factor in (_PREFIXES | _BINARY_PREFIXES).items()
    for unit, bits in (("bit", 1), ("bps", 8))
}
SIZES = {"b": 1, "k": 2**10, "kb": 2**10, "m": 2**20, "mb": 2**20, "g": 2**30, "gb": 2**30}

_SYNONYMS = {"sec": "s", "secs": "s", "msec": "ms", "msecs": "ms", "usec": "us", "usecs": "us"}

EXAMPLES = {
    "delay": "100ms",
    "loss": "1%",
    "duplicate": "1%",
    "corrupt": "0.1%",
    "reorder": "2%",
    "gap": "5",
    "rate": "10mbit",
    "burst": "16kb",
    "trace": "lte.down",
    "limit": "100",
    "queue": "fq_codel",
    "slot": "5ms",
    "quota": "1gb",
    "perflow": "1mbit",
    "perguest": "10mbit",
    "seed": "1",
}
"""A value for each word, as the sentences about errors show it."""


class ShapeError(ValueError):
    """A specification that cannot be; one sentence."""


def quantity(word: str, text: str, units: Mapping[str, Decimal], names: str) -> Decimal:
    """`text` in the unit that `units` give the factor 1; `names`: the units, for the sentence."""
    match = NUMBER.fullmatch(text)
    if match is None:
        example = EXAMPLES.get(word)
        such = f", such as {example}" if example else ""
        raise ShapeError(f"{word}: '{text}' is not a number with a unit{such}")
    number, unit = match.groups()
    factor = units.get(_SYNONYMS.get(unit, unit))
    if factor is None:
        what = f"unknown unit '{unit}'" if unit else f"'{text}' has no unit"
        raise ShapeError(f"{word}: {what}; the units are {names}")
    return Decimal(number) * factor


def time(word: str, text: str) -> float:
    """Seconds."""
    return float(quantity(word, text, TIMES, "s, ms, us and ns"))


def share(word: str, text: str) -> float:
    """A percentage as a part of 1."""
    return float(quantity(word, text, PERCENT, "only %"))


def rate(word: str, text: str) -> float:
    """Bits per second."""
    names = "bit, kbit, mbit, gbit (bits per second) and bps, kbps, mbps, gbps (bytes per second)"
    return float(quantity(word, text, RATES, names))


def size(word: str, text: str) -> tuple[int, bool]:
    """A whole number, and whether it has a unit: it is one of bytes then."""
    match = re.fullmatch(r"(\d+)([a-z]*)", text, re.ASCII)
    if match is None or (match[2] and match[2] not in SIZES):
        raise ShapeError(f"{word}: '{text}' is neither a number of packets nor of bytes (b, kb, mb)")
    return whole(word, match[1]) * SIZES.get(match[2], 1), bool(match[2])


def whole(word: str, text: str) -> int:
    """A whole number, maybe negative."""
    if not re.fullmatch(r"-?\d+", text, re.ASCII):
        raise ShapeError(f"{word}: '{text}' is not a whole number")
    if len(text) > 20:  # more than any bound here
        raise ShapeError(f"{word}: {text[:20]}… is too large")
    return int(text)


def scaled(value: float, units: Mapping[str, Decimal], order: tuple[str, ...]) -> str:
    """`value` exactly, in the first unit of `order` in which it is at least 1, or else in the last."""
    exact = Decimal(repr(value))
    unit = next((unit for unit in order if exact >= units[unit]), order[-1])
    return f"{(exact / units[unit]).normalize():f}{unit}"


def seconds(value: float) -> str:
    """A time as text."""
    return scaled(value, TIMES, ("s", "ms", "us"))


def percentage(value: float) -> str:
    """A part of 1 as text."""
    return scaled(value, PERCENT, ("%",))


def bits(value: float) -> str:
    """A rate as text."""
    return scaled(value, RATES, ("gbit", "mbit", "kbit", "bit"))
