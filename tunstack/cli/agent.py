"""`tunstack agent`: the guest's end of a link to a gateway elsewhere."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import click

from tunstack.cli import Failure, GuestCommand, first_of, run_trio, until_stopped

if TYPE_CHECKING:
    from tunstack.vsock.agent.agent import AgentSettings
    from tunstack.vsock.agent.interface import Addresses


@click.command(cls=GuestCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--connect", required=True, metavar="URL", help="Where the gateway is; see below.")
@click.option("--interface", default="tap0", show_default=True, metavar="NAME", help="Name of the interface.")
@click.option(
    "--mac", metavar="MAC", help="Of the interface; by default one that is this machine's each time."
)
@click.option(
    "--mtu",
    type=click.IntRange(576, 65520),
    default=1500,
    show_default=True,
    metavar="BYTES",
    help="IP MTU, unless the gateway says another one.",
)
@click.option(
    "--address",
    multiple=True,
    metavar="IP/BITS",
    help="An address of the interface, in the place of DHCP's. Repeatable: IPv4 and IPv6.",
)
@click.option("--router", multiple=True, metavar="IP", help="Default route, with --address. Repeatable.")
@click.option("--dns", multiple=True, metavar="IP", help="Resolver, with --address. Repeatable.")
@click.option("--no-configure", is_flag=True, help="Neither DHCP nor addresses: others see to that.")
@click.option(
    "--resolv-conf",
    default="/etc/resolv.conf",
    show_default=True,
    metavar="FILE",
    help="Where resolvers are written to; restored in the end. 'none': nowhere.",
)
@click.option("--hostname", metavar="NAME", help="Told to the DHCP server; by default this machine's.")
@click.option("--plain", is_flag=True, help="Frames without headers, as gvproxy takes them.")
@click.option("--keep", is_flag=True, help="Leave interface and resolvers when the agent ends.")
def command(**options: Any) -> None:
    """Connect this machine to a gateway elsewhere: an interface whose frames go there.

    \b
    URL                      what it is for
    vsock://2:1024           a gateway at the machine that this one is a guest of
    unix:///PATH             a UNIX socket
    unix:///PATH?port=N      port N of a machine whose monitor has hybrid vsock at PATH
    hvsock://parent/1024     the same on Windows
    tcp://HOST:PORT          TCP; nothing is encrypted
    stdio:                   standard input and output; frames without headers

    The gateway is `tunstack gateway --listen URL`, gvproxy, or whatever has its /connect; with the first one
    frames are up to 64 KiB long. The link is made again whenever it ends, and the interface with its
    addresses stays. Killed, the agent leaves the interface, which the next one takes over. Needs root.

    \b
    Examples:
      tunstack agent --connect vsock://2:1024
      tunstack agent --connect unix:///run/gateway.sock --address 10.0.2.100/24 --router 10.0.2.2
    """
    settings = _settings(options)
    failure = run_trio(_run, settings)
    if failure is not None:
        raise failure


async def _run(settings: AgentSettings) -> Failure | None:
    from tunstack.vsock.agent.agent import Gone, run_agent
    from tunstack.vsock.agent.interface import InterfaceError

    failure: Failure | None = None

    def tell(line: str) -> None:
        click.echo(line, err=settings.address is None)

    async with until_stopped():
        try:
            await run_agent(settings, tell)
        except* InterfaceError as errors:
            failure = Failure(str(first_of(errors)))
        except* Gone as errors:
            tell(str(first_of(errors)))
    return failure


def _settings(options: dict[str, Any]) -> AgentSettings:
    from tunstack.link.ethernet import is_station, parse_mac
    from tunstack.vsock.addresses import AddressError, parse_address
    from tunstack.vsock.agent.agent import AgentSettings

    try:
        address = None if options["connect"] == "stdio:" else parse_address(options["connect"])
    except AddressError as error:
        raise Failure(f"--connect: {error}") from None
    mac = None
    if options["mac"] is not None:
        try:
            mac = parse_mac(options["mac"])
        except ValueError:
            raise Failure(f"--mac: '{options['mac']}' is no MAC") from None
        if not is_station(mac):
            raise Failure(f"--mac: {options['mac']} is not the MAC of one machine")
    return AgentSettings(
        address=address,
        interface=options["interface"],
        mac=mac,
        mtu=options["mtu"],
        addresses=_addresses(options),
        resolv_conf=None if options["resolv_conf"] == "none" else options["resolv_conf"],
        keep=options["keep"],
        plain=options["plain"],
        hostname=options["hostname"] or socket.gethostname(),
    )


def _addresses(options: dict[str, Any]) -> Addresses | None:
    """What the interface has; None: what DHCP says."""
    import ipaddress

    from tunstack.vsock.agent.interface import NO_ADDRESSES, Addresses

    if options["no_configure"]:
        if options["address"]:
            raise Failure("give --address or --no-configure, not both")
        return NO_ADDRESSES
    if not options["address"]:
        if options["router"] or options["dns"]:
            raise Failure("--router and --dns go with --address; DHCP says both")
        return None
    try:
        interfaces = [ipaddress.ip_interface(text) for text in options["address"]]
        return Addresses(
            addresses=tuple((one.ip.packed, one.network.prefixlen) for one in interfaces),
            routers=tuple(ipaddress.ip_address(text).packed for text in options["router"]),
            dns=tuple(ipaddress.ip_address(text).packed for text in options["dns"]),
        )
    except ValueError as error:
        raise Failure(f"that is no address: {error}") from None
