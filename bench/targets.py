"""What the figures are to reach, and whether they do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from bench.framed import TAP, UP
from bench.routes import TCP
from bench.sample import METRICS, Case, Medians, Row
from bench.startup import IMPORT

OWN = "tunstack"
BEST = "the best peer"


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A bound of one metric in some cases of one benchmark.

    Attributes:
        where: values of the case for which it holds; a word of the case that is not named may be any.
        bound: a factor of the reference's median, or, without a reference, the value itself.
        reference: a peer, or `BEST`; or what of the case is exchanged to get tunstack's own other case.
    """

    benchmark: str
    metric: str
    bound: float
    reference: str | tuple[str, int | str] | None
    where: Mapping[str, Sequence[int | str]] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        metric = METRICS[self.metric]
        sign = "≥" if metric.higher_is_better else "≤"
        if self.reference is None:
            return f"{sign} {self.bound * metric.scale:g} {metric.unit}"
        what = self.reference if isinstance(self.reference, str) else "{} {}".format(*self.reference)
        return f"{sign} {self.bound:g} × {what}"

    def applies(self, benchmark: str, case: Case, metric: str) -> bool:
        """Whether it bounds this metric in this case."""
        words = dict(case)
        if isinstance(self.reference, tuple) and words.get(self.reference[0]) == self.reference[1]:
            return False
        return (benchmark, metric) == (self.benchmark, self.metric) and all(
            words.get(name) in allowed for name, allowed in self.where.items()
        )

    def limit(self, medians: Medians, case: Case) -> float | None:
        """The value that the median is to reach in this case; None if what it refers to was not measured."""
        if self.reference is None:
            return self.bound
        if isinstance(self.reference, tuple):
            name, value = self.reference
            other = tuple((key, value if key == name else own) for key, own in case)
            found = medians.of(self.benchmark, other, self.metric, OWN)
        elif self.reference == BEST:
            found = medians.best(self.benchmark, case, self.metric)
        else:
            found = medians.of(self.benchmark, case, self.metric, self.reference)
        return None if found is None else self.bound * found


_ONE = {"flows": [1], "mtu": [1500]}
_LARGE = {"flows": [1], "mtu": [65520]}
_FEW: dict[str, Sequence[int | str]] = {"connections": [1, 32]}
_BETWEEN: dict[str, Sequence[int | str]] = {"direction": ["up", "down"]}
TARGETS = (
    Target("throughput", "bits_per_second", 4, BEST, _ONE),
    Target("throughput", "bits_per_second", 0.6, "veth", _ONE),
    Target("throughput", "bits_per_second", 1, "pasta", _LARGE),
    Target("throughput", "bits_per_second", 2, "slirp4netns", _LARGE),
    Target("throughput", "bits_per_second", 0.9, ("flows", 1), {"flows": [8, 64]}),
    Target("throughput", "bits_per_second", 0.9, ("IPv", 4), {"IPv": [6]}),
    Target("throughput", "cpu_per_gb", 0.5, BEST),
    Target("share", "share", 0.99, None, {"of": ["throughput", "framed"]}),
    Target("requests", "rate", 1, BEST, _FEW),
    Target("requests", "p99", 1, BEST, _FEW),
    Target("connects", "rate", 1, BEST, _FEW),
    Target("udp", "packets_per_second", 1, BEST),
    Target("framed", "bits_per_second", 2, "slirp4netns", _BETWEEN),
    Target("framed", "bits_per_second", 0.2, TAP, _BETWEEN),
    Target("framed", "bits_per_second", 0.5, UP, {"direction": ["across"]}),
    Target("agent", "bits_per_second", 0.2, TAP, {"link": ["plain"]}),
    Target("agent", "bits_per_second", 0.4, TAP, {"link": ["headers"]}),
    Target("agent", "bits_per_second", 3, "gvproxy"),
    Target("agent", "cpu_per_gb", 5, None, {"link": ["plain"]}),
    Target("tun", "bits_per_second", 0.9, TAP),
    Target("routes", "bits_per_second", 0.9, TCP),
    Target("flows", "bytes_per_flow", 12e3, None, {"idle flows": [10_000]}),
    Target("flows", "slowdown", 1.3, None, {"idle flows": [10_000]}),
    Target("startup", "idle_rss", 40e6, None),
    Target("startup", "duration", 1.6, IMPORT),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """One target in one case."""

    target: Target
    case: Case
    value: float
    limit: float

    @property
    def met(self) -> bool:
        """Whether the value reaches the limit."""
        if METRICS[self.target.metric].higher_is_better:
            return self.value >= self.limit
        return self.value <= self.limit

    @property
    def factor(self) -> float:
        """The value in the terms of the target's bound: what stands there where 4 was wanted."""
        return self.value / self.limit * self.target.bound if self.limit else float("inf")

    def __str__(self) -> str:
        if self.met:
            return f"✓ {self.target}"
        scale = METRICS[self.target.metric].scale if self.target.reference is None else 1
        return f"**✗ {self.target}: {self.factor * scale:.3g}**"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "benchmark": self.target.benchmark,
            "metric": self.target.metric,
            "case": dict(self.case),
            "target": str(self.target),
            "value": self.value,
            "limit": self.limit,
            "met": self.met,
        }


def judge(rows: Iterable[Row], targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """What can be said about `targets` from the rows of a run, in the order of the targets."""
    rows = list(rows)
    medians = Medians(rows)
    verdicts = []
    for target in targets:
        for row in rows:
            if row.peer != OWN or not target.applies(row.benchmark, row.case, row.metric):
                continue
            limit = target.limit(medians, row.case)
            if limit is not None:
                verdicts.append(Verdict(target, row.case, row.median, limit))
    return verdicts
