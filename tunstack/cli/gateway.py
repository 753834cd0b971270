"""`tunstack gateway`: the network of virtual machines that connect to sockets."""

from __future__ import annotations

import dataclasses
import functools
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from tunstack.cli import Failure, GuestCommand, cancel_on_signal, failure_of, first_of, run_trio
from tunstack.cli.options import Settings, machine_options
from tunstack.gateway.plan import MACHINES

if TYPE_CHECKING:
    from tunstack.cli.config_file import ConfigFile
    from tunstack.gateway.dhcp import DhcpSettings
    from tunstack.gateway.gateway import Gateway
    from tunstack.gateway.link_service import LinkServices
    from tunstack.gateway.links import Link


@click.command(cls=GuestCommand, context_settings={"help_option_names": ["-h", "--help"]})
@machine_options
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Read links, network, DHCP and DNS from FILE (YAML); options come on top. See 'tunstack config'.",
)
@click.option(
    "--listen",
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
def command(config: str | None, once: bool, **options: Any) -> None:
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
    vsock://:PORT         tunstack agent, or gvforwarder; in the same way
                          unix:///PATH, tcp://HOST:PORT, hvsock://VM/SERVICE,
                          unix:///PATH?port=N (hybrid vsock)

    \b
    Behind ?, with & between them:
    connect=yes           dial where the other end listens
    isolated=yes          its machines and those of other isolated links do not reach each other
    guard=no              believe what machines say of their addresses; for routers and clusters
    trust-checksums=yes   take every checksum for right

    Any number of machines, which reach each other. When one goes another may come, and connections survive
    that. DHCP gives the first one the address that is printed, which published ports lead to. Ends with
    status 0 on SIGTERM or SIGINT. SIGHUP reads FILE again: links, DNS, routes and
    forwards follow it at once.

    \b
    Examples:
      tunstack gateway --listen qemu+unix:///run/vm.sock -p 2222:22 --leases /run/vm.leases
      tunstack gateway --listen 'qemu+tcp://127.0.0.1:5555?connect=yes' --once
    """
    file = None
    if config is not None:
        from tunstack.cli.config_file import ConfigFile

        file = ConfigFile(config)
        file.add_to(options)
    settings = Settings.from_options(layout=MACHINES, **options)
    settings.start_log()
    links = _links(options["listen"])
    if not links:
        raise Failure("there is no link: give --listen, or a file with links")
    dhcp = None if options["no_dhcp"] else _dhcp_settings(settings, file, options)
    failure = run_trio(_serve, links, once, settings, dhcp, file)
    if failure is not None:
        raise failure


def _links(urls: Sequence[str]) -> list[Link]:
    from tunstack.gateway.links import Link, LinkError

    try:
        links = [Link.parse(url) for url in urls]
    except LinkError as error:
        raise Failure(f"--listen: {error}") from None
    if sum(link.protocol == "stdio" for link in links) > 1:
        raise Failure("--listen: standard input and output can be one link alone")
    return links


def _dhcp_settings(settings: Settings, file: ConfigFile | None, options: dict[str, Any]) -> DhcpSettings:
    from tunstack.gateway.dhcp import DhcpSettings, parse_static
    from tunstack.gateway.plan import PlanError

    try:
        pairs = [parse_static(text, settings.plan) for text in options["static_lease"]]
    except PlanError as error:
        raise Failure(str(error)) from None
    for number, what in enumerate(("MAC", "address")):
        if len({pair[number] for pair in pairs}) < len(pairs):
            raise Failure(f"--static-lease: one {what} is given twice")
    part = None if file is None else file.config.dhcp
    search = None if part is None or part.search is None else tuple(part.search)
    lease_time = None if part is None else part.lease_time
    return DhcpSettings(static=dict(pairs), leases=options["leases"], lease_time=lease_time, search=search)


async def _serve(
    links: Sequence[Link],
    once: bool,
    settings: Settings,
    dhcp: DhcpSettings | None,
    file: ConfigFile | None,
) -> Failure | None:
    """Work until the end; a failure is returned, lest a nursery wraps it."""
    import trio

    from tunstack import open_gateway
    from tunstack.background import beside
    from tunstack.gateway.dhcp import DhcpError
    from tunstack.gateway.link_service import LinkServices
    from tunstack.gateway.links import LinkError
    from tunstack.ip.addresses import format_address

    failure: Failure | None = None
    plan = settings.plan
    # Standard output belongs to the machine, if that is where one is.
    tell = functools.partial(click.echo, err=any(link.protocol == "stdio" for link in links))
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, signals, nursery.cancel_scope)
            try:
                options = settings.gateway_options()
                if file is not None:
                    more = file.dns_settings()
                    options |= {"zones": more.zones, "dns_routes": more.routes}
                async with open_gateway(**options, dhcp=dhcp) as gateway, settings.serving(gateway):
                    networks = zip(plan.networks, plan.guests, plan.gateways, plan.resolvers, strict=True)
                    for (_, length), *addresses in networks:
                        guest, router, dns = map(format_address, addresses)
                        tell(f"guest {guest}/{length}, gateway {router}, dns {dns}")
                    services = LinkServices(gateway, once=once, tell=tell)
                    async with beside(functools.partial(_follow, file, settings, gateway, services, tell)):
                        await services.run(links)
            except* LinkError as errors:
                failure = Failure(f"--listen: {first_of(errors)}")
            except* OSError as errors:
                failure = failure_of(first_of(errors))
            except* DhcpError as errors:
                failure = Failure(str(first_of(errors)))
            nursery.cancel_scope.cancel()
    return failure


async def _follow(
    file: ConfigFile | None,
    settings: Settings,
    gateway: Gateway,
    services: LinkServices,
    tell: Callable[[str], object],
) -> None:
    """Do what the file says whenever SIGHUP comes, which ends who has none."""
    import trio

    from tunstack.gateway.config import ConfigError

    if file is None:
        return
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            try:
                has_more = file.read_again()
                links, routes, forwards = _links(file.links()), file.routes(), file.forwards()
                gateway.dns.change(file.dns_settings())
            except (ConfigError, Failure) as error:
                tell(f"nothing has changed: {error}")
                continue
            services.change(links)
            if any((*settings.routes, *settings.forwards, *routes, *forwards)):
                for complaint in gateway.bridge.change(settings.routes, routes, settings.forwards, forwards):
                    tell(complaint)
                settings = dataclasses.replace(settings, routes=routes, forwards=forwards)
            tell(f"'{file.path}' was read again")
            if has_more:
                tell("what it says of addresses, ports and DHCP is done when the gateway is started anew")
