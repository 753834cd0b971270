"""`tunstack gateway`: the network of virtual machines that connect to sockets."""

from __future__ import annotations

import functools
import signal
from collections.abc import Sequence
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
    multiple=True,
    metavar="URL",
    help="Where virtual machines connect; see below. Repeatable.",
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
    listen: tuple[str, ...],
    once: bool,
    no_dhcp: bool,
    static_lease: tuple[str, ...],
    leases: str | None,
    **options: Any,
) -> None:
    """Be the network of the virtual machines that connect to URL.

    \b
    URL                   what it is for
    qemu+unix:///PATH     QEMU: -netdev stream,id=net0,addr.type=unix,addr.path=PATH,server=off
    qemu+tcp://HOST:PORT  the same over TCP
    qemu+fd://N           an inherited socket
    dgram:///PATH         QEMU: -netdev dgram; ?peer=/PATH for the other end's, else who sends first
    vfkit:///PATH         vfkit and libkrun
    bess:///PATH          User Mode Linux: vec0:transport=bess,dst=PATH
    vpnkit:///PATH        hyperkit
    stdio:                standard input and output, framed as by vpnkit

    \b
    Behind ?, with & between them:
    connect=yes           dial where the other end listens
    isolated=yes          its machines and those of other isolated links do not reach each other
    guard=no              believe what machines say of their addresses; for routers and clusters
    trust-checksums=yes   take every checksum for right

    Any number of machines, which reach each other. When one goes another may come, and connections survive
    that. DHCP gives the first one the address that is printed, which published ports lead to. Ends with
    status 0 on SIGTERM or SIGINT.

    \b
    Examples:
      tunstack gateway --listen qemu+unix:///run/vm.sock -p 2222:22 --leases /run/vm.leases
      tunstack gateway --listen 'qemu+tcp://127.0.0.1:5555?connect=yes' --once
    """
    from tunstack.gateway.links import Link, LinkError

    settings = Settings.from_options(**options)
    settings.start_log()
    try:
        links = [Link.parse(url) for url in listen]
    except LinkError as error:
        raise Failure(f"--listen: {error}") from None
    if sum(link.kind == "stdio" for link in links) > 1:
        raise Failure("--listen: standard input and output can be one link alone")
    dhcp = None if no_dhcp else _dhcp_settings(settings, static_lease, leases)
    failure = run_trio(_serve, links, once, settings, dhcp)
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


async def _serve(
    links: Sequence[Link], once: bool, settings: Settings, dhcp: DhcpSettings | None
) -> Failure | None:
    """Work until the end; a failure is returned, lest a nursery wraps it."""
    import trio

    from tunstack import open_gateway
    from tunstack.gateway.dhcp import DhcpError
    from tunstack.gateway.link_service import LinkService
    from tunstack.gateway.links import LinkError
    from tunstack.ip.addresses import format_address

    failure: Failure | None = None
    plan = settings.plan
    # Standard output belongs to the machine, if that is where one is.
    tell = functools.partial(click.echo, err=any(link.kind == "stdio" for link in links))
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, signals, nursery.cancel_scope)
            try:
                options = settings.gateway_options()
                async with open_gateway(**options, dhcp=dhcp) as gateway, settings.serving(gateway):
                    networks = zip(plan.networks, plan.guests, plan.gateways, plan.resolvers, strict=True)
                    for (_, length), *addresses in networks:
                        guest, router, dns = map(format_address, addresses)
                        tell(f"guest {guest}/{length}, gateway {router}, dns {dns}")
                    async with trio.open_nursery() as services:

                        async def serve(link: Link) -> None:
                            await LinkService(link, gateway, once=once, tell=tell).run()
                            if once:
                                services.cancel_scope.cancel()

                        for link in links:
                            services.start_soon(serve, link)
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
