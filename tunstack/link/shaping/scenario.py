"""What happens to a link in the course of time: lines such as `10s both loss 5%`, `30s link down`.

A line is a time, counted from the beginning, and what changes then:

    TIME up|down|both WORDS     the words of `spec`, or `none`
    TIME profile NAME           both directions, as a kind of access
    TIME link down|up           the cable is pulled, or plugged in again
    TIME end                    where it is over; with `repeat` in place of `end` it starts again from there

Empty lines, and what follows a `#`, are nothing. Times do not decrease.
"""

from __future__ import annotations

import dataclasses

from tunstack.link.shaping import units
from tunstack.link.shaping.profiles import find
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.units import ShapeError

MAX_STEPS = 100_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What changes `at` seconds behind the beginning.

    Attributes:
        shapes: the directions that change, "up" or "down", and what is done there; None: nothing.
        link: whether the link is up from then on, or None if that stays.
    """

    at: float
    shapes: dict[str, ShapeSpec | None] = dataclasses.field(default_factory=dict)
    link: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Scenario:
    """The steps in their order.

    Attributes:
        length: seconds after which it starts again; 0: it does not.
    """

    steps: tuple[Step, ...]
    length: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Scenario:
        """Read the lines; `ShapeError` says in one sentence which is wrong."""
        steps: list[Step] = []
        length = last = 0.0
        is_over = False
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                at = units.time("the time", words[0].lower())
                if is_over:
                    raise ShapeError("nothing comes behind the end")
                if at < last:
                    raise ShapeError("it is before the line above")
                last = at
                what = words[1].lower() if len(words) > 1 else ""
                if what in ("end", "repeat") and len(words) == 2:
                    is_over = True
                    length = at if what == "repeat" else 0.0
                    if what == "repeat" and not at:
                        raise ShapeError("a repetition takes more than 0s")
                else:
                    steps.append(_step(at, what, words[2:]))
            except ShapeError as error:
                raise ShapeError(f"line {number}: {error}") from None
            if len(steps) > MAX_STEPS:
                raise ShapeError(f"there are more than {MAX_STEPS} lines")
        if not steps:
            raise ShapeError("nothing happens in this scenario")
        return cls(tuple(steps), length)


def _step(at: float, what: str, rest: list[str]) -> Step:
    if what in ("up", "down", "both"):
        spec = None if [word.lower() for word in rest] == ["none"] else ShapeSpec.parse(" ".join(rest))
        return Step(at=at, shapes=dict.fromkeys(("up", "down") if what == "both" else (what,), spec))
    if what == "profile" and len(rest) == 1:
        try:
            profile = find(rest[0])
        except ValueError as error:
            raise ShapeError(str(error)) from None
        return Step(at=at, shapes={"up": ShapeSpec.parse(profile.up), "down": ShapeSpec.parse(profile.down)})
    if what == "link" and len(rest) == 1 and rest[0].lower() in ("up", "down"):
        return Step(at=at, link=rest[0].lower() == "up")
    raise ShapeError(
        "behind the time comes 'up', 'down' or 'both' with words, 'profile NAME', 'link down', 'link up', "
        "'end' or 'repeat'"
    )
