"""`tunstack packetdrill`: run scripts in the packetdrill language against the stack."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import click

from tunstack.cli import Failure, GuestCommand, failure_of

if TYPE_CHECKING:
    from pathlib import Path

    from tunstack.testing.packetdrill import Capture, Result
    from tunstack.testing.packetdrill.language.syntax import Option

FAILED, ERROR = 1, 2
"""Exit status if a script failed; if none failed, but some could not be run."""


@click.command(
    cls=GuestCommand,
    context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True},
)
@click.option("-D", "--define", "defines", metavar="NAME[=VALUE]", multiple=True, help="Define a symbol.")
@click.option("--pcap", metavar="FILE", help="Write all packets to FILE (pcapng).")
@click.option("--syn-options", type=click.Choice(["any", "exact"]), help="any: options of SYNs in any order.")
@click.option("--ignore-window", is_flag=True, help="Do not compare windows.")
@click.option("--dry-run", is_flag=True, help="Only parse the scripts.")
@click.option("-v", "--verbose", is_flag=True, help="Show every packet and call, and notes.")
@click.argument("arguments", metavar="[--NAME=VALUE]... FILE...", nargs=-1, type=click.UNPROCESSED)
def command(
    arguments: tuple[str, ...],
    defines: tuple[str, ...],
    pcap: str | None,
    syn_options: str | None,
    ignore_window: bool,
    dry_run: bool,
    verbose: bool,
) -> None:
    """Run each script FILE, and all *.pkt below each directory, in virtual time.

    Nothing but the stack in this process is touched: no device, no privileges. --NAME=VALUE are the options
    that may also stand at the head of a script, such as --ip_version=ipv6 or --mtu=1280; they win.
    The exit status is 0 if all scripts passed, 1 if one failed, 2 if one could not be run.

    \b
    Examples:
      tunstack packetdrill tests/scripts
      tunstack packetdrill -v --pcap out.pcapng --mtu=1280 handshake.pkt
    """
    from tunstack.testing.packetdrill import find_scripts, summary
    from tunstack.testing.packetdrill.language.preprocess import parse_definition

    names = [argument for argument in arguments if not argument.startswith("--")]
    flags = [argument for argument in arguments if argument.startswith("--")]
    if syn_options is not None:
        flags.append(f"--syn_options={syn_options}")
    flags += ["--ignore_window=1"] * ignore_window + ["--dry_run=1"] * dry_run
    options = _options(flags)
    try:
        definitions = dict(parse_definition(text) for text in defines)
        paths = list(find_scripts(names))
    except (ValueError, FileNotFoundError) as error:
        raise Failure(str(error)) from None
    if not paths:
        raise Failure("name at least one script or directory (see 'tunstack packetdrill --help')")
    try:
        results = _run_all(paths, options, definitions, pcap, verbose)
    except OSError as error:
        raise failure_of(error) from None
    notes = 0 if verbose else sum(len(result.notes) for result in results if result.passed)
    text = summary(results)
    click.echo(f"{text} ({notes} note{'s' * (notes != 1)}: see --verbose)" if notes else text)
    sys.exit(_status(results))


def _options(flags: list[str]) -> list[Option]:
    """The options of scripts among the arguments. A name is wrong for all scripts, a value for some."""
    from tunstack.testing.packetdrill import ScriptError, parse_option
    from tunstack.testing.packetdrill.settings import check_name

    try:
        options = [parse_option(flag) for flag in flags]
        for option in options:
            check_name(option)
    except ValueError as error:
        raise Failure(f"{error} (see 'tunstack packetdrill --help')") from None
    except ScriptError as error:
        raise Failure(error.message) from None
    return options


def _run_all(
    paths: list[Path],
    options: list[Option],
    definitions: dict[str, str],
    pcap: str | None,
    verbose: bool,
) -> list[Result]:
    from tunstack.testing.packetdrill import Capture, report, run_file

    results = []
    with contextlib.ExitStack() as stack:
        capture: Capture | None = None
        if pcap is not None:
            capture = Capture(stack.enter_context(open(pcap, "wb")).write)
        for path in paths:
            if verbose:
                click.echo(f"{path}:")
            if capture is not None:
                capture.begin()
            result = run_file(
                path,
                options=options,
                definitions=definitions,
                trace=_trace if verbose else None,
                tap=capture.packet if capture is not None else None,
            )
            results.append(result)
            if verbose or not result.passed:
                click.echo(report(result))
    return results


def _trace(line: str) -> None:
    click.echo(f"  {line}")


def _status(results: list[Result]) -> int:
    from tunstack.testing.packetdrill import Verdict

    verdicts = {result.verdict for result in results}
    if Verdict.FAILED in verdicts:
        return FAILED
    return ERROR if Verdict.ERROR in verdicts else 0
