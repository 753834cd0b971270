"""Plots of a run as SVG: groups of bars, a colour a peer, medians with the range of the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.sample import METRICS, Case, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "tunstack": "#0072b2",
    "slirp4netns": "#d55e00",
    "pasta": "#e69f00",
    "gvproxy": "#cc79a7",
    "veth": "#999999",
}
_OTHERS = "#009e73"
PANELS = {
    "throughput": ("IPv", "mtu"),
    "udp": ("IPv", "direction"),
    "requests": ("IPv",),
    "connects": ("IPv",),
    "startup": ("what",),
}
"""The words of a case that choose the panel; the others name the group in it."""
UNPLOTTED = {"retransmits", "p50", "p999", "cpu_each", "share"}


def plot(rows: Sequence[Row], folder: Path) -> list[str]:
    """Write a file for each metric of each benchmark; returns their names."""
    names = []
    for benchmark, metric in dict.fromkeys((row.benchmark, row.metric) for row in rows):
        if metric in UNPLOTTED:
            continue
        name = f"{benchmark}-{metric.replace('_', '-')}.svg"
        chosen = [row for row in rows if (row.benchmark, row.metric) == (benchmark, metric)]
        _figure(chosen, folder / name)
        names.append(name)
    return names


def _figure(rows: Sequence[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    # The same figures give the same file; letters stay letters, which is smaller.
    settings: dict[Any, Any] = {"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 8}
    with matplotlib.rc_context(settings):
        panels: dict[Case, list[Row]] = {}
        for row in rows:
            panels.setdefault(_panel(row), []).append(row)
        across = min(3, len(panels))
        down = -(-len(panels) // across)
        figure, axes = plt.subplots(
            down, across, figsize=(4.2 * across, 2.8 * down), squeeze=False, layout="constrained"
        )
        places = [place for line in axes for place in line]
        for place, (panel, own) in zip(places, panels.items(), strict=False):
            _bars(place, own)
            place.set_title(", ".join(f"{name} {value}" for name, value in panel))
        for place in places[len(panels) :]:
            place.set_visible(False)
        unit = METRICS[rows[0].metric].unit
        figure.suptitle(f"{rows[0].benchmark}: {unit}")
        handles, labels = places[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6)
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)


def _panel(row: Row) -> Case:
    return tuple(pair for pair in row.case if pair[0] in PANELS.get(row.benchmark, ()))


def _group(row: Row) -> str:
    keys = PANELS.get(row.benchmark, ())
    rest = [
        f"{value}" if isinstance(value, str) else f"{value:,}" for key, value in row.case if key not in keys
    ]
    return "\n".join(rest)


def _bars(place: Axes, rows: Sequence[Row]) -> None:
    scale = METRICS[rows[0].metric].scale
    groups = list(dict.fromkeys(_group(row) for row in rows))
    peers = list(dict.fromkeys(row.peer for row in rows))
    width = 0.8 / len(peers)
    for index, peer in enumerate(peers):
        own = [row for row in rows if row.peer == peer]
        at = [groups.index(_group(row)) + (index - (len(peers) - 1) / 2) * width for row in own]
        heights = [row.median * scale for row in own]
        ranges = [
            [(row.median - row.minimum) * scale for row in own],
            [(row.maximum - row.median) * scale for row in own],
        ]
        colour = COLOURS.get(peer, _OTHERS)
        place.bar(at, heights, width, label=peer, color=colour)
        place.errorbar(at, heights, yerr=ranges, fmt="none", ecolor="black", elinewidth=0.6)
    place.set_xticks(range(len(groups)), groups)
    place.set_ylim(bottom=0)
    place.spines[["top", "right"]].set_visible(False)
