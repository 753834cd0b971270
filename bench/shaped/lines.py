"""The measurements: each takes a link and gives rows of what was ordered, found, and allowed."""

from __future__ import annotations

import bisect
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import throughput
from bench.shaped import figures
from bench.shaped.link import ShapedLink, report_of
from bench.shaped.netem import NetemLink
from tunstack.gateway.files import read
from tunstack.link.shaping import laws
from tunstack.link.shaping.pipeline import build
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.packet import Packet

AnyLink = ShapedLink | NetemLink

WAYS = ("up", "down")
ETHERNET = 14
TCP_FRAME = ETHERNET + 1500
TCP_PAYLOAD = 1448
UDP_PAYLOAD = 1400
UDP_FRAME = ETHERNET + 28 + UDP_PAYLOAD


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure.

    Attributes:
        line: which measurement.
        case: of what.
        found: the figure.
        bound: what is allowed, in words.
        met: whether it is; None if there is no bound.
        more: beside it.
        netem: what netem did in this case.
    """

    line: str
    case: str
    found: str
    bound: str = ""
    met: bool | None = None
    more: str = ""
    netem: str = ""


@dataclasses.dataclass(kw_only=True)
class Plan:
    """How much of each.

    Attributes:
        runs: of what is measured several times.
        seconds: of a transfer; the first two do not count.
        pings, datagrams, samples: how many.
        pace: datagrams a second, where many are sent.
        changes, change_seconds: of the shaping while flows run.
        curves: what is to be plotted, by name: (label, x, y).
    """

    runs: int = 3
    seconds: int = 10
    pings: int = 500
    datagrams: int = 100_000
    pace: float = 10_000.0
    samples: int = 5000
    changes: int = 1000
    change_seconds: float = 60.0
    curves: dict[str, list[tuple[str, list[float], list[float]]]] = dataclasses.field(default_factory=dict)


def rates(link: AnyLink, plan: Plan) -> Iterator[Row]:
    """iperf3 against the analytic goodput."""
    for name, rate in (("1mbit", 1e6), ("10mbit", 1e7), ("100mbit", 1e8), ("1gbit", 1e9)):
        for protocol, way in ((protocol, way) for protocol in ("TCP", "UDP") for way in WAYS):
            link.shape(**{way: f"rate {name}"})
            payload, frame = (TCP_PAYLOAD, TCP_FRAME) if protocol == "TCP" else (UDP_PAYLOAD, UDP_FRAME)
            exact = rate * payload / frame
            options = ["-t", str(plan.seconds), "--get-server-output"]
            options += ["--reverse"] if way == "down" else []
            if protocol == "UDP":
                options += ["-u", "-b", str(int(1.2 * rate)), "-l", str(UDP_PAYLOAD)]
            start = time.monotonic()
            with link.iperf3(*options) as process:
                report = report_of(process, plan.seconds + 60)
            late = time.monotonic() - start - 0.3 - plan.seconds
            goodput = _received(report, way, 2, plan.seconds)
            allowed = 0.05 if rate == 1e9 else 0.02
            off = goodput / exact - 1
            yield Row(
                line="rate",
                case=f"{name}, {protocol} {way}",
                found=f"{goodput / 1e6:.4g} of {exact / 1e6:.4g} Mbit/s ({100 * off:+.1f} %)",
                bound=f"within {100 * allowed:.0f} %",
                met=abs(off) <= allowed,
                more=f"{late:.1f} s behind the nominal end",
            )
            if rate == 1e6:
                yield Row(
                    line="end",
                    case=f"{name}, {protocol} {way}",
                    found=f"{late:.1f} s behind its nominal time",
                    bound="within 3 s",
                    met=late <= 3,
                )


def _received(report: dict[str, Any], way: str, first: float, last: float) -> float:
    """Bits per second of the intervals between two times, as the receiver counts."""
    if way == "up":
        report = report["server_output_json"]
    chosen = [entry["sum"] for entry in report["intervals"]]
    chosen = [one for one in chosen if one["start"] >= first - 0.1 and one["end"] <= last + 0.1]
    seconds = sum(one["seconds"] for one in chosen)
    return sum(one["bytes"] for one in chosen) * 8 / seconds if seconds else 0.0


def delays(link: AnyLink, plan: Plan) -> Iterator[Row]:
    """Round trips with a delay, beside those without, in turns."""
    names = {"1ms": 1.0, "10ms": 10.0, "100ms": 100.0, "300ms": 300.0}
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    waits: list[float] = []
    base = []
    for _ in range(plan.runs):
        link.shape()
        plain = link.ping(plan.pings, 0.01)
        base.append(figures.middle(plain))
        for way in WAYS:
            for name, milliseconds in names.items():
                link.shape(**{way: f"delay {name}"})
                waited, slices = link.run_delay(), link.slices()
                times = [one - base[-1] - milliseconds for one in link.ping(plan.pings, 0.01)]
                waits.append(1000 * (link.run_delay() - waited) / max(1, link.slices() - slices))
                row = (figures.middle(times), figures.percentile(times, 0.99))
                found.setdefault((name, way), []).append(row)
    yield Row(
        line="delay",
        case="not shaped",
        found=f"{figures.middle(base):.3f} ms round trip",
        more=f"the gateway waited {figures.middle(waits):.3f} ms for a processor each time, median",
    )
    for (name, way), runs in found.items():
        median, p99 = (figures.middle([run[which] for run in runs]) for which in (0, 1))
        yield Row(
            line="delay",
            case=f"{name} {way}",
            found=f"added round trip off by {median:+.3f} ms (median), {p99:+.3f} ms (p99)",
            bound="0.3 ms, 1 ms",
            met=abs(median) <= 0.3 and p99 <= 1.0,
        )


def losses(link: AnyLink, plan: Plan) -> Iterator[Row]:
    """Shares of numbered datagrams, and lengths of bursts."""
    count = plan.datagrams
    for way in WAYS:
        for name, share in (("0.1%", 0.001), ("1%", 0.01), ("5%", 0.05), ("20%", 0.2)):
            link.shape(**{way: f"loss {name}"})
            lost = count - len({row[0] for row in link.datagrams(way, count, 64, plan.pace)})
            low, high = figures.binomial_interval(count, share)
            yield Row(
                line="loss",
                case=f"{name} {way}, {count} packets",
                found=str(lost),
                bound=f"{low} to {high}",
                met=low <= lost <= high,
            )
        link.shape(**{way: "loss gemodel 1% 20%"})
        numbers = {row[0] for row in link.datagrams(way, count, 64, plan.pace)}
        bursts = _bursts(numbers, count)
        square, freedom = figures.geometric_fit(bursts, 0.2)
        bound = figures.chi_square_bound(freedom)
        yield Row(
            line="bursts",
            case=f"gemodel 1% 20% {way}, {count} packets",
            found=f"{len(bursts)} bursts, chi-square {square:.1f} ({freedom} degrees of freedom)",
            bound=f"at most {bound:.1f}",
            met=square <= bound,
        )


def _bursts(arrived: set[int], count: int) -> list[int]:
    """Lengths of the runs of numbers that did not arrive."""
    lengths, length = [], 0
    for number in range(count):
        if number not in arrived:
            length += 1
        elif length:
            lengths.append(length)
            length = 0
    return lengths


def jitters(link: AnyLink, plan: Plan) -> Iterator[Row]:
    """Times on the way against the distribution that was ordered."""
    link.shape()
    plain = figures.middle([row[1] for row in link.datagrams("up", 500, 64, 500)]) / 1e6
    quantiles = {
        "uniform": laws.uniform,
        "normal": laws.normal,
        "pareto": laws.pareto,
    }
    curves = plan.curves.setdefault("delay", [])
    for name in ("uniform", "normal", "pareto", "paretonormal"):
        link.shape(up=f"delay 60ms 10ms {name}")
        rows = link.datagrams("up", plan.samples, 64, 500)
        times = [row[1] / 1e6 - plain for row in rows]
        ordered = _cdf_of(quantiles[name]) if name in quantiles else _cdf_of_samples(name)
        distance = figures.kolmogorov_smirnov(times, ordered)
        yield Row(
            line="jitter",
            case=f"delay 60ms 10ms {name}, {len(times)} packets",
            found=f"D = {distance:.4f}",
            bound="D at most 0.05",
            met=distance <= 0.05 and len(times) == plan.samples,
        )
        steps = [(index + 1) / len(times) for index in range(len(times))]
        curves.append((name, [1000 * one for one in sorted(times)][::10], steps[::10]))


def _cdf_of(quantile: Callable[[float], float]) -> Callable[[float], float]:
    """Of 60 ms + 10 ms times the quantile, by bisection."""

    def cdf(value: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            if max(0.0, 0.06 + 0.01 * quantile(min(max(middle, 1e-15), 1 - 1e-15))) < value:
                low = middle
            else:
                high = middle
        return low

    return cdf


def _cdf_of_samples(name: str) -> Callable[[float], float]:
    """Of 100,000 draws: this one has no quantile in closed form."""
    pipeline = build(ShapeSpec.parse(f"delay 60ms 10ms {name} seed 1"), 0)
    packet = Packet(b"x")
    for _ in range(100_000):
        pipeline.push(packet, 0.0)
    times = sorted(at for at, _ in pipeline.pop_timed(1e6))
    return lambda value: bisect.bisect_right(times, value) / len(times)


def others(link: AnyLink, plan: Plan) -> Iterator[Row]:
    """Duplicates, reordering, corruption."""
    count = max(2000, plan.datagrams // 5)
    for way in WAYS:
        link.shape(**{way: "duplicate 2%"})
        rows = link.datagrams(way, count, 64, plan.pace / 2)
        low, high = figures.binomial_interval(count, 0.02)
        yield Row(
            line="duplicate",
            case=f"2% {way}, {count} packets",
            found=str(len(rows) - count),
            bound=f"{low} to {high}",
            met=low <= len(rows) - count <= high,
        )
        link.shape(**{way: "delay 20ms reorder 5%"})
        rows = link.datagrams(way, count, 64, plan.pace / 5)
        early = sum(row[1] < 10_000 for row in rows)
        low, high = figures.binomial_interval(count, 0.05)
        yield Row(
            line="reorder",
            case=f"5% {way}, {count} packets",
            found=str(early),
            bound=f"{low} to {high}",
            met=low <= early <= high and len(rows) == count,
        )
    link.shape(down="corrupt 3%")
    found = link.frames(count, 400, plan.pace / 2)
    low, high = figures.binomial_interval(count, 0.03)
    yield Row(
        line="corrupt",
        case=f"3% down, {count} packets",
        found=f"{found['broken']} frames arrived broken of {found['frames']}",
        bound=f"{low} to {high}",
        met=low <= found["broken"] <= high,
        more=f"{found['delivered']} datagrams were delivered",
    )


def queues(link: AnyLink, plan: Plan) -> Iterator[Row]:
    """A ping beside a bulk flow at 10 Mbit/s."""
    for queue in ("fq_codel", "codel", "droptail"):
        link.shape()
        base = figures.percentile(link.ping(plan.pings, 0.01), 0.5)
        link.shape(down=f"rate 10mbit queue {queue}")
        count = int(plan.seconds * 90)
        with link.iperf3("-t", str(plan.seconds + 2), "--reverse") as process:
            time.sleep(1.5)
            times = link.ping(count, 0.01)
            report = report_of(process, plan.seconds + 60)
        goodput = report["end"]["sum_received"]["bits_per_second"]
        p99 = figures.percentile(times, 0.99) - base if times else math.inf
        yield Row(
            line="queue",
            case=f"{queue} at 10 Mbit/s",
            found=f"ping p99 {p99:.1f} ms above base",
            bound="20 ms" if queue == "fq_codel" else "",
            met=p99 <= 20 if queue == "fq_codel" else None,
            more=f"the flow got {goodput / 1e6:.2f} Mbit/s",
        )


def traces(link: AnyLink, plan: Plan) -> Iterator[Row]:
    """What arrives of a trace of opportunities, at each 100 ms, beside the same in virtual time."""
    seconds = plan.seconds
    # A link that swings between 2 and 12 Mbit/s, once in three seconds, and is silent for 300 ms of each.
    times, credit = [], 0.0
    for millisecond in range(3000):
        rate = 0.0 if millisecond % 3000 >= 2700 else 7e6 + 5e6 * math.sin(2 * math.pi * millisecond / 3000)
        credit += rate / 8000
        while credit >= 1504:
            credit -= 1504
            times.append(millisecond)
    with tempfile.TemporaryDirectory(prefix="bench-trace-") as folder:
        file = Path(folder, "swing")
        file.write_text("\n".join(map(str, [*times, 3000])) + "\n")
        size, offered = 1462, 1250.0
        words = f"trace {file} limit 100"
        link.shape(up=words)
        rows = link.datagrams("up", int(offered * seconds), size, offered)
        model = build(ShapeSpec.parse(words), 0, read=read)
        for number in range(int(offered * seconds)):
            model.push(Packet(bytes(size + 42)), number / offered)
        exact = [at for at, _ in model.pop_timed(1e6)]
        mean = len(times) * 1504 * 8000 / 3000
    first = exact[0]
    arrived = [row[2] + first for row in rows]
    allowed = max(2 * (size + 42), 0.005 * mean / 8)
    worst = 0.0
    marks = [mark / 10 for mark in range(1, int(seconds * 10))]
    ours, theirs = [], []
    for mark in marks:
        ours.append(sum(at <= mark for at in arrived) * (size + 42))
        theirs.append(sum(at <= mark for at in exact) * (size + 42))
        worst = max(worst, abs(ours[-1] - theirs[-1]))
    plan.curves["trace"] = [
        ("ordered", marks, [one / 1e6 for one in theirs]),
        ("on the wire", marks, [one / 1e6 for one in ours]),
    ]
    yield Row(
        line="trace",
        case=f"2 to 12 Mbit/s, {seconds} s",
        found=f"cumulative bytes off by {worst:.0f} at the most",
        bound=f"{allowed:.0f} bytes",
        met=worst <= allowed,
    )


def impaired(link: AnyLink, plan: Plan) -> Iterator[Row]:
    """TCP over a bad link: whole, and as fast as the formulas say."""
    rtt, loss, rate = 0.1, 0.02, 1e6
    segment = TCP_PAYLOAD * 8
    pftk = segment / (
        rtt * math.sqrt(2 * loss / 3)
        + 0.2 * min(1.0, 3 * math.sqrt(3 * loss / 8)) * loss * (1 + 32 * loss * loss)
    )
    most = rate * TCP_PAYLOAD / TCP_FRAME
    least = min(0.85 * most, pftk * 0.7)
    for way in WAYS:
        link.shape(**{way: "delay 100ms loss 2% rate 1mbit"})
        options = ["-t", "30", "--get-server-output", *(["--reverse"] if way == "down" else [])]
        with link.iperf3(*options) as process:
            report = report_of(process, 120)
        goodput = _received(report, way, 2, 30)
        yield Row(
            line="impaired",
            case=f"delay 100ms loss 2% rate 1mbit {way}",
            found=f"{goodput / 1e6:.3f} Mbit/s",
            bound=f"{least / 1e6:.2f} to {most / 1e6:.2f} Mbit/s",
            met=least <= goodput <= most * 1.01,
        )


def curves_of_loss(link: AnyLink, plan: Plan) -> Iterator[Row]:
    """Throughput of CUBIC against loss, at 20 Mbit/s and 40 ms."""
    rtt, rate = 0.04, 2e7
    shares = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)
    found, formula = [], []
    for share in shares:
        link.shape(down=f"delay 40ms loss {100 * share:g}% rate 20mbit limit 100")
        with link.iperf3("-t", str(2 * plan.seconds), "--reverse", "-O", "2") as process:
            report = report_of(process, 2 * plan.seconds + 60)
        goodput = report["end"]["sum_received"]["bits_per_second"]
        window = max(1.054 * (rtt / share) ** 0.75, 1.22 / math.sqrt(share))
        expected = min(rate * TCP_PAYLOAD / TCP_FRAME, window * TCP_PAYLOAD * 8 / rtt)
        found.append(goodput / 1e6)
        formula.append(expected / 1e6)
        yield Row(
            line="loss curve",
            case=f"loss {100 * share:g}% down, 40 ms, 20 Mbit/s",
            found=f"{goodput / 1e6:.2f} Mbit/s, {goodput / expected:.2f} of the formula",
        )
    plan.curves["loss"] = [
        ("CUBIC by formula", [100 * share for share in shares], formula),
        ("measured", [100 * share for share in shares], found),
    ]


def switched_off(link: AnyLink, plan: Plan) -> Iterator[Row]:
    """Throughput before and after, and what an idle shaper costs."""
    ratios: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(max(3, plan.runs)):
        for way in WAYS:
            link.shape()
            before = throughput.transfer(2, link, 4, 1, way)["bits_per_second"]
            link.shape(up="delay 5ms rate 50mbit", down="delay 5ms rate 50mbit")
            throughput.transfer(1, link, 4, 1, way)
            link.shape()
            after = throughput.transfer(2, link, 4, 1, way)["bits_per_second"]
            ratios[way].append(after / before)
    for way in WAYS:
        ratio = figures.middle(ratios[way])
        yield Row(
            line="off again",
            case=f"one flow {way}",
            found=f"{ratio:.2f} of the throughput before ({min(ratios[way]):.2f}-{max(ratios[way]):.2f})",
            bound="at least 0.9",
            met=ratio >= 0.9,
        )
    used = []
    for words in (None, "delay 5ms loss 1% rate 50mbit queue fq_codel"):
        link.shape(up=words, down=words)
        time.sleep(1.5)
        start = _cpu(link)
        time.sleep(10)
        used.append(_cpu(link) - start)
    yield Row(
        line="idle",
        case="10 s without traffic",
        found=f"{1000 * used[1]:.0f} ms of CPU shaped, {1000 * used[0]:.0f} ms not",
        bound="at most 20 ms more",
        met=used[1] - used[0] <= 0.02,
    )


def _cpu(link: AnyLink) -> float:
    """Seconds that the gateway ran, to the nanosecond."""
    return int(Path(f"/proc/{link.pid}/schedstat").read_text().split()[0]) / 1e9


CHANGES = (
    {"up": "delay 2ms", "down": "delay 2ms"},
    {"up": "rate 300mbit limit 20000", "down": "rate 200mbit limit 20000"},
    {"down": "delay 1ms 500us duplicate 1%"},
    {"up": "rate 200mbit burst 100kb limit 20000 delay 3ms"},
    {"up": None, "down": None},
    {"down": "rate 250mbit queue fq_codel target 3600s limit 20000"},
    {"up": "slot 1ms"},
)
"""None of them loses a packet."""


def changes(link: AnyLink, plan: Plan) -> Iterator[Row]:
    """Changes while eight flows run either way."""
    count, seconds = plan.changes, plan.change_seconds
    link.shape()
    done = 0
    with link.iperf3("-t", str(math.ceil(seconds) + 2), "-P", "8", "--bidir") as process:
        time.sleep(1)
        start = time.monotonic()
        while done < count:
            link.shape(**CHANGES[done % len(CHANGES)])
            done += 1
            time.sleep(max(0.0, start + done * seconds / count - time.monotonic()))
        took = time.monotonic() - start
        link.shape()
        report = report_of(process, seconds + 120)
    moved = report["end"]["sum_sent"]["bytes"] + report["end"]["sum_received_bidir_reverse"]["bytes"]
    yield Row(
        line="changes",
        case=f"{done} in {took:.0f} s, 8 flows each way",
        found=f"{moved / 1e9:.1f} GB went through",
        bound="no exception, and no packet lost",
        met=link.alive,
        more="what was dropped is told at the end of the gateway",
    )


LINES: dict[str, Callable[[AnyLink, Plan], Iterator[Row]]] = {
    "rate": rates,
    "delay": delays,
    "loss": losses,
    "jitter": jitters,
    "others": others,
    "queue": queues,
    "trace": traces,
    "impaired": impaired,
    "curve": curves_of_loss,
    "off": switched_off,
    "changes": changes,
}
