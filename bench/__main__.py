"""The command line: `python -m bench all`, `python -m bench requests --connections 1,32`."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bench import agent as agent_module
from bench import framed as framed_module
from bench import routes as routes_module
from bench import sandbox
from bench import throughput as throughput_module
from bench import tun as tun_module
from bench import udp as udp_module
from bench.choices import BENCHMARKS, FULL, QUICK, Job, jobs, names, numbers
from bench.load import built
from bench.peers import PEERS, missing
from bench.report import BUSY, Document, machine, render
from bench.session import Session

Function = TypeVar("Function", bound=Callable[..., Any])


@click.group()
def main() -> None:
    """Measure tunstack beside slirp4netns, pasta, gvproxy and a plain veth pair."""


def _shared(function: Function) -> Function:
    options = (
        click.option("--rounds", type=click.IntRange(1, 50), help="Turns of each peer in each case."),
        click.option("--seconds", type=click.FloatRange(0.05, 60), help="Of one turn."),
        click.option("--peers", callback=names(PEERS, "peer"), default=",".join(PEERS), show_default=True),
        click.option("--families", type=click.Choice(["4", "6", "4,6"]), help="IP versions."),
        click.option("--quick", is_flag=True, help="A subset with few rounds."),
        click.option(
            "--json",
            "json_file",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Write all here, too.",
        ),
        click.option(
            "--out",
            type=click.Path(file_okay=False, path_type=Path),
            help="Write results.json, results.md and plots into this directory.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _connections(function: Function) -> Function:
    return click.option("--connections", callback=numbers(1, 10_000, "1 to 10000 connections"))(function)


def _run(chosen: tuple[str, ...], options: dict[str, Any]) -> None:
    if not sandbox.inside():
        sys.exit(sandbox.reenter(sys.argv[1:]))
    absent = {peer: program for peer in options["peers"] if (program := missing(peer))}
    sentences = [f"{peer} is left out: {program} is not installed" for peer, program in absent.items()]
    for sentence in sentences:
        click.echo(f"bench: {sentence}", err=True)
    options["peers"] = tuple(peer for peer in options["peers"] if peer not in absent)
    if not options["peers"]:
        raise click.ClickException("no peer is left to be measured")
    if options["families"] is not None:
        options["families"] = tuple(map(int, options["families"].split(",")))
    wanted = jobs(chosen, QUICK if options["quick"] else FULL, options)
    for job in wanted:
        click.echo(f"bench: {job.name} takes about {_duration(job.plan.estimate)}", err=True)
    click.echo(f"bench: in all about {_duration(sum(job.plan.estimate for job in wanted))}", err=True)
    about = machine(options["peers"])
    if about["load_before"] > BUSY:
        click.echo(
            f"bench: the machine is busy (load {about['load_before']}); "
            "these ratios will not hold on a quiet one",
            err=True,
        )
    try:
        sandbox.prepare_host()
        with built() as load:
            session = Session(load, lambda line: click.echo(line, err=True))
            session.notes += sentences
            document = Document(
                machine=about,
                plans={},
                samples=session.samples,
                errors=session.errors,
                notes=session.notes,
            )
            for job in wanted:
                _measure(job, session, document)
                _write(document, options["json_file"], options["out"])
    except sandbox.BenchError as error:
        raise click.ClickException(str(error)) from None
    click.echo(render(document))
    if document.errors:
        click.echo(f"bench: {len(document.errors)} failures; the report ends with them", err=True)
        sys.exit(1)


def _measure(job: Job, session: Session, document: Document) -> None:
    document.plans[job.name] = job.plan
    start = time.monotonic()
    try:
        job.measure(job.plan, session)
    except sandbox.BenchError as error:
        session.failed(job.name, error)
    except Exception as error:  # the other benchmarks still have something to say
        traceback.print_exc()
        session.failed(job.name, sandbox.BenchError(f"{type(error).__name__}: {error}"))
    session.progress(f"bench: {job.name} took {_duration(time.monotonic() - start)}")


def _write(document: Document, json_file: Path | None, out: Path | None) -> None:
    """What there is so far: a run that is interrupted leaves something."""
    files = [] if json_file is None else [json_file]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        try:
            from bench.plots import plot

            document.plots = plot(document.rows, out)
        except Exception as error:  # the figures are worth more than the plots
            click.echo(f"bench: no plots: {type(error).__name__}: {error}", err=True)
        (out / "results.md").write_text(render(document))
        files.append(out / "results.json")
    for file in files:
        file.write_text(document.as_json())


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


@main.command("all")
@_shared
def run_all(**options: Any) -> None:
    """All that the other commands measure but `core`, one after the other."""
    _run(BENCHMARKS, options)


@main.command()
@_shared
@click.option("--mtu", "mtus", callback=numbers(576, 65520, "an MTU lies between 576 and 65520 bytes"))
@click.option("--flows", callback=numbers(1, 128, "1 to 128 flows"), help="At once.")
@click.option("--directions", callback=names(throughput_module.DIRECTIONS, "direction"))
def throughput(**options: Any) -> None:
    """Bulk TCP by iperf3: up, down and both, one or many flows, by MTU."""
    _run(("throughput",), options)


@main.command()
@_shared
@_connections
def requests(**options: Any) -> None:
    """Request and response on connections that stay open."""
    _run(("requests",), options)


@main.command()
@_shared
@_connections
def connects(**options: Any) -> None:
    """Connect, request, response, close."""
    _run(("connects",), options)


@main.command()
@_shared
@click.option("--sizes", callback=numbers(8, 65000, "a payload has 8 to 65000 bytes"))
@click.option("--directions", callback=names(udp_module.DIRECTIONS, "direction"))
def udp(**options: Any) -> None:
    """The highest rate of datagrams with less than 0.1 % loss; --seconds of one search."""
    _run(("udp",), options)


@main.command()
@_shared
@click.option("--directions", callback=names(framed_module.DIRECTIONS, "direction"))
def framed(**options: Any) -> None:
    """One flow over a framed link without offload, beside TAPs."""
    _run(("framed",), options)


@main.command()
@_shared
@click.option("--directions", callback=names(agent_module.DIRECTIONS, "direction"))
def agent(**options: Any) -> None:
    """One flow of a guest behind tunstack agent, beside a TAP and gvproxy."""
    _run(("agent",), options)


@main.command()
@_shared
@click.option("--directions", callback=names(routes_module.DIRECTIONS, "direction"))
def routes(**options: Any) -> None:
    """One flow of a guest to a UNIX socket, beside the same to TCP; tunstack only."""
    _run(("routes",), options)


@main.command()
@_shared
@click.option("--mtu", "mtus", callback=numbers(576, 65520, "an MTU has 576 to 65520 bytes"))
@click.option("--directions", callback=names(tun_module.DIRECTIONS, "direction"))
def tun(**options: Any) -> None:
    """One flow over a TUN, beside the same over a TAP; tunstack only."""
    _run(("tun",), options)


@main.command()
@_shared
@click.option("--idle", callback=numbers(1, 10_000, "1 to 10000 flows"), help="Idle flows.")
def flows(**options: Any) -> None:
    """Memory of idle flows, and a request beside them; tunstack only."""
    _run(("flows",), options)


@main.command()
@_shared
def startup(**options: Any) -> None:
    """Start to first packet, memory then, and `tunstack run -- true`."""
    _run(("startup",), options)


SHAPING_LINES = (
    "rate",
    "delay",
    "loss",
    "jitter",
    "others",
    "queue",
    "trace",
    "impaired",
    "off",
    "changes",
    "curve",
)


@main.command()
@click.option(
    "--lines", callback=names(SHAPING_LINES, "line"), default=",".join(SHAPING_LINES), show_default=True
)
@click.option("--quick", is_flag=True, help="Fewer and shorter of each, 4 minutes.")
@click.option(
    "--netem", is_flag=True, help="Measure the kernel's netem beside it, at a veth pair, in what that can do."
)
@click.option("--datagrams", type=click.IntRange(1000, 10_000_000), help="Of each measurement of loss.")
@click.option("--pace", type=click.FloatRange(1, 100_000), help="Datagrams a second, where many are sent.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write shaping.md, shaping.json and plots into this directory.",
)
def shaping(
    lines: tuple[str, ...],
    quick: bool,
    netem: bool,
    datagrams: int | None,
    pace: float | None,
    out: Path | None,
) -> None:
    """Whether a shaped link does what was ordered: rates, delays, losses, queues, traces; tunstack only."""
    if not sandbox.inside():
        sys.exit(sandbox.reenter(sys.argv[1:]))
    from bench.shaped.lines import Plan as ShapingPlan
    from bench.shaped.report import run as run_shaping

    plan = ShapingPlan()
    if quick:
        plan = ShapingPlan(
            runs=1, seconds=5, pings=200, datagrams=20_000, samples=1000, changes=100, change_seconds=6
        )
    plan.datagrams = datagrams or plan.datagrams
    plan.pace = pace or plan.pace
    try:
        sandbox.prepare_host()
        text, met = run_shaping(lines, plan, out, lambda line: click.echo(line, err=True), netem=netem)
    except sandbox.BenchError as error:
        raise click.ClickException(str(error)) from None
    click.echo(text)
    sys.exit(0 if met else 1)


@main.command()
@click.option("--rounds", type=click.IntRange(1, 50), default=5, show_default=True)
def core(rounds: int) -> None:
    """Segments through the protocol core alone; needs neither root nor a device."""
    from bench.core import measure as measure_core
    from bench.core import render as render_core

    click.echo(render_core(measure_core(rounds)))


@main.command()
@click.option("--connections", type=click.IntRange(1, 1000), default=1, show_default=True)
@click.option("--most", type=click.IntRange(1, 500), default=40, show_default=True, help="Functions to list.")
def calls(connections: int, most: int) -> None:
    """CPU time and Python calls of a connection, and where they are; tunstack only."""
    if not sandbox.inside():
        sys.exit(sandbox.reenter(sys.argv[1:]))
    from bench.calls import measure as measure_calls

    try:
        sandbox.prepare_host()
        with built() as load:
            click.echo(measure_calls(load, connections, most))
    except sandbox.BenchError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main(prog_name="python -m bench")
