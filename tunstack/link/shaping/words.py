"""Reads the words of `spec` into the fields of a `ShapeSpec`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tunstack.link.shaping import units
from tunstack.link.shaping.chances import Bursts, Markov
from tunstack.link.shaping.matching import CONDITIONS, Match, is_prefix
from tunstack.link.shaping.slots import Slots
from tunstack.link.shaping.units import EXAMPLES, NUMBER, ShapeError

DISTRIBUTIONS = ("uniform", "normal", "pareto", "paretonormal")
QUEUES = ("droptail", "codel", "fq_codel")


def one_of(names: Sequence[str]) -> str:
    """`names` as a choice, for a sentence."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def split(text: str) -> tuple[str, list[tuple[Match, str]]]:
    """The words for all packets (maybe none), and those for some, behind what they are for. `ShapeError`."""
    default = ""
    parts: list[tuple[Match, str]] = []
    for part in text.split(";"):
        tokens = part.split()
        if not tokens or tokens[0].lower().rstrip(":") not in CONDITIONS:
            if default and tokens:
                raise ShapeError("but one part between the ';' is without something to match before a ':'")
            default = part if tokens else default
            continue
        end = _end_of_match(tokens)
        match = Match.parse(" ".join(tokens[: end + 1])[:-1])
        if match in [other for other, _ in parts]:
            raise ShapeError(f"'{match}:' is given twice")
        parts.append((match, " ".join(tokens[end + 1 :])))
    return default, parts


def _end_of_match(tokens: list[str]) -> int:
    """The place of the token behind whose last `:` the words come."""
    for place, token in enumerate(tokens):
        is_address = place > 0 and tokens[place - 1].lower() == "to" and is_prefix(token)
        if token.endswith(":") and not is_address:
            return place
    raise ShapeError(f"'{tokens[0]}' begins something to match, behind which a ':' and words come")


def parse(text: str) -> dict[str, Any]:
    """The fields that `text` orders, as far as one word tells; `ShapeError` for what cannot be read."""
    given = text.split()
    # Names of files are left as they are.
    names = {place + 1 for place, token in enumerate(given) if token.lower() in _FILES}
    tokens = [token if place in names else token.lower() for place, token in enumerate(given)]
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
            raise ShapeError(f"{word} needs a value, such as '{word} {EXAMPLES[word]}'")
        fields |= _WORDS[word](word, tokens)
    if "rate" in seen and not fields["rate"]:
        raise ShapeError("rate is between 1bit and 1tbit a second")
    for word in ("burst", "quota"):
        if word in seen and not fields[word]:
            raise ShapeError(f"{word} is one byte at least")
    for word in ("perflow", "perguest"):
        if word in seen and not fields[word]:
            raise ShapeError(f"{word} is between 1bit and 1tbit a second")
    return fields


def _is_number(tokens: list[str]) -> bool:
    return bool(tokens) and NUMBER.fullmatch(tokens[0]) is not None


def _delay(word: str, tokens: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {word: units.time(word, tokens.pop(0))}
    if _is_number(tokens):
        fields["jitter"] = units.time("the jitter of a delay", tokens.pop(0))
    if _is_number(tokens):
        fields["correlation"] = units.share("the correlation of a delay", tokens.pop(0))
    if tokens and tokens[0] == "distribution":  # which tc wants before the name, and we take
        tokens.pop(0)
        if not tokens or tokens[0] not in DISTRIBUTIONS:
            raise ShapeError(f"the distribution of a delay is {one_of(DISTRIBUTIONS)}")
    if tokens and tokens[0] in DISTRIBUTIONS:
        fields["distribution"] = tokens.pop(0)
    elif tokens and tokens[0] == "table":
        tokens.pop(0)
        if not tokens or tokens[0] in _WORDS:
            raise ShapeError("the table of a delay needs a file, such as 'table /usr/lib/tc/pareto.dist'")
        fields["table"] = tokens.pop(0)
    if tokens and tokens[0] == "ordered":
        tokens.pop(0)
        fields["ordered"] = True
    return fields


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
    if tokens[0] == "pattern":
        tokens.pop(0)
        if not tokens or set(tokens[0]) - {"0", "1"}:
            raise ShapeError("loss pattern needs digits, all of them 0 or 1, such as 'loss pattern 00010'")
        return {"pattern": tokens.pop(0)}
    if tokens[0] == "random" and len(tokens) > 1:  # which tc takes for the plain percentage
        tokens.pop(0)
    return _probability(word, tokens)


def _shares(name: str, tokens: list[str], most: int) -> list[float]:
    """The percentages behind the word of a model."""
    tokens.pop(0)
    values: list[float] = []
    while len(values) < most and _is_number(tokens):
        values.append(units.share(name, tokens.pop(0)))
    return values


def _probability(word: str, tokens: list[str]) -> dict[str, Any]:
    fields = {word: units.share(word, tokens.pop(0))}
    if _is_number(tokens):
        fields[f"{word}_correlation"] = units.share(f"the correlation of {word}", tokens.pop(0))
    return fields


def _whole(word: str, tokens: list[str]) -> dict[str, Any]:
    number = units.whole(word, text := tokens.pop(0))
    if number < 0:
        raise ShapeError(f"{word}: '{text}' is not a whole number")
    return {word: number}


def _rate(word: str, tokens: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {word: units.rate(word, tokens.pop(0))}
    for name in ("overhead", "cell", "cell_overhead"):
        if not tokens or not tokens[0].removeprefix("-").isdecimal():
            break
        fields[name] = units.whole("the overhead of a rate", tokens.pop(0))
    return fields


def _bytes(word: str, tokens: list[str]) -> dict[str, Any]:
    number, has_unit = units.size(word, text := tokens.pop(0))
    if not has_unit:
        raise ShapeError(f"{word}: '{text}' has no unit; the units are b, kb, mb")
    return {word: number}


def _share(word: str, tokens: list[str]) -> dict[str, Any]:
    return {word: units.rate(word, tokens.pop(0))}


def _trace(word: str, tokens: list[str]) -> dict[str, Any]:
    return {word: tokens.pop(0)}


def _queue(word: str, tokens: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {word: tokens.pop(0)}
    if fields[word] not in QUEUES:
        raise ShapeError(f"the queue is {one_of(QUEUES)}")
    while tokens and tokens[0] in ("target", "interval", "noecn", "ecn", "guests"):
        name = tokens.pop(0)
        if name == "guests":
            fields["by_guest"] = True
        elif name in ("ecn", "noecn"):
            fields["ecn"] = name == "ecn"
        elif tokens:
            fields[name] = units.time(f"the {name} of a queue", tokens.pop(0))
        else:
            raise ShapeError(f"the {name} of a queue needs a time, such as '{name} 20ms'")
    return fields


def _limit(word: str, tokens: list[str]) -> dict[str, Any]:
    number, has_unit = units.size(word, tokens.pop(0))
    return {"limit_bytes" if has_unit else "limit_packets": number}


def _slot(word: str, tokens: list[str]) -> dict[str, Any]:
    least = most = units.time(word, tokens.pop(0))
    if _is_number(tokens):
        most = units.time(word, tokens.pop(0))
    packets = size = 0
    while tokens and tokens[0] in ("packets", "bytes"):
        name = tokens.pop(0)
        if not tokens:
            raise ShapeError(f"slot: {name} needs a number")
        number = units.size(f"the {name} of a slot", tokens.pop(0))[0]
        if not number:
            raise ShapeError(f"slot: {name} is 1 at least")
        if name == "packets":
            packets = number
        else:
            size = number
    return {"slots": Slots(least, most, packets, size)}


_FILES = ("trace", "table")
"""Words behind which the name of a file stands."""

_WORDS: dict[str, Callable[[str, list[str]], dict[str, Any]]] = {
    "delay": _delay,
    "loss": _loss,
    "duplicate": _probability,
    "corrupt": _probability,
    "reorder": _probability,
    "gap": _whole,
    "quota": _bytes,
    "perflow": _share,
    "perguest": _share,
    "rate": _rate,
    "burst": _bytes,
    "trace": _trace,
    "queue": _queue,
    "limit": _limit,
    "slot": _slot,
    "seed": _whole,
}
