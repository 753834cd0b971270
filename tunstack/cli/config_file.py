"""A configuration file beside the options of `tunstack gateway`: what both say together, now and later."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tunstack.cli import Failure
from tunstack.cli.options import forward_specs, route_specs
from tunstack.gateway.config import Config, ConfigError, load
from tunstack.gateway.dns import DnsSettings
from tunstack.gateway.plan import parse_host_entry, parse_resolver

if TYPE_CHECKING:
    from tunstack.vsock.routes import ForwardSpec, RouteSpec


class ConfigFile:
    """The file, as it was read last.

    Attributes:
        path: where it is.
        config: what it says.
    """

    def __init__(self, path: str) -> None:
        """`Failure` if it is no configuration."""
        self.path = path
        try:
            self.config = load(path)
        except ConfigError as error:
            raise Failure(f"--config: {error}") from None
        self._options: dict[str, Any] = {}

    def add_to(self, options: dict[str, Any]) -> None:
        """Complete `options` of the command line, which come on top, by the file."""
        self._options = dict(options)
        config = self.config
        options["listen"] = (*config.links, *options["listen"])
        options["publish"] = (*config.publish, *options["publish"])
        options["route"] = (*config.routes, *options["route"])
        options["forward"] = (*config.forwards, *options["forward"])
        for name in ("subnet", "mtu", "host_loopback"):
            value = getattr(config.network, name)
            if value is not None and not _is_given(name):
                options[name] = value
        options["allow_host"] = options["allow_host"] or config.network.allow_host
        options["dns"] = options["dns"] or tuple(config.dns.resolvers)
        options["add_host"] = (
            *(f"{name}:{ip}" for name, ip in config.dns.hosts.items()),
            *options["add_host"],
        )
        static = (f"{mac}={ip}" for mac, ip in config.dhcp.static.items())
        options["static_lease"] = (*static, *options["static_lease"])
        options["leases"] = options["leases"] or config.dhcp.leases
        options["no_dhcp"] = options["no_dhcp"] or not config.dhcp.enabled

    def dns_settings(self) -> DnsSettings:
        """What file and options say of DNS."""
        settings = self.config.dns_settings()
        hosts = dict(settings.hosts) | dict(map(parse_host_entry, self._options["add_host"]))
        resolvers = tuple(map(parse_resolver, self._options["dns"])) or settings.resolvers
        return dataclasses.replace(settings, hosts=hosts, resolvers=resolvers)

    def links(self) -> tuple[str, ...]:
        """The URLs of both."""
        return (*self.config.links, *self._options["listen"])

    def routes(self) -> list[RouteSpec]:
        """The routes of both; `Failure`."""
        return route_specs((*self.config.routes, *self._options["route"]))

    def forwards(self) -> list[ForwardSpec]:
        """The forwards of both; `Failure`."""
        return forward_specs((*self.config.forwards, *self._options["forward"]))

    def read_again(self) -> bool:
        """Read it again; whether parts differ that cannot be changed now. `ConfigError`: nothing is new."""
        before, self.config = self.config, load(self.path)
        return any(getattr(before, name) != getattr(self.config, name) for name in _FIXED)


_FOLLOWED = ("links", "dns", "routes", "forwards")
_FIXED = tuple(name for name in Config.__struct_fields__ if name not in _FOLLOWED)


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE
