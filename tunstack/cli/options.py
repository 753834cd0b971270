"""The options that all commands with a guest share, and what they mean together."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tunstack import native
from tunstack.cli import Failure, failure_of
from tunstack.gateway.plan import (
    MACHINES,
    NAMESPACE,
    AddressPlan,
    Layout,
    PlanError,
    Publish,
    parse_host_entry,
    parse_host_loopback,
    parse_resolver,
)

if TYPE_CHECKING:
    from tunstack.gateway.gateway import Gateway
    from tunstack.link.shaping.scenario import Scenario
    from tunstack.link.shaping.spec import ShapeSpec
    from tunstack.vsock.routes import ForwardSpec, RouteSpec

Function = TypeVar("Function", bound=Callable[..., Any])
Spec = TypeVar("Spec")

_OPTIONS = (
    click.option(
        "--mtu", type=int, default=1500, show_default=True, metavar="BYTES", help="IP MTU of the link."
    ),
    click.option(
        "-p",
        "--publish",
        multiple=True,
        metavar="[HOST_IP:]HOST_PORT:GUEST_PORT[/udp]",
        help="A port of the host (127.0.0.1 unless HOST_IP is given, IPv6 in brackets) that leads to the "
        "guest's address of the same family. Repeatable.",
    ),
    click.option(
        "--host-loopback",
        metavar="ADDRESS",
        help="An address of the guest's network, maybe the gateway's: the host's 127.0.0.1, or ::1 for IPv6.",
    ),
    click.option(
        "--route",
        "route",
        multiple=True,
        metavar="DESTINATION=TARGET",
        help="Reach a destination (ADDRESS[/BITS][:PORT[-PORT]]) by a service: 'unix:///PATH', "
        "'vsock://CID:PORT', 'unix:///PATH?port=N' (hybrid vsock), 'hvsock://VM/SERVICE', 'tcp://IP:PORT'; "
        "by a proxy: 'socks5://[USER:PASSWORD@]IP:PORT' or 'http://...'; or 'direct'. The first that covers "
        "it counts. Repeatable.",
    ),
    click.option(
        "--forward",
        "forward",
        multiple=True,
        metavar="LISTENER=TARGET",
        help="Lead who connects to LISTENER, such as 'vsock://:8080' or 'unix:///PATH', to TARGET: a guest's "
        "'tcp://IP:PORT', or a service of the host. Repeatable.",
    ),
    click.option("--allow-host", is_flag=True, help="Let the guest connect to the host's own addresses."),
    click.option(
        "--dns",
        multiple=True,
        metavar="ADDRESS[:PORT]",
        help="Ask this resolver, not those of the host (/etc/resolv.conf). Repeatable, in order.",
    ),
    click.option(
        "--add-host", multiple=True, metavar="NAME:IP", help="A name that DNS answers itself. Repeatable."
    ),
    click.option(
        "--pcap",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Write what passes the device to FILE (pcapng).",
    ),
    click.option(
        "--shape-up",
        metavar="WORDS",
        help="What the link does to packets from the guest, in the words of netem: "
        "'delay 50ms loss 1% reorder 2% duplicate 1% rate 10mbit limit 100'.",
    ),
    click.option("--shape-down", metavar="WORDS", help="The same for packets to the guest."),
    click.option(
        "--profile",
        metavar="NAME",
        help="Shape both directions as a kind of access does: fiber, cable, dsl, dialup, lte, 4g, 3g-fast, "
        "3g, 3g-slow, 2g, edge, gprs, wifi, wifi-lossy, satellite, geo. A --shape option overrides its "
        "direction.",
    ),
    click.option(
        "--scenario",
        metavar="FILE",
        help="Change the shaping in the course of time, by lines such as '10s both loss 5%' or "
        "'30s link down'.",
    ),
    click.option(
        "--control",
        type=click.Path(dir_okay=False),
        metavar="PATH",
        help="Where the control socket is, which 'tunstack ctl' talks to: 'none', or a path in place of "
        "$XDG_RUNTIME_DIR/tunstack/PID.sock (Windows: a named pipe).",
    ),
    click.option("-v", "--verbose", count=True, help="Tell what happens, on stderr; twice: in detail."),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the shared options say."""

    plan: AddressPlan
    publish: list[Publish]
    host_loopback: bytes | None
    allow_host: bool
    dns: list[tuple[bytes, int]]
    hosts: dict[str, bytes]
    pcap: str | None
    routes: list[RouteSpec]
    forwards: list[ForwardSpec]
    shape_up: ShapeSpec | None
    shape_down: ShapeSpec | None
    scenario: Scenario | None
    control: str | None
    layer3: bool
    verbose: int

    @classmethod
    def from_options(cls, *, layout: Layout = NAMESPACE, **options: Any) -> Settings:
        """Check the options together; raises `Failure`."""
        try:
            plan = AddressPlan.from_subnet(options["subnet"], mtu=options["mtu"], layout=layout)
            loopback = options["host_loopback"]
            shape_up, shape_down = _shapes(options)
            hosts = [parse_host_entry(text) for text in options["add_host"]]
            if twice := {name for name, _ in hosts if [n for n, _ in hosts].count(name) > 1}:
                raise PlanError(f"--add-host: '{min(twice)}' is given more than one address")
            return cls(
                plan=plan,
                publish=[Publish.parse(text) for text in options["publish"]],
                host_loopback=None if loopback is None else parse_host_loopback(loopback, plan),
                allow_host=options["allow_host"],
                dns=[parse_resolver(text) for text in options["dns"]],
                hosts=dict(hosts),
                pcap=options["pcap"],
                routes=route_specs(options["route"]),
                forwards=forward_specs(options["forward"]),
                shape_up=shape_up,
                shape_down=shape_down,
                scenario=_scenario(options["scenario"]),
                control=options["control"],
                layer3=options.get("tun", False),
                verbose=options["verbose"],
            )
        except PlanError as error:
            raise Failure(str(error)) from None

    def gateway_options(self) -> dict[str, Any]:
        """The keyword arguments of `open_gateway`."""
        return {
            "plan": self.plan,
            "publish": self.publish,
            "host_loopback": self.host_loopback,
            "allow_host": self.allow_host,
            "dns": self.dns,
            "hosts": self.hosts,
            "pcap": self.pcap,
            "shape_up": self.shape_up,
            "shape_down": self.shape_down,
        }

    @contextlib.asynccontextmanager
    async def serving(self, gateway: Gateway) -> AsyncIterator[None]:
        """Serve the control socket, follow the scenario, and bridge, as long as the block; OSError."""
        if self.routes or self.forwards:
            bridge = gateway.bridge
            try:
                for route in self.routes:
                    bridge.add_route(route)
                for forward in self.forwards:
                    bridge.add_forward(forward)
            except ValueError as error:
                raise OSError(errno.EINVAL, str(error)) from None
        async with contextlib.AsyncExitStack() as stack:
            if self.control != "none":
                from tunstack.api.control import control_socket

                await stack.enter_async_context(control_socket(gateway, self.control))
            if (scenario := self.scenario) is not None:
                from tunstack.background import beside

                await stack.enter_async_context(beside(lambda: gateway.follow(scenario)))
            yield

    def start_log(self) -> None:
        """Send the log to stderr if it is wanted; say it if the C helper is missing."""
        if native.warning is not None:
            click.echo(f"tunstack: {native.warning}", err=True)
        if self.verbose:
            import logging

            level = logging.INFO if self.verbose == 1 else logging.DEBUG
            logging.basicConfig(level=level, format="tunstack: %(message)s")


def route_specs(texts: Sequence[str]) -> list[RouteSpec]:
    """The routes that `texts` are; `Failure`."""
    if not texts:
        return []
    from tunstack.vsock.routes import RouteSpec

    return _parsed("route", RouteSpec.parse, texts)


def forward_specs(texts: Sequence[str]) -> list[ForwardSpec]:
    """The forwards that `texts` are; `Failure`."""
    if not texts:
        return []
    from tunstack.vsock.routes import ForwardSpec

    return _parsed("forward", ForwardSpec.parse, texts)


def _parsed(option: str, parse: Callable[[str], Spec], texts: Sequence[str]) -> list[Spec]:
    from tunstack.vsock.addresses import AddressError

    try:
        return [parse(text) for text in texts]
    except AddressError as error:
        raise Failure(f"--{option}: {error}") from None


def _scenario(file: str | None) -> Scenario | None:
    if file is None:
        return None
    from tunstack.link.shaping.scenario import Scenario
    from tunstack.link.shaping.spec import ShapeError

    try:
        with open(file, encoding="utf-8") as lines:
            return Scenario.parse(lines.read())
    except OSError as error:
        raise failure_of(error) from None
    except UnicodeDecodeError:
        raise Failure(f"--scenario: '{file}' is not text") from None
    except ShapeError as error:
        raise Failure(f"--scenario: '{file}': {error}") from None


def _shapes(options: dict[str, Any]) -> tuple[ShapeSpec | None, ShapeSpec | None]:
    """The shaping of both directions, up first."""
    words: dict[str, str | None] = {"up": None, "down": None}
    if options["profile"] is not None:
        from tunstack.link.shaping.profiles import find

        try:
            profile = find(options["profile"])
        except ValueError as error:
            raise Failure(f"--profile: {error}") from None
        words = {"up": profile.up, "down": profile.down}
    for way in words:
        if options[f"shape_{way}"] is not None:
            words[way] = options[f"shape_{way}"]
    return _shape("--shape-up", words["up"]), _shape("--shape-down", words["down"])


def _shape(option: str, words: str | None) -> ShapeSpec | None:
    if words is None:
        return None
    from tunstack.link.shaping.spec import ShapeError, ShapeSpec

    try:
        return ShapeSpec.parse(words)
    except ShapeError as error:
        raise Failure(f"{option}: {error}") from None


def guest_options(function: Function) -> Function:
    """Add the shared options to a click command about one guest."""
    return _with_options(
        NAMESPACE,
        "The guest's IPv4 network: gateway .2, DNS .3, guest .100. IPv6 is fd00::/64: ::2, ::3, ::100.",
        function,
    )


def machine_options(function: Function) -> Function:
    """Add them to one about virtual machines."""
    return _with_options(
        MACHINES,
        "The IPv4 network: gateway and DNS .1, first machine .2, and .254 kept for --host-loopback. IPv6 is "
        "fd00:7f::/64: ::1, ::2.",
        function,
    )


def _with_options(layout: Layout, network: str, function: Function) -> Function:
    subnet = click.option(
        "--subnet", default=layout.subnet, show_default=True, metavar="NETWORK", help=network
    )
    for option in reversed((*_OPTIONS[:1], subnet, *_OPTIONS[1:])):
        function = option(function)
    return function


def tun_option(function: Function) -> Function:
    """Add `--tun`, for commands that make the device."""
    return click.option("--tun", is_flag=True, help="Use a layer-3 device (TUN) in place of a TAP.")(function)
