"""The configuration file of `tunstack gateway`: YAML, or JSON, with types; what is unknown is an error.

Its words say what the options of the command line say, in the same form, and are checked by the same code;
zones and routes of DNS, which no option can say, are checked here.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, ClassVar

import msgspec
import yaml
from msgspec import Meta

from tunstack.gateway.dns import DnsSettings
from tunstack.gateway.plan import PlanError, parse_host_entry, parse_resolver
from tunstack.ip.addresses import parse_address
from tunstack.services.local_names import LocalNames, Zone, parse_name

MAX_FILE = 1 << 20
"""Bytes of a file that is read."""


class ConfigError(ValueError):
    """The file is no configuration; the message is one sentence, with the place."""


class Part(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What all parts have in common."""


class NetworkPart(Part):
    """The addresses of the virtual network."""

    subnet: Annotated[str | None, Meta(description="IPv4: gateway and DNS .1, first guest .2, host .254")] = (
        None
    )
    mtu: Annotated[int | None, Meta(description="IP MTU of the links, bytes")] = None
    host_loopback: Annotated[str | None, Meta(description="an address for the host's 127.0.0.1")] = None
    allow_host: Annotated[bool, Meta(description="guests may connect to the host's own addresses")] = False


class DhcpPart(Part):
    """Who gets which address."""

    enabled: bool = True
    static: Annotated[dict[str, str], Meta(description="addresses of particular machines, by MAC")] = {}
    leases: Annotated[str | None, Meta(description="the file that leases are kept in")] = None
    lease_time: Annotated[Annotated[float, Meta(ge=60)] | None, Meta(description="seconds")] = None
    search: Annotated[list[str] | None, Meta(description="domains to complete names")] = None


class PatternPart(Part):
    """What is answered for names in which an expression is found."""

    match: Annotated[str, Meta(description="a regular expression, for the name within the zone")]
    addresses: list[str]


class RecordPart(Part):
    """A record as a zone file has it."""

    name: Annotated[str, Meta(description="within the zone; @ is the zone itself")]
    type: str
    value: str


class ZonePart(Part):
    """A zone that the gateway answers for: hosts and records, then patterns, then the default."""

    name: str
    hosts: Annotated[dict[str, list[str]], Meta(description="addresses by name within the zone")] = {}
    records: list[RecordPart] = []
    patterns: list[PatternPart] = []
    default: Annotated[list[str], Meta(description="addresses of all other names")] = []


class DnsPart(Part):
    """Which names are answered here, and who is asked for the others."""

    resolvers: Annotated[
        list[str], Meta(description="in the place of the host's: ADDRESS or ADDRESS:PORT")
    ] = []
    hosts: Annotated[dict[str, str], Meta(description="addresses by name")] = {}
    zones: list[ZonePart] = []
    routes: Annotated[dict[str, list[str]], Meta(description="resolvers by the zone that they are for")] = {}


class Config(Part):
    """The whole file."""

    links: Annotated[list[str], Meta(description="URLs, as for --listen")] = []
    publish: Annotated[list[str], Meta(description="[HOST_IP:]HOST_PORT:GUEST_PORT[/udp]")] = []
    routes: Annotated[list[str], Meta(description="DESTINATION=TARGET, as for --route")] = []
    forwards: Annotated[list[str], Meta(description="LISTENER=TARGET, as for --forward")] = []
    network: NetworkPart = msgspec.field(default_factory=NetworkPart)
    dhcp: DhcpPart = msgspec.field(default_factory=DhcpPart)
    dns: DnsPart = msgspec.field(default_factory=DnsPart)

    def check_bridge(self) -> None:
        """See that routes and forwards are such; `ConfigError`."""
        if self.routes or self.forwards:
            from tunstack.vsock.routes import ForwardSpec, RouteSpec  # late: who has none does not pay for it

            for number, text in enumerate(self.routes):
                _checked(f"routes[{number}]", RouteSpec.parse, text)
            for number, text in enumerate(self.forwards):
                _checked(f"forwards[{number}]", ForwardSpec.parse, text)

    def dns_settings(self) -> DnsSettings:
        """What the part about DNS says; `ConfigError`."""
        part = self.dns
        hosts = {}
        for name, text in part.hosts.items():
            key, address = _checked(f"dns.hosts.{name}", parse_host_entry, f"{name}:{text}")
            hosts[key] = address
        zones = tuple(_zone(f"dns.zones[{number}]", zone) for number, zone in enumerate(part.zones))
        routes = {}
        for zone, servers in part.routes.items():
            _checked(f"dns.routes.{zone}", parse_name, zone)
            routes[zone] = _resolvers(f"dns.routes.{zone}", servers)
            if not servers:
                raise ConfigError(f"dns.routes.{zone}: there is no resolver")
        resolvers = _resolvers("dns.resolvers", part.resolvers)
        return DnsSettings(resolvers=resolvers, hosts=hosts, zones=zones, routes=routes)


def load(path: str | os.PathLike[str]) -> Config:
    """The configuration in the file.

    Raises:
        ConfigError: it cannot be read, or is no configuration.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"'{path}': {error.strerror}") from None
    if len(data) > MAX_FILE:
        raise ConfigError(f"'{path}' is larger than a configuration can be")
    try:
        config = msgspec.convert(yaml.load(data, _Loader) or {}, Config)
        config.dns_settings()
        config.check_bridge()
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        place = "" if where is None else f", line {where.line + 1}"
        raise ConfigError(
            f"'{path}'{place}: {getattr(error, 'problem', None) or 'this is no YAML'}"
        ) from None
    except (msgspec.ValidationError, ConfigError, RecursionError) as error:
        raise ConfigError(f"'{path}': {error}") from None
    return config


def schema() -> dict[str, Any]:
    """The JSON schema of the file."""
    return msgspec.json.schema(Config)


class _Loader(yaml.SafeLoader):
    """YAML whose plain values are what they look like, as in 1.2: a MAC is text, no number to base 60."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile("^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?$"), list("-+0123456789")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^(?:null|~|)$"), ["n", "~", ""])


def _zone(place: str, part: ZonePart) -> Zone:
    records: dict[str, list[tuple[str, str]]] = {}
    for number, record in enumerate(part.records):
        _check_record(f"{place}.records[{number}]", record)
        records.setdefault(record.name, []).append((record.type, record.value))
    zone = Zone(
        name=part.name,
        hosts={name: _addresses(f"{place}.hosts.{name}", texts) for name, texts in part.hosts.items()},
        records=records,
        patterns=[
            (one.match, _addresses(f"{place}.patterns[{number}]", one.addresses))
            for number, one in enumerate(part.patterns)
        ],
        default=_addresses(f"{place}.default", part.default),
    )
    _checked(place, lambda: LocalNames({}, [zone]))
    return zone


def _check_record(place: str, record: RecordPart) -> None:
    from tunstack.services.dns_messages import parse_record  # late: it brings a DNS library

    _checked(place, parse_record, record.type, record.value)


def _addresses(place: str, texts: list[str]) -> list[bytes]:
    return [_checked(place, parse_address, text) for text in texts]


def _resolvers(place: str, texts: list[str]) -> tuple[tuple[bytes, int], ...]:
    return tuple(_checked(place, parse_resolver, text) for text in texts)


def _checked(place: str, parse: Any, *arguments: Any) -> Any:
    try:
        return parse(*arguments)
    except (PlanError, ValueError) as error:
        raise ConfigError(f"{place}: {error}") from None
