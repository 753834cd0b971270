"""`tunstack gateway`: the network of a virtual machine that connects to a socket."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import click

from tunstack.cli import Failure, GuestCommand, cancel_on_signal, failure_of, run_trio
from tunstack.cli.options import Settings, guest_options

if TYPE_CHECKING:
    from tunstack.gateway.dhcp import DhcpSettings
    from tunstack.gateway.links import Link


@click.command(cls=GuestCommand, context_settings={"help_option_names": ["-h", "--help"]})
@guest_options
@click.option(
    "--listen",
    required=True,
    metavar="URL",
    help="Where the virtual machine connects: qemu+unix:///PATH, qemu+tcp://HOST:PORT or qemu+fd://N; with "
    "?connect=yes where it listens.",
)
@click.option("--once", is_flag=True, help="End when the first virtual machine has gone.")
@click.option("--no-dhcp", is_flag=True, help="Give no addresses: the machine has one of its own.")
@click.option(
    "--static-lease",
    multiple=True,
    metavar="MAC=IP",
    help="The machine with this MAC gets this address, and nobody else does. Repeatable.",
)
@click.option(
    "--leases",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Where leases are kept, so that machines keep their addresses when the gateway is started anew.",
)
def command(
    listen: str, once: bool, no_dhcp: bool, static_lease: tuple[str, ...], leases: str | None, **options: Any
) -> None:
    """Be the network of a virtual machine that connects to URL.

    \b
    QEMU: -netdev stream,id=net0,addr.type=unix,addr.path=PATH,server=off \\
          -device virtio-net-pci,netdev=net0

    One machine at a time; when it goes the next may come, and connections survive that. DHCP gives it the
    address that is printed, which published ports lead to. Ends with status 0 on SIGTERM or SIGINT.

    \b
    Examples:
      tunstack gateway --listen qemu+unix:///run/vm.sock -p 2222:22 --leases /run/vm.leases
      tunstack gateway --listen 'qemu+tcp://127.0.0.1:5555?connect=yes' --once
    """
    from tunstack.gateway.links import Link, LinkError

    settings = Settings.from_options(**options)
    settings.start_log()
    try:
        link = Link.parse(listen)
    except LinkError as error:
        raise Failure(f"--listen: {error}") from None
    dhcp = None if no_dhcp else _dhcp_settings(settings, static_lease, leases)
    failure = run_trio(_serve, link, once, settings, dhcp)
    if failure is not None:
        raise failure


def _dhcp_settings(settings: Settings, static: tuple[str, ...], leases: str | None) -> DhcpSettings:
    from tunstack.gateway.dhcp import DhcpSettings, parse_static
    from tunstack.gateway.plan import PlanError

    try:
        pairs = [parse_static(text, settings.plan) for text in static]
    except PlanError as error:
        raise Failure(str(error)) from None
    for number, what in enumerate(("MAC", "address")):
        if len({pair[number] for pair in pairs}) < len(pairs):
            raise Failure(f"--static-lease: one {what} is given twice")
    return DhcpSettings(static=dict(pairs), leases=leases)


async def _serve(link: Link, once: bool, settings: Settings, dhcp: DhcpSettings | None) -> Failure | None:
    """Work until the end; a failure is returned, lest a nursery wraps it."""
    import trio

    from tunstack import open_gateway
    from tunstack.gateway.dhcp import DhcpError
    from tunstack.gateway.links import LinkError, serve
    from tunstack.ip.addresses import format_address

    failure: Failure | None = None
    plan = settings.plan
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, signals, nursery.cancel_scope)
            try:
                options = settings.gateway_options()
                async with open_gateway(**options, dhcp=dhcp) as gateway, settings.serving(gateway):
                    networks = zip(plan.networks, plan.guests, plan.gateways, plan.resolvers, strict=True)
                    for (_, length), *addresses in networks:
                        guest, router, dns = map(format_address, addresses)
                        click.echo(f"guest {guest}/{length}, gateway {router}, dns {dns}")
                    await serve(link, gateway, once=once, tell=click.echo)
            except* LinkError as errors:
                failure = Failure(f"--listen: {_first(errors)}")
            except* OSError as errors:
                failure = failure_of(_first(errors))
            except* DhcpError as errors:
                failure = Failure(str(_first(errors)))
            nursery.cancel_scope.cancel()
    return failure


def _first(error: BaseException) -> Any:
    """One of the errors in a group, however deep."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
