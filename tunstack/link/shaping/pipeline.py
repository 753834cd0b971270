"""A row of stages: packets and times in, packets and departure times out."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

from tunstack.errors import DropCounters
from tunstack.limits import DEFAULT_LIMITS, Limits
from tunstack.link.shaping import laws
from tunstack.link.shaping.chances import FourStates, Gap, GilbertElliott, Pattern
from tunstack.link.shaping.codel import CoDel
from tunstack.link.shaping.delay import Constant, Delay, Draw, Normal, Uniform
from tunstack.link.shaping.flows import FlowRate, GuestRate, Quota
from tunstack.link.shaping.fq_codel import FqCoDel
from tunstack.link.shaping.impairments import Corrupt, Duplicate, Loss
from tunstack.link.shaping.rate import DropTail, Queue, Rate, Service, Steady
from tunstack.link.shaping.slots import Slot
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.stage import Bernoulli, Chance, Memory, OnDrop, Read, Stage, StageStatistics
from tunstack.link.shaping.trace import (
    Opportunities,
    Playback,
    Recorded,
    RecordedDelay,
    RecordedLoss,
    Trace,
    parse,
)
from tunstack.link.shaping.units import ShapeError
from tunstack.native.fastpath import lib
from tunstack.native.pipeline import NativePipeline
from tunstack.packet import Packet

Parsed = TypeVar("Parsed")

_ORDER = ("duplicate", "loss", "corrupt", "quota", "perflow", "perguest", "rate", "delay", "slot")
"""The kinds of stages that `build` makes, as packets pass them."""

_NATIVE_ORDER = ("loss", "rate", "delay")
"""Those among them of which the native form of a pipeline has one each, at the most."""


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

    def inherit(self, old: Pipeline, now: float) -> None:
        """Take over what is inside of `old`, whose place this one takes at `now`; before the first `push`.

        What waits before the rate waits before the new one, and what is on its way is due when it was. Where
        there is no rate, no delay or no slots any more, what waited for that goes on at once.
        """
        self._passed.extend(old.pop_timed(now))
        mine = {stage.kind: stage for stage in self.stages}
        for stage in reversed(old.stages):  # the nearest to the end go first
            heir = mine.get(stage.kind)
            if heir is None:
                self._pass_on(stage.surrender(now), now, behind=stage.kind)
            else:
                heir.inherit(stage, now)
        self._advance(now)

    def release(self, now: float) -> list[Packet]:
        """All that is inside, in the order in which it would leave: the link is shaped no longer."""
        bare = Pipeline(())
        bare.inherit(self, now)
        return bare.pop(now)

    def set_l2(self, l2: bool) -> None:
        """See `Stage`."""
        for stage in self.stages:
            stage.set_l2(l2)

    @property
    def has_native_form(self) -> bool:
        """Whether it can be lent; not while somebody is told of drops."""
        kinds = [stage.kind for stage in self.stages]
        if kinds != [kind for kind in _NATIVE_ORDER if kind in kinds]:
            return False
        return all(stage.has_native_form and stage.on_drop is None for stage in self.stages)

    def lend(self, native: NativePipeline) -> None:
        """Let `native`, a new one, go on with all that is here, until it is restored; see `Stage`.

        Raises:
            MemoryError: and nothing has changed.
        """
        for at, packet in self._passed:
            native.put(lib.TS_AT_END, packet.tobytes(), at, at)
        for stage in self.stages:
            stage.lend(native)
        self._passed.clear()
        for stage in self.stages:
            stage.surrender(0.0)

    def restore(self, native: NativePipeline) -> None:
        """Take all of it back."""
        for stage in self.stages:
            stage.restore(native)
        self._passed.extend((at, Packet(data)) for _, at, data in native.take(lib.TS_AT_END))

    def count_drops(self, native: NativePipeline) -> None:
        """Count what `native`, to which this is lent, has dropped."""
        if native.c.dropped:
            native.c.dropped = 0
            for stage in self.stages:
                stage.count_drops(native)

    def statistics(self) -> list[StageStatistics]:
        """Of each stage, in the order in which packets pass them."""
        return [stage.statistics() for stage in self.stages]

    def _pass_on(self, packets: Iterable[Packet], now: float, behind: str) -> None:
        """Push `packets` into the first stage that `build` puts behind those of the kind `behind`."""
        following = _ORDER[_ORDER.index(behind) + 1 :] if behind in _ORDER else ()
        take = next((stage.push for stage in self.stages if stage.kind in following), self._arrive)
        for packet in packets:
            take(packet, now)

    def _advance(self, now: float) -> None:
        for stage in self._holding:
            stage.advance(now)

    def _arrive(self, packet: Packet, at: float) -> None:
        self._passed.append((at, packet))


def read_none(name: str) -> str:
    """A `Read` that refuses."""
    raise ShapeError(f"nobody reads '{name}' here")


def build(
    spec: ShapeSpec,
    seed: int,
    limits: Limits = DEFAULT_LIMITS,
    drops: DropCounters | None = None,
    read: Read = read_none,
) -> Pipeline:
    """The stages that `spec` orders but for its classes.

    In the order in which packets pass them: duplicate, loss, corrupt, quota, perflow, perguest, rate, delay,
    slot.

    Equal arguments and inputs give equal outputs. `seed` holds unless the specification has one of its own.
    Each stage draws from a sequence of its own, so that adding a stage changes no other's decisions. `read`
    reads a trace or a table, if one is ordered.

    Raises:
        ShapeError: the trace cannot be read, or says what `spec` says too.
    """
    seed = seed if spec.seed is None else spec.seed
    memory = Memory(limits.shaping_memory)
    trace = _load(spec, read)
    playback = Playback(trace)
    stages: list[Stage] = []
    if spec.duplicate:
        stages.append(Duplicate(_chance("duplicate", spec, seed)))
    if (loss := _loss(spec, seed)) is not None:
        stages.append(Loss(loss))
    elif trace.gives("loss"):
        stages.append(RecordedLoss(playback, random.Random(f"loss {seed}")))
    if spec.corrupt:
        bits = random.Random(f"bit {seed}")
        stages.append(Corrupt(_chance("corrupt", spec, seed), bits))
    if spec.quota:
        stages.append(Quota(spec.quota))
    if spec.perflow:
        stages.append(FlowRate(spec.perflow, memory))
    if spec.perguest:
        stages.append(GuestRate(spec.perguest, memory))
    if (service := _service(spec, trace, playback)) is not None:
        stages.append(Rate(service, _queue(spec, spec.rate or trace.rate, seed), memory))
    if spec.delay or spec.jitter:
        reorder = _chance("reorder", spec, seed) if spec.reorder else None
        if reorder is not None and spec.gap > 1:
            reorder = Gap(reorder, spec.gap)
        stages.append(Delay(_draw(spec, seed, read), memory, reorder, keep_order=spec.ordered))
    elif trace.gives("delay"):
        stages.append(RecordedDelay(playback, memory))
    if spec.slots is not None:
        stages.append(Slot(spec.slots, random.Random(f"slot {seed}"), memory))
    return Pipeline(stages, drops)


def _load(spec: ShapeSpec, read: Read) -> Trace:
    if not spec.trace:
        return Trace()
    trace = _parse("trace", spec.trace, read, parse)
    is_lossy = spec.loss or spec.pattern or spec.bursts is not None or spec.states is not None
    for word, is_ordered in (("delay", spec.delay or spec.jitter), ("loss", is_lossy)):
        if is_ordered and trace.gives(word):
            raise ShapeError(f"the {word} is that of the trace, or is ordered, not both")
    for word, value in (
        ("limit", spec.queue_packets or spec.limit_bytes),
        ("queue", spec.queue != "droptail"),
    ):
        if value and not trace.rate:
            raise ShapeError(f"{word} needs a rate, which the trace does not give")
    return trace


def _parse(word: str, name: str, read: Read, parser: Callable[[str], Parsed]) -> Parsed:
    """What the file `name` says, or one sentence."""
    try:
        text = read(name)
    except ShapeError as error:
        raise ShapeError(f"{word}: {error}") from None
    try:
        return parser(text)
    except ShapeError as error:
        raise ShapeError(f"{word}: '{name}': {error}") from None


def _loss(spec: ShapeSpec, seed: int) -> Chance | None:
    if spec.bursts is not None:
        return GilbertElliott(spec.bursts, random.Random(f"loss {seed}"))
    if spec.states is not None:
        return FourStates(spec.states, random.Random(f"loss {seed}"))
    if spec.pattern:
        return Pattern(spec.pattern)
    return _chance("loss", spec, seed) if spec.loss else None


def _service(spec: ShapeSpec, trace: Trace, playback: Playback) -> Service | None:
    if trace.opportunities:
        return Opportunities(trace)
    if trace.gives("rate"):
        return Recorded(playback)
    if not spec.rate:
        return None
    return Steady(
        spec.rate,
        overhead=spec.overhead,
        cell=spec.cell,
        cell_overhead=spec.cell_overhead,
        burst=spec.burst,
    )


def _queue(spec: ShapeSpec, rate: float, seed: int) -> Queue:
    packets, size = spec.queue_packets, spec.queue_bytes(rate)
    if spec.queue == "droptail":
        return DropTail(packets=packets, size=size)
    if spec.queue == "codel":
        return CoDel(packets=packets, size=size, target=spec.target, interval=spec.interval, ecn=spec.ecn)
    return FqCoDel(
        packets=packets,
        size=size,
        target=spec.target,
        interval=spec.interval,
        ecn=spec.ecn,
        by_guest=spec.by_guest,
        seed=seed,
    )


_QUANTILES = {"uniform": laws.uniform, "normal": laws.normal, "pareto": laws.pareto}


def _draw(spec: ShapeSpec, seed: int, read: Read) -> Draw:
    if not spec.jitter:
        return Constant(spec.delay)
    rng = random.Random(f"jitter {seed}")
    if spec.table:
        table = laws.Table(_parse("table", spec.table, read, laws.parse_table))
        return laws.Spread(spec.delay, spec.jitter, table, laws.source(spec.correlation, rng))
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
