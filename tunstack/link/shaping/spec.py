"""The words in which shaping is ordered, as in netem: `delay 100ms loss 1% rate 10mbit limit 50`.

    delay TIME          every packet takes this much longer (us, ms, s)
    delay TIME JITTER [CORRELATION] [uniform|normal|pareto|paretonormal] [ordered]
                        and up to JITTER more or less; but for `uniform`, which is the default, the jitter is
                        the standard deviation of the distribution. `ordered`: no packet overtakes another
    loss PERCENT        of the packets are dropped
    loss state P13 [P31 [P32 [P23 [P14]]]]
                        by a model of four states: 1 received, 2 received within a burst, 3 lost in a burst,
                        4 lost alone (P31 is what P13 leaves of 100%; P32, P23 and P14 are 0%, 100% and 0%)
    loss gemodel P R [1-H [1-K]]
                        they are dropped in bursts: P and R are the probabilities of going over to the bad
                        state and back to the good one, 1-H and 1-K those of a loss in them (100%, 0%)
    duplicate PERCENT   of the packets are sent twice
    corrupt PERCENT     of the packets have one bit inverted
    reorder PERCENT [gap N]
                        of the packets are not delayed, and so overtake those that are; with `delay` only.
                        `gap N`: N - 1 packets at least are delayed between two that are not
    rate RATE           bits per second (bit, kbit, mbit, gbit; also kibit …) or bytes (bps, kbps, mbps, gbps)
    limit SIZE          of the queue before the rate: packets (a bare number) or bytes (b, kb, mb)
    seed NUMBER         the same seed and the same input give the same output

Behind the percentage of `loss`, `duplicate`, `corrupt` and `reorder` a second one is its correlation: how
much each decision depends on the one before, as in `laws`. The units mean what they mean to tc(8), `bps`
being bytes per second. Numbers without a unit (tc takes times for microseconds) are refused except for
`limit`, `gap` and `seed`. The words come in any order and each once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from tunstack.link.shaping.chances import Bursts, Markov

MAX_DELAY = 3600.0
"""Seconds."""
MAX_RATE = 1e12
"""Bits per second."""
MAX_LIMIT = 2**32 - 1
"""Packets or bytes, as in netem's `limit`; memory is bounded by `Limits.shaping_memory` all the same."""
MAX_SEED = 2**64 - 1
MAX_GAP = 2**32 - 1

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

_DISTRIBUTIONS = ("uniform", "normal", "pareto", "paretonormal")
_PROBABILITIES = ("loss", "duplicate", "corrupt", "reorder")
"""Words whose value is one probability, in the order in which they are printed."""
_NAMES = f"{', '.join(_DISTRIBUTIONS[:-1])} or {_DISTRIBUTIONS[-1]}"

_SYNONYMS = {"sec": "s", "secs": "s", "msec": "ms", "msecs": "ms", "usec": "us", "usecs": "us"}


class ShapeError(ValueError):
    """A specification that cannot be; one sentence."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShapeSpec:
    """What one direction of a link does to packets. `ShapeSpec.parse(str(spec)) == spec`.

    Attributes:
        delay: seconds.
        jitter: by how much it varies, seconds: at most, or the standard deviation.
        correlation: of the jitter of each packet with that of the one before, 0..1.
        distribution: of the jitter: "uniform", "normal", "pareto" or "paretonormal".
        ordered: no packet overtakes another for its jitter.
        loss: probability, 0..1; so `duplicate`, `corrupt` and `reorder`.
        loss_correlation: of each decision with the one before, 0..1; so those of the others.
        bursts: losses in bursts in place of these.
        states: losses by the model of four states in place of these.
        gap: one more than the packets that are delayed at least between two that `reorder` chooses.
        rate: bits per second, 0 for no limit.
        limit_packets: bound of the queue before the rate.
        limit_bytes: the same in bytes. At most one of the two; None and None mean 0.1 s, at least 24 KiB.
        seed: of all random decisions; None leaves it to who builds the pipeline.
    """

    delay: float = 0.0
    jitter: float = 0.0
    correlation: float = 0.0
    distribution: str = "uniform"
    ordered: bool = False
    loss: float = 0.0
    loss_correlation: float = 0.0
    bursts: Bursts | None = None
    states: Markov | None = None
    duplicate: float = 0.0
    duplicate_correlation: float = 0.0
    corrupt: float = 0.0
    corrupt_correlation: float = 0.0
    reorder: float = 0.0
    reorder_correlation: float = 0.0
    gap: int = 1
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
            raise ShapeError(f"the jitter of a delay is {_NAMES}")
        if self.distribution != "uniform" and not self.jitter:
            raise ShapeError(
                f"a {self.distribution} delay needs a jitter: it is the spread of the distribution"
            )
        if (self.correlation or self.ordered) and not self.jitter:
            what = "correlated" if self.correlation else "ordered"
            raise ShapeError(f"a delay that is {what} needs a jitter: it is the same for all packets without")
        if not 0 <= self.correlation <= 1:
            raise ShapeError("the correlation of a delay is between 0% and 100%")
        for word in _PROBABILITIES:
            if not 0 <= getattr(self, word) <= 1:
                raise ShapeError(f"{word} is between 0% and 100%")
            correlation = getattr(self, f"{word}_correlation")
            if not 0 <= correlation <= 1:
                raise ShapeError(f"the correlation of {word} is between 0% and 100%")
            if correlation and not getattr(self, word):
                raise ShapeError(f"{word} has a correlation but no percentage")
        self._check_models()
        if self.reorder and not self.delay:
            raise ShapeError("reorder needs a delay: it sends packets at once while others are delayed")
        if not 1 <= self.gap <= MAX_GAP:
            raise ShapeError(f"gap is between 1 and {MAX_GAP}")
        if self.gap > 1 and not self.reorder:
            raise ShapeError("gap needs reorder: it keeps those apart that are reordered")
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

    def _check_models(self) -> None:
        models = [model for model in (self.bursts, self.states) if model is not None]
        if len(models) + bool(self.loss) > 1:
            raise ShapeError("loss is either a percentage or a model, and one model")
        for model in models:
            name = "gemodel" if isinstance(model, Bursts) else "state"
            if not all(0 <= probability <= 1 for probability in dataclasses.astuple(model)):
                raise ShapeError(f"loss {name}: a probability is between 0% and 100%")
        states = self.states
        if states is not None and max(states.p13 + states.p14, states.p31 + states.p32) > 1 + 1e-9:
            raise ShapeError("loss state: P13 and P14, and P31 and P32, are 100% together at the most")

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
            if self.correlation:
                words.append(_percentage(self.correlation))
            if self.distribution != "uniform":
                words.append(self.distribution)
            if self.ordered:
                words.append("ordered")
        if self.bursts is not None:
            words += ["loss gemodel", *map(_percentage, dataclasses.astuple(self.bursts))]
        if self.states is not None:
            words += ["loss state", *map(_percentage, dataclasses.astuple(self.states))]
        for word in _PROBABILITIES:
            if value := getattr(self, word):
                words.append(f"{word} {_percentage(value)}")
                if correlation := getattr(self, f"{word}_correlation"):
                    words.append(_percentage(correlation))
        if self.gap > 1:
            words.append(f"gap {self.gap}")
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
    if tokens and _NUMBER.fullmatch(tokens[0]):
        fields["correlation"] = _share("the correlation of a delay", tokens.pop(0))
    if tokens and tokens[0] == "distribution":  # which tc wants before the name, and we take
        tokens.pop(0)
        if not tokens or tokens[0] not in _DISTRIBUTIONS:
            raise ShapeError(f"the distribution of a delay is {_NAMES}")
    if tokens and tokens[0] in _DISTRIBUTIONS:
        fields["distribution"] = tokens.pop(0)
    if tokens and tokens[0] == "ordered":
        tokens.pop(0)
        fields["ordered"] = True
    return fields


def _time(word: str, text: str) -> float:
    return float(_quantity(word, text, _TIMES, "s, ms, us and ns"))


def _loss(word: str, tokens: list[str]) -> dict[str, Any]:
    if tokens[0] == "gemodel":
        values = _shares("loss gemodel", tokens, 4)
        if len(values) < 2:
            raise ShapeError("loss gemodel needs two probabilities at least, such as 'loss gemodel 1% 10%'")
        return {"bursts": Bursts(*values)}
    if tokens[0] == "state":
        values = _shares("loss state", tokens, 5)
        if not values:
            raise ShapeError("loss state needs a probability at least, such as 'loss state 1%'")
        return {"states": Markov(*values) if len(values) > 1 else Markov(values[0], 1 - values[0])}
    if tokens[0] == "random" and len(tokens) > 1:  # which tc takes for the plain percentage
        tokens.pop(0)
    return _probability(word, tokens)


def _shares(name: str, tokens: list[str], most: int) -> list[float]:
    """The percentages behind the word of a model."""
    tokens.pop(0)
    values: list[float] = []
    while tokens and len(values) < most and _NUMBER.fullmatch(tokens[0]):
        values.append(_share(name, tokens.pop(0)))
    return values


def _probability(word: str, tokens: list[str]) -> dict[str, Any]:
    fields = {word: _share(word, tokens.pop(0))}
    if tokens and _NUMBER.fullmatch(tokens[0]):
        fields[f"{word}_correlation"] = _share(f"the correlation of {word}", tokens.pop(0))
    return fields


def _whole(word: str, tokens: list[str]) -> dict[str, Any]:
    text = tokens.pop(0)
    if not re.fullmatch(r"\d+", text, re.ASCII):
        raise ShapeError(f"{word}: '{text}' is not a whole number")
    return {word: _integer(word, text)}


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
    "gap": _whole,
    "rate": _rate,
    "limit": _limit,
    "seed": _whole,
}

_EXAMPLES = {
    "delay": "100ms",
    "loss": "1%",
    "duplicate": "1%",
    "corrupt": "0.1%",
    "reorder": "2%",
    "gap": "5",
    "rate": "10mbit",
    "limit": "100",
    "seed": "1",
}
