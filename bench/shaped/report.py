"""Runs the measurements and writes what they found: a table, JSON, and plots."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report import machine
from bench.sandbox import BenchError
from bench.shaped.lines import LINES, AnyLink, Plan, Row
from bench.shaped.link import ShapedLink
from bench.shaped.netem import NetemLink

AXES = {
    "delay": ("delay on the wire [ms]", "share of packets that took less", None),
    "trace": ("time [s]", "bytes delivered [MB]", None),
    "loss": ("loss [%]", "goodput [Mbit/s]", "log"),
}
NETEM_LINES = ("rate", "delay", "loss", "jitter", "others", "impaired", "curve")
"""What netem has words for."""
_DROPPED = re.compile(r"dropped: (.*)")


def run(
    names: Sequence[str], plan: Plan, out: Path | None, tell: Callable[[str], None], *, netem: bool = False
) -> tuple[str, bool]:
    """Measure `names`; returns the report, and whether every bound was met. Writes into `out` as it goes.

    With `netem` each of those that it can do is measured with the kernel's netem right after; what that does
    stands beside ours, and is not judged.
    """
    rows: list[Row] = []
    errors: list[str] = []
    about = machine(("tunstack",))
    for name in names:
        ours = _measure(name, ShapedLink, plan, errors, tell)
        if netem and name in NETEM_LINES:
            theirs = _measure(name, NetemLink, dataclasses.replace(plan, curves={}), errors, tell)
            ours = beside(ours, theirs)
        rows += ours
        if out is not None:
            _write(out, rows, errors, about, plan)
    met = not errors and all(row.met is not False for row in rows)
    return render(rows, errors, about, plan), met


def _measure(
    name: str, make: type[AnyLink], plan: Plan, errors: list[str], tell: Callable[[str], None]
) -> list[Row]:
    """The rows of one measurement with a link of its own."""
    rows: list[Row] = []
    start = time.monotonic()
    who = make.__name__.removesuffix("Link").lower()
    link = make()
    with contextlib.closing(link):
        try:
            for row in LINES[name](link, plan):
                rows.append(row)
                mark = {True: "met", False: "MISSED", None: ""}[row.met]
                tell(f"bench: {who}: {row.line}, {row.case}: {row.found} [{row.bound}] {mark}")
        except BenchError as error:
            errors.append(f"{name}: {error}")
            tell(f"bench: {name}: {error}")
        except Exception as error:  # the other measurements still have something to say
            traceback.print_exc()
            errors.append(f"{name}: {type(error).__name__}: {error}")
        said = link.close()
    if "Traceback" in said:
        errors.append(f"{name}: the gateway failed: {said[-300:]}")
    if name == "changes":
        rows.append(_lost(said))
    tell(f"bench: {who}: {name} took {time.monotonic() - start:.0f} s")
    return rows


def beside(ours: Sequence[Row], theirs: Sequence[Row]) -> list[Row]:
    """`ours`, each with what was found in the same case of `theirs`."""
    found = {(row.line, row.case): row for row in theirs}
    return [
        dataclasses.replace(row, netem=other.found + (" (outside)" if other.met is False else ""))
        if (other := found.get((row.line, row.case)))
        else row
        for row in ours
    ]


def _lost(said: str) -> Row:
    """What the gateway says at its end that it dropped."""
    found = _DROPPED.findall(said)
    causes = dict(part.rsplit(" ", 1) for part in found[-1].split(", ")) if found else {}
    bad = {cause: count for cause, count in causes.items() if "shaping" in cause or "full" in cause}
    return Row(
        line="changes",
        case="packets dropped by the link",
        found=", ".join(f"{cause} {count}" for cause, count in sorted(bad.items())) or "none",
        bound="none",
        met=not bad and "Traceback" not in said,
        more=", ".join(f"{cause} {count}" for cause, count in sorted(causes.items())),
    )


def render(rows: Sequence[Row], errors: Sequence[str], about: Mapping[str, Any], plan: Plan) -> str:
    """The report as Markdown."""
    lines = ["# Shaping: what was ordered and what was found", ""]
    lines += [
        "Written by `make bench-shaping`: a real Linux guest behind a TAP of `tunstack attach`, MTU 1500, in",
        "real time. The analytic goodput counts all headers of the frame.",
        "",
        "; ".join(f"{key}: {value}" for key, value in about.items()),
        "",
    ]
    is_compared = any(row.netem for row in rows)
    heads = ["line", "case", "found", "bound", "met", *(["netem found"] if is_compared else []), ""]
    lines += ["| " + " | ".join(heads).rstrip() + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        compared = [row.netem] if is_compared else []
        cells = [row.line, row.case, row.found, row.bound, met, *compared, row.more]
        lines.append("| " + " | ".join(cells) + " |")
    for name in plan.curves:
        lines += ["", f"![{name}](shaping-{name}.svg)"]
    lines += ["", *(f"- failed: {error}" for error in errors)]
    return "\n".join(lines).rstrip() + "\n"


def _write(
    out: Path, rows: Sequence[Row], errors: Sequence[str], about: Mapping[str, Any], plan: Plan
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "shaping.md").write_text(render(rows, errors, about, plan))
    document = {
        "machine": about,
        "rows": [dataclasses.asdict(row) for row in rows],
        "errors": list(errors),
        "curves": plan.curves,
    }
    (out / "shaping.json").write_text(json.dumps(document, indent=1) + "\n")
    for name, curves in plan.curves.items():
        _plot(out / f"shaping-{name}.svg", name, curves)


def _plot(file: Path, name: str, curves: Sequence[tuple[str, list[float], list[float]]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    settings: dict[Any, Any] = {"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 8}
    with matplotlib.rc_context(settings):
        figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
        for label, x, y in curves:
            axes.plot(x, y, label=label, linewidth=1.2, marker="o" if len(x) < 20 else None, markersize=3)
        across, up, scale = AXES[name]
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        if scale is not None:
            axes.set_xscale(scale)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)
