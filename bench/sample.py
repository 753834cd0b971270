"""What all benchmarks deliver, samples, and what is made of them: medians and ratios to the best peer."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence

REFERENCES = ("slirp4netns", "pasta", "gvproxy")
"""The peers whose best one the ratios refer to."""

Case = tuple[tuple[str, int | str], ...]
"""What was measured under which circumstances, in words and numbers: (("mtu", 1500), ("flows", 8))."""


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """A figure: its unit as the tables show it, the number it is multiplied with for that, what is good."""

    unit: str
    scale: float
    higher_is_better: bool


METRICS = {
    "bits_per_second": Metric("Gbit/s", 1e-9, True),
    "cpu_per_gb": Metric("CPU s/GB", 1, False),
    "rate": Metric("1/s", 1, True),
    "p50": Metric("p50 µs", 1e6, False),
    "p99": Metric("p99 µs", 1e6, False),
    "p999": Metric("p99.9 µs", 1e6, False),
    "cpu_each": Metric("CPU µs each", 1e6, False),
    "packets_per_second": Metric("packets/s", 1, True),
    "bytes_per_flow": Metric("kB per flow", 1e-3, False),
    "slowdown": Metric("× the time without", 1, False),
    "share": Metric("% by the fast path", 100, True),
    "first_packet": Metric("ms to first packet", 1e3, False),
    "idle_rss": Metric("MB idle RSS", 1e-6, False),
    "duration": Metric("ms", 1e3, False),
    "retransmits": Metric("segments sent again", 1, False),
}
"""By the name in samples, which are in SI units: seconds, bits, bytes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One turn of one peer: the values by the names of `METRICS`."""

    benchmark: str
    case: Case
    peer: str
    round: int
    values: Mapping[str, float]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**dataclasses.asdict(self), "case": dict(self.case), "values": dict(self.values)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric of one peer in one case, over the rounds."""

    benchmark: str
    case: Case
    metric: str
    peer: str
    median: float
    minimum: float
    maximum: float
    rounds: int
    ratio: float | None
    """To the best of `REFERENCES` in the same run; None without any."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**dataclasses.asdict(self), "case": dict(self.case)}


class Medians:
    """The medians of a run, to be looked up."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._medians = {(r.benchmark, r.case, r.metric, r.peer): r.median for r in rows}

    def of(self, benchmark: str, case: Case, metric: str, peer: str) -> float | None:
        """One median, if it was measured."""
        return self._medians.get((benchmark, case, metric, peer))

    def best(self, benchmark: str, case: Case, metric: str) -> float | None:
        """That of the reference that is best in this case; None without any."""
        known = [v for peer in REFERENCES if (v := self.of(benchmark, case, metric, peer)) is not None]
        return best(known, METRICS[metric].higher_is_better)


def best(values: Sequence[float], higher: bool) -> float | None:
    """The highest or the lowest; None of nothing."""
    return (max(values) if higher else min(values)) if values else None


def ratio(value: float, reference: float | None) -> float | None:
    """`value` in units of `reference`; None without one, or of nothing."""
    return value / reference if reference else None


def summarise(samples: Sequence[Sample]) -> list[Row]:
    """The rows of a run, in the order in which benchmark, case, metric and peer first appear."""
    groups: dict[tuple[str, Case, str, str], list[float]] = {}
    for sample in samples:
        for metric, value in sample.values.items():
            groups.setdefault((sample.benchmark, sample.case, metric, sample.peer), []).append(value)
    rows = [
        Row(
            benchmark=benchmark,
            case=case,
            metric=metric,
            peer=peer,
            median=statistics.median(values),
            minimum=min(values),
            maximum=max(values),
            rounds=len(values),
            ratio=None,
        )
        for (benchmark, case, metric, peer), values in groups.items()
    ]
    medians = Medians(rows)
    return [
        dataclasses.replace(row, ratio=ratio(row.median, medians.best(row.benchmark, row.case, row.metric)))
        for row in rows
    ]
