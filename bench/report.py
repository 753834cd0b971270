"""What comes out of a run: a description of the machine, and the tables as Markdown."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.peers import version
from bench.sample import METRICS, Row, Sample, summarise
from bench.session import Plan, words
from bench.targets import OWN, TARGETS, Verdict, judge

BUSY = 0.7
"""Load average (1 min) from which others disturb. Peers that lose packets for want of a core suffer
most: pasta has been seen to fall to a fiftieth."""
UNSHOWN = {"retransmits"}
"""Metrics that are in the JSON only."""


@dataclasses.dataclass(kw_only=True)
class Document:
    """All of a run.

    Attributes:
        machine: see `machine`.
        plans: by the name of the benchmark.
        errors: a sentence for each turn or peer that failed.
        notes: a sentence for each peer that is missing, or cannot do something.
        plots: file names of plots, relative to the table.
    """

    machine: Mapping[str, Any]
    plans: dict[str, Plan]
    samples: Sequence[Sample]
    errors: Sequence[str]
    notes: Sequence[str]
    plots: Sequence[str] = ()

    @property
    def rows(self) -> list[Row]:
        """Medians and ratios."""
        return summarise(self.samples)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        rows = self.rows
        return {
            "machine": self.machine,
            "plans": {name: dataclasses.asdict(plan) for name, plan in self.plans.items()},
            "verdicts": [verdict.as_dict() for verdict in judge(rows)],
            "summary": [row.as_dict() for row in rows],
            "samples": [sample.as_dict() for sample in self.samples],
            "errors": list(self.errors),
            "notes": list(self.notes),
        }

    def as_json(self) -> str:
        """`as_dict` as text, a line a sample."""
        parts = []
        for key, value in self.as_dict().items():
            text = json.dumps(value)
            if isinstance(value, list) and value:
                text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
            parts.append(f" {json.dumps(key)}: {text}")
        return "{\n" + ",\n".join(parts) + "\n}\n"


def machine(peers: Iterable[str]) -> dict[str, Any]:
    """The machine and the versions that a number means something for."""
    model = "not known"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "iperf3": _second_word("iperf3", "--version"),
        "load_before": round(os.getloadavg()[0], 2),
        "peers": {name: version(name) for name in peers},
    }


def _second_word(*command: str) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    except OSError:
        return "not installed"
    return said[1] if len(said) > 1 else "not known"


def render(document: Document) -> str:
    """The document as Markdown, for a terminal or a file."""
    rows = document.rows
    verdicts = judge(rows)
    lines = ["# Results", "", *_about(document), ""]
    if verdicts:
        lines += ["## Targets", "", *_targets(verdicts), ""]
    # What is no benchmark of its own, the share of the fast path, comes last.
    for benchmark in sorted(
        dict.fromkeys(row.benchmark for row in rows), key=lambda name: name not in document.plans
    ):
        lines += [f"## {benchmark}", ""]
        if plan := document.plans.get(benchmark):
            lines += [f"{plan.rounds} interleaved rounds of {plan.seconds:g} s.", ""]
        lines += [
            f"![{plot.removesuffix('.svg')}]({plot})\n"
            for plot in document.plots
            if plot.startswith(f"{benchmark}-")
        ]
        own = [row for row in rows if row.benchmark == benchmark]
        for metric in dict.fromkeys(row.metric for row in own if row.metric not in UNSHOWN):
            lines += [*_table([row for row in own if row.metric == metric], verdicts), ""]
    if document.errors:
        lines += ["## What failed", "", *(f"- failed: {error}" for error in document.errors), ""]
    return "\n".join(lines)


def _about(document: Document) -> list[str]:
    about = document.machine
    busy = about["load_before"] > BUSY
    return [
        f"- machine: {about['cpu']}, {about['cores']} cores, {about['memory_mib']} MiB, "
        f"Linux {about['kernel']} ({about['architecture']}), {about['python']}, iperf3 {about['iperf3']}",
        "- peers: " + ", ".join(f"{name} {number}" for name, number in about["peers"].items()),
        f"- load average at the start: {about['load_before']}"
        + (" - **the machine was busy; these ratios will not hold on a quiet one**" if busy else ""),
        *(f"- {sentence}" for sentence in document.notes),
    ]


def _targets(verdicts: Sequence[Verdict]) -> list[str]:
    lines = [
        "Worst case: the median where it is nearest to missing the bound, in the bound's own terms.",
        "",
        "| benchmark | metric | where | target | met in | worst case | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for target in TARGETS:
        own = [verdict for verdict in verdicts if verdict.target is target]
        if not own:
            continue
        metric = METRICS[target.metric]
        worst = (min if metric.higher_is_better else max)(own, key=lambda verdict: verdict.factor)
        met = sum(verdict.met for verdict in own)
        where = ", ".join(f"{name} {'/'.join(map(str, values))}" for name, values in target.where.items())
        scale = metric.scale if target.reference is None else 1
        lines.append(
            f"| {target.benchmark} | {metric.unit} | {where or 'all'} | {target} | {met} of {len(own)} | "
            f"{worst.factor * scale:.3g} ({words(worst.case)}) | {'✓' if met == len(own) else '**✗**'} |"
        )
    return lines


def _table(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> list[str]:
    """One metric of one benchmark: a line a case, a column a peer."""
    metric = METRICS[rows[0].metric]
    peers = list(dict.fromkeys(row.peer for row in rows))
    keys = [name for name, _ in rows[0].case]
    cells = {(row.case, row.peer): row for row in rows}
    rounds = sorted({row.rounds for row in rows})
    turns = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    good = "higher" if metric.higher_is_better else "lower"
    lines = [
        f"**{metric.unit}**, median (least – most), rounds: {turns}, {good} is better; "
        f"ratio of {OWN} to the best peer",
        "",
        f"| {' | '.join([*keys, *peers, 'ratio', 'verdict'])} |",
        f"|{' --- |' * (len(keys) + len(peers) + 2)}",
    ]
    for case in dict.fromkeys(row.case for row in rows):
        own = cells.get((case, OWN))
        said = [
            str(verdict)
            for verdict in verdicts
            if verdict.case == case
            and (verdict.target.benchmark, verdict.target.metric) == (rows[0].benchmark, rows[0].metric)
        ]
        found = [_cell(cells.get((case, peer)), metric.scale) for peer in peers]
        ratio = "–" if own is None or own.ratio is None else f"{own.ratio:.2f}"
        values = [str(value) for _, value in case]
        lines.append(f"| {' | '.join([*values, *found, ratio, '; '.join(said)])} |")
    return lines


def _cell(row: Row | None, scale: float) -> str:
    if row is None:
        return "–"
    least, median, most = (number(value * scale) for value in (row.minimum, row.median, row.maximum))
    return median if row.rounds == 1 else f"{median} ({least} – {most})"


def number(value: float) -> str:
    """Three significant digits, thousands apart, never an exponent."""
    if value and abs(value) < 100:
        return f"{value:.3g}" if abs(value) >= 1e-4 else "0"
    return f"{value:,.0f}"
