"""Different shaping for different packets: a pipeline for each class, and one for all others.

Theory of operation. Each packet goes into the pipeline of the first class that it fits, and what leaves them
is merged by time. The classes know nothing of one another: a rate is that of its class.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tunstack.errors import DropCounters
from tunstack.limits import Limits
from tunstack.link.shaping.matching import Match, Matcher, look
from tunstack.link.shaping.pipeline import Pipeline, build
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.stage import OnDrop, Read, StageStatistics
from tunstack.packet import Packet


class Classes:
    """In the place of a `Pipeline`, with the same methods; see there."""

    __slots__ = ("_l2", "_matchers", "_parts", "_pipelines", "_up")

    def __init__(self, default: Pipeline, classes: Sequence[tuple[Match, Pipeline]], *, up: bool) -> None:
        """`up`: the far end of a packet is where it goes to."""
        self._parts: dict[Match | None, Pipeline] = {None: default}
        for match, pipeline in classes:
            self._parts[match] = pipeline
        self._pipelines = list(self._parts.values())
        self._matchers = [(Matcher(match), pipeline) for match, pipeline in classes]
        self._up = up
        self._l2 = False

    def push(self, packet: Packet, now: float) -> None:
        """Send `packet` into the first class that it fits."""
        seen = look(packet, l2=self._l2, up=self._up)
        for matcher, pipeline in self._matchers:
            if matcher.fits(seen):
                pipeline.push(packet, now)
                return
        self._pipelines[0].push(packet, now)

    def pop(self, now: float) -> list[Packet]:
        """See `Pipeline`."""
        return [packet for _, packet in self.pop_timed(now)]

    def pop_timed(self, now: float) -> list[tuple[float, Packet]]:
        """See `Pipeline`."""
        out = [departure for pipeline in self._pipelines for departure in pipeline.pop_timed(now)]
        out.sort(key=_time)
        return out

    def next_timeout(self) -> float | None:
        """See `Pipeline`."""
        times = [time for pipeline in self._pipelines if (time := pipeline.next_timeout()) is not None]
        return min(times, default=None)

    def watch(self, on_drop: OnDrop | None) -> None:
        """See `Pipeline`."""
        for pipeline in self._pipelines:
            pipeline.watch(on_drop)

    def clear(self) -> None:
        """See `Pipeline`."""
        for pipeline in self._pipelines:
            pipeline.clear()

    def set_l2(self, l2: bool) -> None:
        """See `Pipeline`."""
        self._l2 = l2
        for pipeline in self._pipelines:
            pipeline.set_l2(l2)

    @property
    def has_native_form(self) -> bool:
        """See `Pipeline`; there is none."""
        return False

    def parts(self) -> dict[Match | None, Pipeline]:
        """The pipelines by what they are for; None: for all others."""
        return self._parts

    def statistics(self) -> list[StageStatistics]:
        """Of all classes, one behind the other."""
        return [stage for pipeline in self._pipelines for stage in pipeline.statistics()]


def build_classes(
    spec: ShapeSpec, seed: int, limits: Limits, drops: DropCounters | None, read: Read, *, up: bool
) -> Pipeline | Classes:
    """What `spec` orders, classes and all; see `build`."""
    default = build(spec, seed, limits, drops, read)
    if not spec.classes:
        return default
    seeds = random.Random(f"classes {seed}")
    parts = [(match, build(part, seeds.getrandbits(64), limits, drops, read)) for match, part in spec.classes]
    return Classes(default, parts, up=up)


Shaped = Pipeline | Classes
"""What one direction of a link is."""


def parts_of(shaped: Shaped) -> dict[Match | None, Pipeline]:
    """The pipelines of a direction, by what they are for."""
    return shaped.parts() if isinstance(shaped, Classes) else {None: shaped}


def inherit(new: Shaped, old: Shaped, now: float) -> None:
    """Let `new` take the place of `old`; see `Pipeline.inherit`.

    What is in a class that is no more goes on among all others.
    """
    heirs = parts_of(new)
    for match, pipeline in parts_of(old).items():
        heirs.get(match, heirs[None]).inherit(pipeline, now)


def release(shaped: Shaped, now: float) -> list[Packet]:
    """All that is inside, at once; the link is shaped no longer."""
    return [packet for pipeline in parts_of(shaped).values() for packet in pipeline.release(now)]


def _time(departure: tuple[float, Packet]) -> float:
    return departure[0]
