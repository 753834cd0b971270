"""A row of stages: packets and times in, packets and departure times out."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable

from tunstack.errors import DropCounters
from tunstack.limits import DEFAULT_LIMITS, Limits
from tunstack.link.shaping import laws
from tunstack.link.shaping.chances import FourStates, Gap, GilbertElliott
from tunstack.link.shaping.delay import Constant, Delay, Draw, Normal, Uniform
from tunstack.link.shaping.impairments import Corrupt, Duplicate, Loss
from tunstack.link.shaping.rate import DropTail, Rate
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.stage import Bernoulli, Chance, Memory, OnDrop, Stage, StageStatistics
from tunstack.packet import Packet


class Pipeline:
    """Stages in a row; `now` never decreases from call to call.

    What has passed them waits until it is popped, outside of the stages' memory: pop at each `next_timeout`
    and after each `push`.
    """

    __slots__ = ("_holding", "_passed", "stages")

    def __init__(self, stages: Iterable[Stage], drops: DropCounters | None = None) -> None:
        """Connect `stages`, the first of which packets reach first. `drops` counts their drops too."""
        self.stages = tuple(stages)
        self._holding = tuple(one for one in self.stages if type(one).advance is not Stage.advance)
        self._passed: deque[tuple[float, Packet]] = deque()
        counters = DropCounters() if drops is None else drops
        for stage, following in zip(self.stages, self.stages[1:], strict=False):
            stage.connect(following.push, counters)
        if self.stages:
            self.stages[-1].connect(self._arrive, counters)

    def push(self, packet: Packet, now: float) -> None:
        """Send `packet`: wire-size, complete, and the pipeline's own from now on."""
        if self.stages:
            self.stages[0].push(packet, now)
        else:
            self._arrive(packet, now)

    def pop(self, now: float) -> list[Packet]:
        """The packets that have left at `now` or before, in order."""
        self._advance(now)
        if not self._passed:
            return []
        packets = [packet for _, packet in self._passed]
        self._passed.clear()
        return packets

    def pop_timed(self, now: float) -> list[tuple[float, Packet]]:
        """The same with the times at which they left, which do not depend on how often one asks."""
        self._advance(now)
        departures = list(self._passed)
        self._passed.clear()
        return departures

    def next_timeout(self) -> float | None:
        """When to `pop` (seconds), or None: there is nothing inside."""
        if self._passed:
            return self._passed[0][0]
        soonest = None
        for stage in self._holding:
            time = stage.next_timeout()
            if time is not None and (soonest is None or time < soonest):
                soonest = time
        return soonest

    def watch(self, on_drop: OnDrop | None) -> None:
        """Tell `on_drop` of each packet that a stage drops; None: nobody is told any more."""
        for stage in self.stages:
            stage.on_drop = on_drop

    def clear(self) -> None:
        """Drop everything inside: the link was cut."""
        for stage in self.stages:
            stage.clear()
        self._passed.clear()

    def statistics(self) -> list[StageStatistics]:
        """Of each stage, in the order in which packets pass them."""
        return [stage.statistics() for stage in self.stages]

    def _advance(self, now: float) -> None:
        for stage in self._holding:
            stage.advance(now)

    def _arrive(self, packet: Packet, at: float) -> None:
        self._passed.append((at, packet))


def build(
    spec: ShapeSpec, seed: int, limits: Limits = DEFAULT_LIMITS, drops: DropCounters | None = None
) -> Pipeline:
    """The stages that `spec` orders: duplicate, loss, corrupt, rate, delay, in this order.

    Equal arguments and inputs give equal outputs. `seed` holds unless the specification has one of its own.
    Each stage draws from a sequence of its own, so that adding a stage changes no other's decisions.
    """
    seed = seed if spec.seed is None else spec.seed
    memory = Memory(limits.shaping_memory)
    stages: list[Stage] = []
    if spec.duplicate:
        stages.append(Duplicate(_chance("duplicate", spec, seed)))
    if spec.bursts is not None:
        stages.append(Loss(GilbertElliott(spec.bursts, random.Random(f"loss {seed}"))))
    elif spec.states is not None:
        stages.append(Loss(FourStates(spec.states, random.Random(f"loss {seed}"))))
    elif spec.loss:
        stages.append(Loss(_chance("loss", spec, seed)))
    if spec.corrupt:
        bits = random.Random(f"bit {seed}")
        stages.append(Corrupt(_chance("corrupt", spec, seed), bits))
    if spec.rate:
        queue = DropTail(packets=spec.queue_packets, size=spec.queue_bytes)
        stages.append(Rate(spec.rate, queue, memory))
    if spec.delay or spec.jitter:
        reorder = _chance("reorder", spec, seed) if spec.reorder else None
        if reorder is not None and spec.gap > 1:
            reorder = Gap(reorder, spec.gap)
        stages.append(Delay(_draw(spec, seed), memory, reorder, keep_order=spec.ordered))
    return Pipeline(stages, drops)


_QUANTILES = {"uniform": laws.uniform, "normal": laws.normal, "pareto": laws.pareto}


def _draw(spec: ShapeSpec, seed: int) -> Draw:
    if not spec.jitter:
        return Constant(spec.delay)
    rng = random.Random(f"jitter {seed}")
    if spec.distribution == "paretonormal":
        sources = [laws.source(spec.correlation, one) for one in (rng, random.Random(f"jitter 2 {seed}"))]
        return laws.ParetoNormal(spec.delay, spec.jitter, *sources)
    if not spec.correlation and spec.distribution != "pareto":
        return (Normal if spec.distribution == "normal" else Uniform)(spec.delay, spec.jitter, rng)
    numbers = laws.source(spec.correlation, rng)
    return laws.Spread(spec.delay, spec.jitter, _QUANTILES[spec.distribution], numbers)


def _chance(word: str, spec: ShapeSpec, seed: int) -> Chance:
    correlation: float = getattr(spec, f"{word}_correlation")
    return Bernoulli(getattr(spec, word), laws.source(correlation, random.Random(f"{word} {seed}")))
