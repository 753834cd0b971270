"""`tunstack gateway`: the network of virtual machines that connect to sockets."""

from __future__ import annotations

import dataclasses
import functools
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from tunstack.cli import Failure, GuestCommand, failure_of, first_of, run_trio, until_stopped
from tunstack.cli.options import Settings, machine_options
from tunstack.gateway.plan import MACHINES

if TYPE_CHECKING:
    from tunstack.cli.config_file import ConfigFile
    from tunstack.gateway.dhcp import DhcpSettings
    from tunstack.gateway.gateway import Gateway
    from tunstack.gateway.link_service import LinkServices
    from tunstack.gateway.links import Link
    from tunstack.gateway.wintun import InterfaceSettings

Tell: TypeAlias = "Callable[[str], object]"
Work: TypeAlias = "Callable[[Gateway], Awaitable[Failure | None]]"
"""What a gateway is for, until it is done with it."""


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
@click.option(
    "--wintun",
    metavar="NAME",
    help="On Windows, in the place of virtual machines: be the network behind an adapter of this name.",
)
@click.option(
    "--address",
    multiple=True,
    metavar="ADDRESS",
    help="With --wintun: the adapter's address, instead of the first machine's. Repeatable, once a family.",
)
@click.option("--metric", type=click.IntRange(1, 9999), help="With --wintun: the metric of its routes.")
@click.option("--use-dns", is_flag=True, help="With --wintun: let Windows ask the gateway's DNS.")
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
    status 0 on SIGTERM or SIGINT, on Windows on Ctrl-C or Ctrl-Break. SIGHUP reads FILE again: links, DNS,
    routes and forwards follow it at once.

    With --wintun this machine's own connections to the gateway's network, and to each NETWORK of a --route
    without =TARGET, come here by the adapter. What the gateway then connects to itself must not lie in such a
    NETWORK, unless another --route leads there.

    \b
    Examples:
      tunstack gateway --listen qemu+unix:///run/vm.sock -p 2222:22 --leases /run/vm.leases
      tunstack gateway --listen 'qemu+tcp://127.0.0.1:5555?connect=yes' --once
      tunstack gateway --wintun tunstack --route 198.51.100.0/24 --route 198.51.100.0/24=socks5://127.0.0.1:1080
    """
    # The help is what makes this function long.
    file = None
    if config is not None:
        from tunstack.cli.config_file import ConfigFile

        file = ConfigFile(config)
        file.add_to(options)
    networks = _take_networks(options)
    settings = Settings.from_options(layout=MACHINES, **options)
    settings.start_log()
    links = _links(options["listen"])
    # Standard output belongs to the machine, if that is where one is.
    tell = functools.partial(click.echo, err=any(link.protocol == "stdio" for link in links))
    dhcp = None
    work: Work
    if options["wintun"] is not None:
        if links:
            raise Failure(
                "a gateway has either links or an adapter: --listen and --wintun exclude each other"
            )
        interface, settings = _interface(settings, networks, options)
        work = functools.partial(_serve_adapter, options["wintun"], interface, tell)
    elif links:
        dhcp = None if options["no_dhcp"] else _dhcp_settings(settings, file, options)
        work = functools.partial(_serve_links, links, once, file, settings, tell)
    else:
        raise Failure("there is no link: give --listen, or a file with links")
    failure = run_trio(_serve, work, settings, dhcp, file, tell)
    if failure is not None:
        raise failure


def _take_networks(options: dict[str, Any]) -> list[str]:
    """Take those of `--route` that an adapter leads to, and not to a target, out of the options."""
    if options["wintun"] is None:
        if options["address"] or options["metric"] is not None or options["use_dns"]:
            raise Failure("--address, --metric and --use-dns are about an adapter; see --wintun")
        return []
    networks = [text for text in options["route"] if "=" not in text]
    options["route"] = tuple(text for text in options["route"] if "=" in text)
    return networks


def _interface(
    settings: Settings, networks: Sequence[str], options: dict[str, Any]
) -> tuple[InterfaceSettings, Settings]:
    """The adapter's interface, and the settings with its addresses for the guest's."""
    from tunstack.gateway.plan import PlanError
    from tunstack.gateway.wintun import has_wintun, parse_interface, with_guest

    if not has_wintun():
        raise Failure("--wintun: there are such adapters on Windows alone; see 'tunstack attach --tun'")
    try:
        interface = parse_interface(
            settings.plan,
            addresses=options["address"],
            routes=networks,
            use_dns=options["use_dns"],
            metric=options["metric"],
        )
    except PlanError as error:
        raise Failure(str(error)) from None
    return interface, dataclasses.replace(settings, plan=with_guest(settings.plan, interface))


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
    work: Work, settings: Settings, dhcp: DhcpSettings | None, file: ConfigFile | None, tell: Tell
) -> Failure | None:
    """Work until the end; a failure is returned, lest a nursery wraps it."""
    from tunstack import open_gateway
    from tunstack.gateway.dhcp import DhcpError
    from tunstack.gateway.links import LinkError
    from tunstack.ip.addresses import format_address

    failure: Failure | None = None
    plan = settings.plan
    async with until_stopped():
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
                failure = await work(gateway)
        except* LinkError as errors:
            failure = Failure(f"--listen: {first_of(errors)}")
        except* OSError as errors:
            failure = failure_of(first_of(errors))
        except* DhcpError as errors:
            failure = Failure(str(first_of(errors)))
    return failure


async def _serve_links(
    links: Sequence[Link],
    once: bool,
    file: ConfigFile | None,
    settings: Settings,
    tell: Tell,
    gateway: Gateway,
) -> None:
    """Serve the virtual machines that come, and follow the file."""
    from tunstack.background import beside
    from tunstack.gateway.link_service import LinkServices

    services = LinkServices(gateway, once=once, tell=tell)
    async with beside(functools.partial(_follow, file, settings, gateway, services, tell)):
        await services.run(links)


async def _serve_adapter(name: str, interface: InterfaceSettings, tell: Tell, gateway: Gateway) -> Failure:
    """Be behind an adapter, until it goes."""
    from tunstack.gateway.wintun import attach_wintun, describe

    async with attach_wintun(gateway, name, interface):
        tell(describe(name, interface))
        await gateway.wait_detached()
    return Failure(f"the adapter '{name}' has gone")


async def _follow(
    file: ConfigFile | None,
    settings: Settings,
    gateway: Gateway,
    services: LinkServices,
    tell: Tell,
) -> None:
    """Do what the file says whenever SIGHUP comes, which ends who has none; Windows does not know it."""
    import trio

    from tunstack.gateway.config import ConfigError

    if file is None or sys.platform == "win32":
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
