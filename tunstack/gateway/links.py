"""The URLs of links: where virtual machines plug in, and how frames go there.

    qemu+unix:///PATH      frames behind their lengths, over a UNIX socket; qemu+tcp://HOST:PORT: over TCP
    qemu+fd://N            an inherited socket: a stream, datagrams or SOCK_SEQPACKET; one that listens, too
    dgram:///LOCAL         UNIX datagrams; ?peer=/REMOTE, or whoever sends first
    vfkit:///LOCAL         the same, with the greeting of vfkit
    bess:///PATH           UNIX SOCK_SEQPACKET, as User Mode Linux has it
    vpnkit:///PATH         a UNIX socket with vpnkit's handshake, as hyperkit has it
    stdio:                 standard input and output, framed as by vpnkit

Words behind a `?`: connect=yes dials where else would be listened; isolated=yes keeps the machines of
isolated links from each other; guard=no believes what the machines say of their addresses;
trust-checksums=yes what they say of checksums.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

Protocol = Literal["qemu", "dgram", "vfkit", "bess", "vpnkit", "stdio"]
Kind = Literal["unix", "tcp", "fd", "stdio"]

_SCHEMES: dict[str, tuple[Protocol, Kind]] = {
    "qemu+unix": ("qemu", "unix"),
    "qemu+tcp": ("qemu", "tcp"),
    "qemu+fd": ("qemu", "fd"),
    "dgram": ("dgram", "unix"),
    "vfkit": ("vfkit", "unix"),
    "bess": ("bess", "unix"),
    "vpnkit": ("vpnkit", "unix"),
    "stdio": ("stdio", "stdio"),
}
_SWITCHES = ("connect", "isolated", "guard", "trust-checksums")
_CAN_DIAL = ("qemu+unix", "qemu+tcp", "bess")
_PATH_BYTES = 107


class LinkError(ValueError):
    """A link cannot be what its URL says; the message is one sentence."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What a URL says.

    Attributes:
        url: the URL.
        protocol: how frames are carried.
        kind: over what.
        address: a path, a host and port, or a descriptor.
        connect: dial it.
        peer: the path of the other end of a datagram socket, if it is known.
        is_isolated, is_guarded: of the switch's ports; see `Gateway.connect`.
        is_trusted: checksums are right, whatever they are.
    """

    url: str
    protocol: Protocol
    kind: Kind
    address: str | tuple[str, int] | int = ""
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
        protocol, kind = _SCHEMES[parts.scheme]
        words = dict(parse_qsl(parts.query, keep_blank_values=True))
        peer = words.pop("peer", None)
        if peer is not None and protocol != "dgram":
            raise LinkError(f"'{url}': only dgram: has a peer")
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
            kind=kind,
            address=_address(url, kind, parts.netloc, parts.path),
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


def _address(url: str, kind: Kind, netloc: str, path: str) -> str | tuple[str, int] | int:
    if kind == "unix":
        if netloc:
            raise LinkError(f"'{url}' has no absolute path, as in {url.partition(':')[0]}:///run/vm.sock")
        return _path(url, unquote(path))
    if path not in ("", "/"):
        raise LinkError(f"'{url}': nothing may stand behind the address")
    if kind == "stdio":
        if netloc:
            raise LinkError(f"'{url}': nothing may stand behind stdio:")
        return ""
    if kind == "fd":
        if not (netloc.isascii() and netloc.isdecimal()):
            raise LinkError(f"'{url}' is not the number of a descriptor, as in qemu+fd://3")
        return int(netloc)
    try:
        parts = urlsplit(f"//{netloc}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise LinkError(f"'{url}' has no host and port, as in qemu+tcp://127.0.0.1:5555")
    return host, port


def _path(url: str, path: str) -> str:
    if not path.startswith("/") or path == "/" or "\0" in path:
        raise LinkError(f"'{url}' has no absolute path, as in {url.partition(':')[0]}:///run/vm.sock")
    if len(os.fsencode(path)) > _PATH_BYTES:
        raise LinkError(f"'{url}': the path of a socket has at most {_PATH_BYTES} bytes")
    return path
