"""`tunstack run`: a command in a network namespace of its own, with tunstack as its network."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import click

from tunstack.cli import OWN_FAILURE, Failure, GuestCommand, end, failure_of, run_trio
from tunstack.cli.options import Settings, guest_options, tun_option

assert sys.platform != "win32", "this is for Linux"

if TYPE_CHECKING:
    import trio

    from tunstack.gateway.gateway import Gateway

FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
STOPS = (signal.SIGTSTP, signal.SIGTTIN)
PATIENCE = 2.0
"""Seconds after which the wait for the last data is told of."""
FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@click.command(
    cls=GuestCommand,
    context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]},
)
@guest_options
@tun_option
@click.option("--root", "as_root", is_flag=True, help="The command sees itself as root (uid and gid 0).")
@click.option("--share-pid", is_flag=True, help="Do not give the command a PID namespace of its own.")
@click.argument("argv", nargs=-1, required=True, metavar="[--] COMMAND...", type=click.UNPROCESSED)
def command(argv: tuple[str, ...], as_root: bool, share_pid: bool, **options: Any) -> None:
    """Run COMMAND in a network namespace of its own, with tunstack as its network.

    It reaches the outside through ordinary sockets of this user; no privilege is needed beyond an accessible
    /dev/net/tun. The terminal, signals and the exit status are the command's: 128+N if signal N killed it,
    126 or 127 if it could not be executed, 125 for failures of tunstack itself. All that the
    command has started ends with it.

    \b
    Examples:
      tunstack run -- curl https://example.org/
      tunstack run -p 8080:80 --root -- python3 -m http.server 80
      tunstack run --host-loopback 10.0.2.2 -- psql -h 10.0.2.2
      tunstack run --pcap /tmp/session.pcapng -- bash
    """
    settings = Settings.from_options(**options)
    settings.start_log()
    # Here, before anything of our own is open: what is inheritable now was given to us for the command.
    inherited = _inherited_fds()

    end(run_trio(_Session(argv, settings, as_root, share_pid, inherited).run))


class _Session:
    """One run of a command, from the namespace to the exit status."""

    def __init__(
        self,
        argv: tuple[str, ...],
        settings: Settings,
        as_root: bool,
        share_pid: bool,
        inherited: tuple[int, ...],
    ) -> None:
        from tunstack.cli.terminal import Terminal
        from tunstack.gateway.namespace import Guest, NamespaceOptions

        self._argv = argv
        self._settings = settings
        self._options = NamespaceOptions(
            as_root=as_root, share_pid=share_pid, layer3=settings.layer3, pass_fds=inherited
        )
        self._terminal = Terminal()
        self._guest: Guest | None = None
        self._started = False
        self._interrupted = 0
        self._drain_scope: trio.CancelScope | None = None
        self._failure: Failure | None = None

    async def run(self) -> int:
        import trio

        # What was ignored from the start (nohup, a background job) stays ignored, for the command as well.
        watched = [n for n in (*FROM_TERMINAL, *STOPS, *FORWARDED) if signal.getsignal(n) != signal.SIG_IGN]
        status = 0
        try:
            with trio.open_signal_receiver(*watched) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_signals, signals, nursery.cancel_scope)
                    status = await self._run_guest()
                    nursery.cancel_scope.cancel()
        finally:
            self._terminal.close()
        if self._failure is not None:
            raise self._failure
        return 128 + self._interrupted if self._interrupted else status

    async def _run_guest(self) -> int:
        """The exit status; a failure is kept, lest a nursery wraps it."""
        from contextlib import AsyncExitStack

        from tunstack.gateway.namespace import CommandNotRun, NamespaceError, start_in_namespace

        killed = True
        environment = _environment_as_given()
        start = start_in_namespace(
            self._argv, self._settings.plan, self._options, env=environment, meanwhile=_import_gateway
        )
        try:
            async with AsyncExitStack() as stack:
                guest = await stack.enter_async_context(start)
                try:
                    from tunstack import open_gateway

                    options = self._settings.gateway_options()
                    gateway = await stack.enter_async_context(open_gateway(**options))
                    gateway.attach_fd(guest.take_device_fd())
                    await stack.enter_async_context(self._settings.serving(gateway))
                except OSError as error:
                    self._failure = failure_of(error)
                    return OWN_FAILURE
                self._guest = guest
                await guest.start()
                self._started = True
                try:
                    status = await guest.wait(self._stopped)
                    killed = status > 128
                    await self._drain(gateway)
                    return status
                except CommandNotRun as error:
                    self._failure = Failure(str(error), error.status)
                except NamespaceError as error:
                    self._failure = Failure(str(error))
        except NamespaceError as error:
            self._failure = Failure(str(error))
        finally:
            self._guest = None
            self._terminal.restore(killed)
        return OWN_FAILURE

    async def _drain(self, gateway: Gateway) -> None:
        """Let what the command left in its kernel arrive; any signal ends the wait."""
        import trio

        with trio.CancelScope() as self._drain_scope:
            if not await gateway.drain(PATIENCE):
                count = gateway.undelivered
                click.echo(f"tunstack: waiting for {count} connections to deliver their last data", err=True)
                await gateway.drain()

    def _stopped(self, number: int) -> None:
        guest = self._guest
        if guest is not None and self._terminal.stop(guest.pid):
            guest.signal(signal.SIGCONT)

    async def _pass_signals(self, signals: AsyncIterator[int], scope: Any) -> None:
        async for number in signals:
            if self._drain_scope is not None:
                self._drain_scope.cancel()
            elif not self._started:
                if number not in STOPS:
                    self._interrupted = number
                    scope.cancel()
            elif self._guest is not None and (
                number in FORWARDED or (number in FROM_TERMINAL and not self._terminal.is_foreground())
            ):
                self._guest.signal(number)


def _import_gateway() -> None:
    """What takes a while, while there is nothing else to do."""
    importlib.import_module("tunstack.gateway.gateway")


def _inherited_fds() -> tuple[int, ...]:
    """Descriptors beyond stderr that the caller opened for the command."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
        except OSError:
            pass  # the descriptor of the listing itself
    return tuple(found)


def _environment_as_given() -> dict[str, str]:
    """The environment with the LC_CTYPE of the caller: Python sets its own in the C locale (PEP 538)."""
    environment = dict(os.environ)
    if environment.pop("LC_CTYPE", None) is not None:
        with open("/proc/self/environ", "rb") as file:
            for entry in file.read().split(b"\0"):
                name, _, value = entry.partition(b"=")
                if name == b"LC_CTYPE":
                    environment["LC_CTYPE"] = os.fsdecode(value)
    return environment
