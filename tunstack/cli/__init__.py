"""The command line: one module a command, imported when that command is called."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

import tunstack

if TYPE_CHECKING:
    import trio

COMMANDS = {
    "agent": "connect this machine to a gateway elsewhere, by an interface",
    "attach": "give a network namespace that exists already a network",
    "config": "check and describe the configuration file of a gateway",
    "ctl": "look at a gateway that is running, and change it",
    "gateway": "be the network of virtual machines that connect to sockets",
    "packetdrill": "run packetdrill scripts against the stack, in virtual time",
    "run": "run a command in a network namespace of its own",
    "selftest": "try what this machine can do, and report it",
}
"""The commands, each a module of this package with a click command `command`, and what they do."""

Result = TypeVar("Result")

LINUX_ONLY = {
    "agent": "it makes an interface by /dev/net/tun",
    "attach": "it gives a network to a network namespace",
    "run": "it makes a network namespace",
}
"""Commands that other systems do not have, and why."""

OWN_FAILURE = 125
"""Exit status for what tunstack could not do, as with env(1) and docker(1)."""


class Failure(click.ClickException):
    """Ends the program with one sentence on stderr and an exit status."""

    def __init__(self, message: str, status: int = OWN_FAILURE) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        click.echo(f"tunstack: {self.format_message()}", err=True)


def failure_of(error: OSError) -> Failure:
    """The failure that a system call's error is: what it was about, and why."""
    reason = error.strerror or str(error)
    return Failure(f"'{os.fsdecode(error.filename)}': {reason}" if error.filename else reason)


def run_trio(function: Callable[..., Awaitable[Result]], *arguments: Any) -> Result:
    """`trio.run`; a fault of tunstack itself is told in full, with the exit status of its own failures."""
    import gc

    import trio

    # What is there now stays: looking at all of it again and again would hold packets up for 5 ms each time.
    gc.freeze()
    try:
        return trio.run(function, *arguments)
    except (Failure, KeyboardInterrupt):
        raise
    except Exception:
        import traceback

        traceback.print_exc()
        raise Failure("this is a fault of tunstack; please report the lines above") from None


def first_of(error: BaseException) -> Any:
    """One of the errors in a group, however deep."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


STOPS: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT)
"""What ends a command in order; Ctrl-Break does so on Windows, where SIGTERM never comes."""
if sys.platform == "win32":
    STOPS += (signal.SIGBREAK,)


@contextlib.asynccontextmanager
async def until_stopped() -> AsyncIterator[trio.Nursery]:
    """A nursery that one of `STOPS` cancels, and the end of the block."""
    import trio

    with trio.open_signal_receiver(*STOPS) as signals:
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(stop)
            yield nursery
            nursery.cancel_scope.cancel()


def end(status: int) -> NoReturn:
    """End the process. At once: to take the interpreter apart would take as long as it takes to start it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _as_failure(error: click.UsageError) -> Failure:
    message = " ".join(error.format_message().split()).removesuffix(".")
    return Failure(f"{message} (see 'tunstack{_path(error)} --help')")


def _path(error: click.UsageError) -> str:
    name = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else None
    return f" {name}" if name else ""


class GuestCommand(click.Command):
    """A command whose usage errors are failures of tunstack itself, not of what it would have run."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise _as_failure(error) from None


class _Main(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if sys.platform != "linux" and cmd_name in LINUX_ONLY:
            raise Failure(f"'tunstack {cmd_name}' is there on Linux alone: {LINUX_ONLY[cmd_name]}")
        command: click.Command = importlib.import_module(f"tunstack.cli.{cmd_name}").command
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            raise _as_failure(error) from None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise _as_failure(error) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table: help for all imports none of them.
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from tunstack import native

        click.echo(f"tunstack {tunstack.__version__} ({native.describe_build()})")
        ctx.exit()


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """A userspace TCP/IP stack: the network of namespaces, virtual machines and containers.

    \b
    Examples:
      tunstack run -- curl https://example.org/
      tunstack run -p 8080:8000 -- python3 -m http.server 8000
      tunstack attach /run/netns/blue
    """
