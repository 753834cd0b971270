"""Where a service is, as a URL and as what the system wants to be told.

    vsock://CID:PORT               AF_VSOCK; without a CID: any, to listen
    hvsock://VM/SERVICE            Hyper-V sockets; GUIDs, or a word for VM and a port for SERVICE
    unix:///PATH                   a UNIX socket
    unix:///PATH?port=N            hybrid vsock: port N of the machine whose monitor has the socket at PATH
    tcp://HOST:PORT                TCP, IPv6 in brackets
    udp://HOST:PORT                UDP, where a route or a forward leads to it (`parse_udp_address`)

What is printed is what was parsed: `parse_address(str(address)) == address`.

CIDs and their names are those of vsock(7). A Hyper-V service is a GUID; those of Linux guests are made of a
port by a template, and are printed as the port.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from collections.abc import Iterator
from urllib.parse import quote, unquote, urlsplit

CID_ANY = 0xFFFFFFFF
CID_HYPERVISOR, CID_LOCAL, CID_HOST = 0, 1, 2
PORT_ANY = 0xFFFFFFFF
"""vsock(7): VMADDR_CID_ANY and its like."""
_CIDS = {"hypervisor": CID_HYPERVISOR, "local": CID_LOCAL, "host": CID_HOST, "any": CID_ANY, "": CID_ANY}

SERVICE_TEMPLATE = uuid.UUID("00000000-facb-11e6-bd58-64006a7986d3")
"""The service of a vsock port: the port is the first four bytes."""
_TEMPLATE_BITS = 96

WILDCARD = uuid.UUID(int=0)
VM_IDS = {
    "wildcard": WILDCARD,
    "broadcast": uuid.UUID("ffffffff-ffff-ffff-ffff-ffffffffffff"),
    "children": uuid.UUID("90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd"),
    "loopback": uuid.UUID("e0e16197-dd56-4a10-9195-5ee7a155a838"),
    "parent": uuid.UUID("a42e7cda-d03f-480c-9cc2-a4de20abb878"),
    "silohost": uuid.UUID("36bd0c5c-7276-4223-88ba-7d03b654c568"),
}
"""The partitions that have a name: HV_GUID_WILDCARD and its like."""
_VM_NAMES = {vm: name for name, vm in VM_IDS.items()}

PATH_BYTES = 107
"""Of the path of a UNIX socket at the most: `struct sockaddr_un` less the zero at its end."""
_SAFE = "/:@!$&'()*+,;=~"


class AddressError(ValueError):
    """The text is no address; the message is one sentence.

    Attributes:
        reason: the sentence without the text.
    """

    def __init__(self, reason: str, text: str | None = None) -> None:
        super().__init__(reason if text is None else f"'{text}' is no address: {reason}")
        self.reason = reason


@dataclasses.dataclass(frozen=True, slots=True)
class VsockAddress:
    """A port of a machine, as AF_VSOCK has it. `cid` may be `CID_ANY` to listen."""

    cid: int
    port: int

    def __post_init__(self) -> None:
        if not (0 <= self.cid <= CID_ANY and 0 <= self.port < PORT_ANY):
            raise AddressError(f"CID {self.cid} and port {self.port} are not those of a vsock service")

    def __str__(self) -> str:
        return f"vsock://{'' if self.cid == CID_ANY else self.cid}:{self.port}"


@dataclasses.dataclass(frozen=True, slots=True)
class HyperVAddress:
    """A service of a partition of Hyper-V."""

    vm: uuid.UUID
    service: uuid.UUID

    @classmethod
    def of_port(cls, vm: uuid.UUID, port: int) -> HyperVAddress:
        """The service that is `port` to a Linux guest."""
        return cls(vm, service_of(port))

    def __str__(self) -> str:
        port = port_of(self.service)
        service = self.service if port is None else port
        return f"hvsock://{_VM_NAMES.get(self.vm, self.vm)}/{service}"


@dataclasses.dataclass(frozen=True, slots=True)
class UnixAddress:
    """A UNIX stream socket at an absolute path."""

    path: str

    def __post_init__(self) -> None:
        _check_path(self.path, PATH_BYTES)

    def __str__(self) -> str:
        return f"unix://{_quoted(self.path)}"


@dataclasses.dataclass(frozen=True, slots=True)
class HybridAddress:
    """A vsock port of a machine whose monitor shows its vsock as UNIX sockets.

    To connect to the guest's port is to connect to `path` and ask for it; what a guest connects to comes in
    at `listening`.
    """

    path: str
    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.port < PORT_ANY:
            raise AddressError(f"{self.port} is not the port of a vsock service")
        _check_path(self.path, PATH_BYTES - len(f"_{self.port}"))

    @property
    def listening(self) -> UnixAddress:
        """Where the guest's connections to the host's `port` come in."""
        return UnixAddress(f"{self.path}_{self.port}")

    def __str__(self) -> str:
        return f"unix://{_quoted(self.path)}?port={self.port}"


@dataclasses.dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port of a host, which may be a name."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not self.host or not 0 <= self.port <= 0xFFFF:
            raise AddressError(f"'{self.host}' and {self.port} are no host and port")

    def __str__(self) -> str:
        return f"tcp://{_host_and_port(self.host, self.port)}"


@dataclasses.dataclass(frozen=True, slots=True)
class UdpAddress:
    """A UDP port of a host, which may be a name. It is no `Address`: there is no stream to it."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not self.host or not 1 <= self.port <= 0xFFFF:
            raise AddressError(f"'{self.host}' and {self.port} are no host and port")

    def __str__(self) -> str:
        return f"udp://{_host_and_port(self.host, self.port)}"


Address = VsockAddress | HyperVAddress | UnixAddress | HybridAddress | TcpAddress


def service_of(port: int) -> uuid.UUID:
    """The Hyper-V service that a vsock port is."""
    if not 0 <= port <= 0xFFFFFFFF:
        raise AddressError(f"{port} is no vsock port")
    return uuid.UUID(int=port << _TEMPLATE_BITS | SERVICE_TEMPLATE.int)


def port_of(service: uuid.UUID) -> int | None:
    """The vsock port that a Hyper-V service is; None if it is another one."""
    port = service.int >> _TEMPLATE_BITS
    return port if port << _TEMPLATE_BITS | SERVICE_TEMPLATE.int == service.int and port < PORT_ANY else None


def parse_address(text: str) -> Address:
    """The address that `text` is; `AddressError` if it is none."""
    with _told_of(text):
        parts = urlsplit(text)
        parse = _PARSERS.get(parts.scheme)
        if parse is None:
            raise AddressError(f"it begins with one of {', '.join(f'{name}:' for name in _PARSERS)}")
        if parts.fragment or (parts.query and parts.scheme != "unix"):
            raise AddressError("nothing may stand behind the address")
        return parse(parts.netloc, parts.path, parts.query)


def parse_udp_address(text: str) -> UdpAddress:
    """The address of a UDP service that `text` is; `AddressError` if it is none."""
    with _told_of(text):
        parts = urlsplit(text)
        if parts.scheme != "udp" or parts.query or parts.fragment:
            raise AddressError("it is like udp://127.0.0.1:53")
        return UdpAddress(*_host_of(parts.netloc, parts.path, "udp://127.0.0.1:53"))


@contextlib.contextmanager
def _told_of(text: str) -> Iterator[None]:
    """Errors of the block are `AddressError` that say which text is none."""
    try:
        yield
    except AddressError as error:
        raise AddressError(error.reason, text) from None
    except ValueError as error:
        raise AddressError(str(error), text) from None


def _vsock(netloc: str, path: str, query: str) -> Address:
    cid, colon, port = netloc.rpartition(":")
    if path not in ("", "/") or not colon:
        raise AddressError("it has a CID and a port, as in vsock://2:1024")
    known = _CIDS.get(cid.lower())
    return VsockAddress(_number(cid) if known is None else known, _number(port))


def _hyperv(netloc: str, path: str, query: str) -> Address:
    service = path.removeprefix("/")
    if not service or "/" in service:
        raise AddressError("it has a machine and a service, as in hvsock://parent/1024")
    vm = VM_IDS.get(netloc.lower() or "wildcard")
    return HyperVAddress(
        _guid(netloc) if vm is None else vm,
        service_of(_number(service)) if service.isdecimal() else _guid(service),
    )


def _unix(netloc: str, path: str, query: str) -> Address:
    if netloc:
        raise AddressError("it has an absolute path, as in unix:///run/service.sock")
    if not query:
        return UnixAddress(unquote(path, errors="surrogateescape"))
    word, _, port = query.partition("=")
    if word != "port":
        raise AddressError("only port=N may stand behind the path")
    return HybridAddress(unquote(path, errors="surrogateescape"), _number(port))


def _tcp(netloc: str, path: str, query: str) -> Address:
    return TcpAddress(*_host_of(netloc, path, "tcp://127.0.0.1:80"))


def _host_of(netloc: str, path: str, example: str) -> tuple[str, int]:
    parts = urlsplit(f"//{netloc}")
    if path not in ("", "/") or parts.username is not None or not parts.hostname or parts.port is None:
        raise AddressError(f"it has a host and a port, as in {example}")
    return parts.hostname, parts.port


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_PARSERS = {"vsock": _vsock, "hvsock": _hyperv, "unix": _unix, "tcp": _tcp}


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        raise AddressError(f"'{text}' is no number")
    return int(text)


def _guid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise AddressError(f"'{text}' is no GUID") from None


def _check_path(path: str, most: int) -> None:
    if not path.startswith("/") or path == "/" or "\0" in path:
        raise AddressError("it has an absolute path, as in unix:///run/service.sock")
    if len(os.fsencode(path)) > most:
        raise AddressError(f"the path of a socket has at most {most} bytes")


def _quoted(path: str) -> str:
    return quote(path, safe=_SAFE, errors="surrogateescape")
