"""The words in which shaping is ordered, as in netem: `delay 100ms loss 1% rate 10mbit limit 50`.

    delay TIME          every packet takes this much longer (us, ms, s)
    delay TIME JITTER [CORRELATION] [uniform|normal|pareto|paretonormal|table FILE] [ordered]
                        and up to JITTER more or less; but for `uniform`, which is the default, the jitter is
                        the standard deviation of the distribution. A table is one of iproute2 (NAME.dist).
                        `ordered`: no packet overtakes another
    loss PERCENT        of the packets are dropped
    loss state P13 [P31 [P32 [P23 [P14]]]]
                        by a model of four states: 1 received, 2 received within a burst, 3 lost in a burst,
                        4 lost alone (P31 is what P13 leaves of 100%; P32, P23 and P14 are 0%, 100% and 0%)
    loss gemodel P R [1-H [1-K]]
                        they are dropped in bursts: P and R are the probabilities of going over to the bad
                        state and back to the good one, 1-H and 1-K those of a loss in them (100%, 0%)
    loss pattern BITS   the packets are dropped that meet a 1 of BITS, such as 00010, over and over again
    duplicate PERCENT   of the packets are sent twice
    corrupt PERCENT     of the packets have one bit inverted
    reorder PERCENT [gap N]
                        of the packets are not delayed, and so overtake those that are; with `delay` only.
                        `gap N`: N - 1 packets at least are delayed between two that are not
    rate RATE [OVERHEAD [CELL [CELLOVERHEAD]]]
                        bits per second (bit, kbit, mbit, gbit; kibit …) or bytes (bps, kbps, mbps, gbps).
                        Each packet counts OVERHEAD bytes more (or fewer), and then fills whole cells of CELL
                        bytes, each of which counts CELLOVERHEAD bytes more: 48 and 5 for ATM
    burst SIZE          bytes that may be sent at once after a silence (a token bucket)
    trace FILE          the rate is that of a file: delivery opportunities, or rows of time, rate, delay, loss
    queue droptail|codel|fq_codel [guests] [target TIME] [interval TIME] [noecn]
                        what waits before the rate and what is dropped: the newest (the default), or by CoDel,
                        which marks packets of those who know ECN unless `noecn`, in one queue or one a flow;
                        `fq_codel guests`: one for each guest, who share the rate alike
    quota SIZE          all is dropped once so many bytes have passed
    perflow RATE        no flow (addresses, protocol and ports) gets more than this
    perguest RATE       no guest of a shared segment gets more than this
    limit SIZE          of that queue: packets (a bare number) or bytes (b, kb, mb)
    slot MIN [MAX] [packets N] [bytes SIZE]
                        packets leave together, in moments that are MIN to MAX apart, and no more of them
                        than that in each
    seed NUMBER         the same seed and the same input give the same output

Behind the percentage of `loss`, `duplicate`, `corrupt` and `reorder` a second one is its correlation: how
much each decision depends on the one before, as in `laws`. The units mean what they mean to tc(8), `bps`
being bytes per second. Numbers without a unit (tc takes times for microseconds) are refused except for
`limit`, `gap`, `packets`, `seed` and the bytes behind `rate`. The words come in any order and each once.

Different packets may be shaped differently: parts with words of their own come between `;`. A part that
begins with a match and `:` is for the packets that match, the first that does; the part without, for all
others:

    rate 10mbit; udp port 53: delay 300ms; to 10.1.0.0/16 tcp port 80-89: loss 5%

`to PREFIX` and `port` are those of the far end: where packets from the guest go to, and where those to it
come from. A fragment that does not show its ports matches none. What no part is for is not shaped.
"""

from __future__ import annotations

import dataclasses

from tunstack.link.shaping import units, words
from tunstack.link.shaping.chances import Bursts, Markov
from tunstack.link.shaping.codel import INTERVAL, TARGET
from tunstack.link.shaping.matching import Match
from tunstack.link.shaping.slots import Slots
from tunstack.link.shaping.units import ShapeError as ShapeError

MAX_DELAY = 3600.0
"""Seconds."""
MAX_RATE = 1e12
"""Bits per second."""
MAX_LIMIT = 2**32 - 1
"""Packets or bytes, as in netem's `limit`; memory is bounded by `Limits.shaping_memory` all the same."""
MAX_SEED = 2**64 - 1
MAX_GAP = 2**32 - 1
MAX_OVERHEAD = 2**16 - 1
"""Bytes."""
MAX_PATTERN = 2**16
MAX_QUOTA = 2**63 - 1
"""Bytes."""

QUEUE_SECONDS = 0.1
"""Length of the queue if no limit is given, in time at the full rate: no bufferbloat."""
QUEUE_FLOOR = 24 * 1024
"""Bytes of that queue on links so slow that 0.1 s would be a few packets: 16 of 1500 bytes."""

CODEL_PACKETS = 1000
"""Bound of the queue `codel` if no limit is given."""
FQ_CODEL_PACKETS = 10240
"""That of `fq_codel` (RFC 8290 5.2.1)."""

PROBABILITIES = ("loss", "duplicate", "corrupt", "reorder")
"""Words whose value is one probability, in the order in which they are printed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShapeSpec:
    """What one direction of a link does to packets. `ShapeSpec.parse(str(spec)) == spec`.

    Attributes:
        delay: seconds.
        jitter: by how much it varies, seconds: at most, or the standard deviation.
        correlation: of the jitter of each packet with that of the one before, 0..1.
        distribution: of the jitter: "uniform", "normal", "pareto" or "paretonormal".
        table: a file with a distribution in the place of these; it is read by who builds the pipeline.
        ordered: no packet overtakes another for its jitter.
        loss: probability, 0..1; so `duplicate`, `corrupt` and `reorder`.
        loss_correlation: of each decision with the one before, 0..1; so those of the others.
        bursts: losses in bursts in place of these.
        states: losses by the model of four states in place of these.
        gap: one more than the packets that are delayed at least between two that `reorder` chooses.
        pattern: of losses in place of these: a text of 0 and 1, over and over again.
        rate: bits per second, 0 for no limit.
        overhead: bytes that each packet counts more than it has, for the rate; may be negative.
        cell: bytes of the cells in which packets are sent, 0 for none.
        cell_overhead: bytes that each cell counts more; may be negative.
        burst: bytes that may be sent at once after a silence.
        trace: a file in place of `rate`; it is read by who builds the pipeline.
        queue: "droptail", "codel" or "fq_codel".
        target: seconds that CoDel lets packets wait.
        interval: seconds after which it acts, a long round trip.
        ecn: CoDel marks in place of dropping, where the sender knows that.
        by_guest: "fq_codel" has a queue for each guest, and not for each flow.
        limit_packets: bound of the queue before the rate.
        limit_bytes: the same in bytes. At most one of the two; None and None mean 0.1 s, at least 24 KiB, for
            "droptail", and 1000 or 10240 packets for the others.
        slots: moments in which packets leave together.
        quota: bytes after which all is dropped, 0 for no limit.
        perflow: bits per second that a flow has at the most, 0 for no limit.
        perguest: the same for a guest.
        classes: what is done in the place of all this to packets that match, the first that does.
        seed: of all random decisions; None leaves it to who builds the pipeline.
    """

    delay: float = 0.0
    jitter: float = 0.0
    correlation: float = 0.0
    distribution: str = "uniform"
    table: str = ""
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
    pattern: str = ""
    rate: float = 0.0
    overhead: int = 0
    cell: int = 0
    cell_overhead: int = 0
    burst: int = 0
    trace: str = ""
    queue: str = "droptail"
    target: float = TARGET
    interval: float = INTERVAL
    ecn: bool = True
    by_guest: bool = False
    limit_packets: int | None = None
    limit_bytes: int | None = None
    slots: Slots | None = None
    quota: int = 0
    perflow: float = 0.0
    perguest: float = 0.0
    seed: int | None = None
    classes: tuple[tuple[Match, ShapeSpec], ...] = ()

    def __post_init__(self) -> None:
        """Raises `ShapeError` for values out of range, or that make no sense together."""
        self._check_delay()
        for word in PROBABILITIES:
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
        self._check_rate()
        self._check_queue()
        if self.slots is not None:
            self.slots.check(MAX_DELAY, MAX_LIMIT)
        if not 0 <= self.quota <= MAX_QUOTA:
            raise ShapeError(f"quota is between 1b and {MAX_QUOTA}b")
        for word in ("perflow", "perguest"):
            if getattr(self, word) and not 1 <= getattr(self, word) <= MAX_RATE:
                raise ShapeError(f"{word} is between 1bit and 1tbit a second")
        if any(spec.classes for _, spec in self.classes):
            raise ShapeError("there are no parts within a part")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise ShapeError(f"seed is between 0 and {MAX_SEED}")

    def _check_delay(self) -> None:
        if not 0 <= self.delay <= MAX_DELAY:
            raise ShapeError(f"delay is at most {MAX_DELAY:.0f}s and not negative")
        if not 0 <= self.jitter <= MAX_DELAY:
            raise ShapeError(f"the jitter of a delay is at most {MAX_DELAY:.0f}s and not negative")
        if self.distribution not in words.DISTRIBUTIONS:
            raise ShapeError(f"the jitter of a delay is {words.one_of(words.DISTRIBUTIONS)}")
        if self.distribution != "uniform" and not self.jitter:
            raise ShapeError(
                f"a {self.distribution} delay needs a jitter: it is the spread of the distribution"
            )
        if self.table and self.distribution != "uniform":
            raise ShapeError("the distribution of a delay has a name or a table, not both")
        if (self.correlation or self.ordered or self.table) and not self.jitter:
            what = "correlated" if self.correlation else "ordered" if self.ordered else "from a table"
            raise ShapeError(f"a delay that is {what} needs a jitter: it is the same for all packets without")
        if not 0 <= self.correlation <= 1:
            raise ShapeError("the correlation of a delay is between 0% and 100%")

    def _check_models(self) -> None:
        models = [model for model in (self.bursts, self.states) if model is not None]
        if len(models) + bool(self.loss) + bool(self.pattern) > 1:
            raise ShapeError("loss is either a percentage or a model, and one model")
        for model in models:
            name = "gemodel" if isinstance(model, Bursts) else "state"
            if not all(0 <= probability <= 1 for probability in dataclasses.astuple(model)):
                raise ShapeError(f"loss {name}: a probability is between 0% and 100%")
        states = self.states
        if states is not None and max(states.p13 + states.p14, states.p31 + states.p32) > 1 + 1e-9:
            raise ShapeError("loss state: P13 and P14, and P31 and P32, are 100% together at the most")
        if len(self.pattern) > MAX_PATTERN or set(self.pattern) - {"0", "1"}:
            raise ShapeError(f"loss pattern: at most {MAX_PATTERN} digits, all of them 0 or 1")

    def _check_rate(self) -> None:
        if self.rate and not 1 <= self.rate <= MAX_RATE:
            raise ShapeError("rate is between 1bit and 1tbit a second")
        if self.rate and self.trace:
            raise ShapeError("the rate is that of the trace, or a number, not both")
        if (self.overhead or self.cell or self.cell_overhead or self.burst) and not self.rate:
            raise ShapeError("overhead, cells and a burst need a rate in numbers")
        if max(abs(self.overhead), abs(self.cell_overhead), self.cell) > MAX_OVERHEAD or self.cell < 0:
            raise ShapeError(f"rate: overheads and cells are of {MAX_OVERHEAD} bytes at most")
        if self.cell_overhead and not self.cell:
            raise ShapeError("rate: an overhead of cells needs a size of cells")
        if self.cell and self.cell + self.cell_overhead < 1:
            raise ShapeError("rate: a cell with its overhead has one byte at least")
        if not 0 <= self.burst <= MAX_LIMIT:
            raise ShapeError(f"burst is between 1b and {MAX_LIMIT}b")

    def _check_queue(self) -> None:
        limits = [limit for limit in (self.limit_packets, self.limit_bytes) if limit is not None]
        if limits and not (self.rate or self.trace):
            raise ShapeError("limit needs a rate: it is the length of the queue before it")
        if len(limits) > 1:
            raise ShapeError("limit is in packets or in bytes, not both")
        if limits and not 1 <= limits[0] <= MAX_LIMIT:
            raise ShapeError(f"limit is between 1 and {MAX_LIMIT}")
        if self.queue not in words.QUEUES:
            raise ShapeError(f"the queue is {words.one_of(words.QUEUES)}")
        if self.queue != "droptail" and not (self.rate or self.trace):
            raise ShapeError("queue needs a rate: it is what waits before it")
        if self.queue == "droptail" and (self.target, self.interval, self.ecn) != (TARGET, INTERVAL, True):
            raise ShapeError("target, interval and noecn are of the queues codel and fq_codel")
        if self.by_guest and self.queue != "fq_codel":
            raise ShapeError("guests is of the queue fq_codel")
        if not (0 < self.target <= MAX_DELAY and 0 < self.interval <= MAX_DELAY):
            raise ShapeError(f"queue: target and interval are more than 0s and at most {MAX_DELAY:.0f}s")

    @classmethod
    def parse(cls, text: str) -> ShapeSpec:
        """Read the words; `ShapeError` says in one sentence what is wrong with them."""
        default, parts = words.split(text)
        fields = words.parse(default) if default or not parts else {}
        return cls(**fields, classes=tuple((match, cls(**words.parse(part))) for match, part in parts))

    def __str__(self) -> str:
        own = " ".join([*self._delay_words(), *self._loss_words(), *self._rate_words()])
        parts = [f"{match}: {spec}" for match, spec in self.classes]
        return "; ".join([own, *parts] if own else parts) or "delay 0s"

    def _delay_words(self) -> list[str]:
        text = []
        if self.delay or self.jitter:
            text.append(f"delay {units.seconds(self.delay)}")
        if self.jitter:
            text.append(units.seconds(self.jitter))
            if self.correlation:
                text.append(units.percentage(self.correlation))
            if self.distribution != "uniform":
                text.append(self.distribution)
            if self.table:
                text.append(f"table {self.table}")
            if self.ordered:
                text.append("ordered")
        return text

    def _loss_words(self) -> list[str]:
        text = []
        if self.bursts is not None:
            text += ["loss gemodel", *map(units.percentage, dataclasses.astuple(self.bursts))]
        if self.states is not None:
            text += ["loss state", *map(units.percentage, dataclasses.astuple(self.states))]
        if self.pattern:
            text.append(f"loss pattern {self.pattern}")
        for word in PROBABILITIES:
            if value := getattr(self, word):
                text.append(f"{word} {units.percentage(value)}")
                if correlation := getattr(self, f"{word}_correlation"):
                    text.append(units.percentage(correlation))
        if self.gap > 1:
            text.append(f"gap {self.gap}")
        return text

    def _rate_words(self) -> list[str]:
        text = []
        if self.rate:
            text.append(f"rate {units.bits(self.rate)}")
            extra = [self.overhead, self.cell, self.cell_overhead]
            while extra and not extra[-1]:
                extra.pop()
            text += map(str, extra)
        if self.burst:
            text.append(f"burst {self.burst}b")
        if self.trace:
            text.append(f"trace {self.trace}")
        if self.queue != "droptail":
            text.append(f"queue {self.queue}")
            if self.by_guest:
                text.append("guests")
            if self.target != TARGET:
                text.append(f"target {units.seconds(self.target)}")
            if self.interval != INTERVAL:
                text.append(f"interval {units.seconds(self.interval)}")
            if not self.ecn:
                text.append("noecn")
        if self.limit_packets is not None:
            text.append(f"limit {self.limit_packets}")
        if self.limit_bytes is not None:
            text.append(f"limit {self.limit_bytes}b")
        if self.slots is not None:
            text.append(f"slot {self.slots}")
        if self.quota:
            text.append(f"quota {self.quota}b")
        if self.perflow:
            text.append(f"perflow {units.bits(self.perflow)}")
        if self.perguest:
            text.append(f"perguest {units.bits(self.perguest)}")
        if self.seed is not None:
            text.append(f"seed {self.seed}")
        return text

    @property
    def queue_packets(self) -> int | None:
        """The bound of the queue in packets, if it has one."""
        if self.limit_packets is None and self.limit_bytes is None:
            return {"codel": CODEL_PACKETS, "fq_codel": FQ_CODEL_PACKETS}.get(self.queue)
        return self.limit_packets

    def queue_bytes(self, rate: float) -> int | None:
        """The bound of the queue in bytes before a link of `rate` bits per second, if it has one.

        Every queue has a bound in packets or in bytes.
        """
        if self.limit_bytes is not None or self.queue_packets is not None:
            return self.limit_bytes
        return max(QUEUE_FLOOR, int(rate / 8 * QUEUE_SECONDS))
