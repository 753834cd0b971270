"""`tunstack selftest`: what this machine can do, tried for real."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from tunstack.cli import GuestCommand, end, run_trio

if TYPE_CHECKING:
    from tunstack.selftest.report import Report


@click.command(cls=GuestCommand, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Try what this machine can do, and print a report for a bug report.

    On Linux a guest in a network namespace of its own pings, resolves a name, and transfers some megabytes
    by way of the gateway, behind a TAP and behind a TUN. On Windows an adapter of Wintun is made, and this
    machine does the same by it; start it as administrator for that. Everything that was made is gone in the
    end.

    What is "not there" is missing on this machine, and its line says what to do; ends with status 1 if
    anything has FAILED.
    """
    from tunstack.selftest.report import Report, State, heading

    for line in heading():
        click.echo(line)
    report = Report(click.echo)
    run_trio(_check, report)
    click.echo(report.summary())
    end(1 if report.count(State.FAILED) else 0)


async def _check(report: Report) -> None:
    if sys.platform == "win32":
        from tunstack.selftest.windows import check
    elif sys.platform == "linux":
        from tunstack.selftest.linux import check
    else:
        from tunstack.selftest.report import State

        report.add("system", State.ABSENT, "there are no checks for it yet, and tunstack was never run on it")
        return
    await check(report)
