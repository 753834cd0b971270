"""The URLs of links: where virtual machines plug in, and how frames go there.

    qemu+unix:///PATH      frames behind their lengths, over a UNIX socket; qemu+tcp://HOST:PORT: over TCP
    qemu+fd://N            an inherited socket: a stream, datagrams or SOCK_SEQPACKET; one that listens, too
    dgram:///LOCAL         UNIX datagrams; ?peer=/REMOTE, or whoever sends first
    vfkit:///LOCAL         the same, with the greeting of vfkit
    bess:///PATH           UNIX SOCK_SEQPACKET, as User Mode Linux has it
    vpnkit:///PATH         a UNIX socket with vpnkit's handshake, as hyperkit has it
    stdio:                 standard input and output, framed as by vpnkit
    unix:///PATH           agents, which ask for their link by HTTP (`tunstack.vsock.upgrade`); so do those at
                           tcp://HOST:PORT, vsock://CID:PORT, hvsock://VM/SERVICE, and unix:///PATH?port=N,
                           where a monitor with hybrid vsock connects

Words behind a `?`: connect=yes dials where else would be listened; isolated=yes keeps the machines of
isolated links from each other; guard=no believes what the machines say of their addresses;
trust-checksums=yes what they say of checksums.
"""

from __future__ import annotations

import dataclasses
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from tunstack.vsock.addresses import Address, AddressError, TcpAddress, UnixAddress, parse_address

Protocol = Literal["qemu", "dgram", "vfkit", "bess", "vpnkit", "stdio", "agent"]

_SCHEMES: dict[str, tuple[Protocol, str]] = {
    "qemu+unix": ("qemu", "unix"),
    "qemu+tcp": ("qemu", "tcp"),
    "qemu+fd": ("qemu", "fd"),
    "dgram": ("dgram", "unix"),
    "vfkit": ("vfkit", "unix"),
    "bess": ("bess", "unix"),
    "vpnkit": ("vpnkit", "unix"),
    "stdio": ("stdio", "stdio"),
    "unix": ("agent", "unix"),
    "tcp": ("agent", "tcp"),
    "vsock": ("agent", "vsock"),
    "hvsock": ("agent", "hvsock"),
}
"""How frames are carried, and the scheme of the address."""
_SWITCHES = ("connect", "isolated", "guard", "trust-checksums")
_CAN_DIAL = ("qemu+unix", "qemu+tcp", "bess")


class LinkError(ValueError):
    """A link cannot be what its URL says; the message is one sentence."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What a URL says.

    Attributes:
        url: the URL.
        protocol: how frames are carried.
        address: where; a descriptor, or None for standard input and output.
        connect: dial it.
        peer: the path of the other end of a datagram socket, if it is known.
        is_isolated, is_guarded: of the switch's ports; see `Gateway.connect`.
        is_trusted: checksums are right, whatever they are.
    """

    url: str
    protocol: Protocol
    address: Address | int | None = None
    connect: bool = False
    peer: str | None = None
    is_isolated: bool = False
    is_guarded: bool = True
    is_trusted: bool = False

    @classmethod
    def parse(cls, url: str) -> Link:
        """The link of `url`; `LinkError` if there can be none."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise LinkError(f"'{url}' is no URL: {error}") from None
        if parts.scheme not in _SCHEMES:
            raise LinkError(f"'{url}' is no link: it begins with one of {', '.join(_SCHEMES)}")
        protocol, scheme = _SCHEMES[parts.scheme]
        words = dict(parse_qsl(parts.query, keep_blank_values=True))
        peer = words.pop("peer", None)
        if peer is not None and protocol != "dgram":
            raise LinkError(f"'{url}': only dgram: has a peer")
        port = words.pop("port", None) if parts.scheme == "unix" else None
        switches = {name: _switch(url, name, words.pop(name, None)) for name in _SWITCHES}
        if words or parts.fragment:
            raise LinkError(
                f"'{url}': the words behind the address are {', '.join(_SWITCHES)}, with =yes or =no"
            )
        if switches["connect"] and parts.scheme not in _CAN_DIAL:
            raise LinkError(f"'{url}': only {', '.join(_CAN_DIAL)} can be dialled")
        return cls(
            url=url,
            protocol=protocol,
            address=_address(url, scheme, parts.netloc, parts.path, port),
            connect=bool(switches["connect"]),
            peer=None if peer is None else _path(url, peer),
            is_isolated=bool(switches["isolated"]),
            is_guarded=switches["guard"] is not False,
            is_trusted=bool(switches["trust-checksums"]),
        )


def _switch(url: str, name: str, value: str | None) -> bool | None:
    if value not in (None, "yes", "no"):
        raise LinkError(f"'{url}': {name} is yes or no")
    return None if value is None else value == "yes"


def _address(url: str, scheme: str, netloc: str, path: str, port: str | None) -> Address | int | None:
    if scheme == "stdio":
        if netloc or path not in ("", "/"):
            raise LinkError(f"'{url}': nothing may stand behind stdio:")
        return None
    if scheme == "fd":
        if not (netloc.isascii() and netloc.isdecimal()) or path not in ("", "/"):
            raise LinkError(f"'{url}' is not the number of a descriptor, as in qemu+fd://3")
        return int(netloc)
    try:
        address = parse_address(f"{scheme}://{netloc}{path}" + ("" if port is None else f"?port={port}"))
    except AddressError as error:
        raise LinkError(f"'{url}': {error.reason}") from None
    if isinstance(address, TcpAddress) and not address.port:
        raise LinkError(f"'{url}' has no host and port, as in qemu+tcp://127.0.0.1:5555")
    return address


def _path(url: str, path: str) -> str:
    try:
        return UnixAddress(path).path
    except AddressError as error:
        raise LinkError(f"'{url}': {error.reason}") from None
