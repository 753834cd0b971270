"""`python -m tunstack.demo`: shows that this machine runs tunstack, in a table, in under half a minute.

Servers of its own listen on loopback; a real guest in a network namespace of its own, made by
`tunstack run`, reaches them through the userspace stack with stock tools. Every byte is
checked at both ends. Where the kernel gives no namespace or no /dev/net/tun, the guest is a second
tunstack in this process, and the table says so. The exit status is 0 if all that was tried worked.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tunstack.demo import in_namespace


def table(reports: Iterable[dict[str, Any]]) -> None:
    """Print what was tried, what came of it, and how fast it was."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table()
    shown.add_column("tried")
    shown.add_column("with")
    shown.add_column("result")
    shown.add_column("speed", justify="right")
    shown.add_column("")
    for report in reports:
        speed = ""
        if report.get("seconds"):
            speed = f"{report['bytes'] * 8 / report['seconds'] / 1e9:.2f} Gbit/s"
        shown.add_row(
            report["what"],
            report.get("with", ""),
            escape(report["result"]),
            speed,
            "[green]ok[/]" if report["ok"] else "[red]failed[/]",
        )
    # A pipe has no width of its own; cut at the usual 80 columns, results would be hard to read.
    Console(width=None if sys.stdout.isatty() else 110).print(shown)


def main() -> int:
    """Run the demonstration; returns the exit status."""
    start = time.monotonic()
    reports: list[dict[str, Any]] = []

    def tried(report: dict[str, Any]) -> None:
        reports.append(report)
        if sys.stderr.isatty():
            print(f"{report['what']}: {report['result']}", file=sys.stderr)

    why_not = in_namespace.why_not()
    if why_not is None:
        title = "The guest: a network namespace of this kernel, through `tunstack run`"
        in_namespace.demonstrate(tried)
    else:
        title = (
            f"No namespace guest here: {why_not}.\nThe guest: a second tunstack in this process, over memory"
        )
        from tunstack.demo import in_memory

        in_memory.demonstrate(tried)
    print(title)
    table(reports)
    failures = sum(not report["ok"] for report in reports)
    verdict = f"{failures} of {len(reports)} failed" if failures else f"all {len(reports)} ok"
    print(f"{verdict}, {time.monotonic() - start:.1f} s; the speeds include the checksums")
    return 1 if failures or not reports else 0


if __name__ == "__main__":
    sys.exit(main())
