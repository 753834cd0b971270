"""The host's resolvers: what resolv.conf(5) says, read again when the file changes.

The syntax is that of the GNU C library: a keyword at the very start of a line, then a space
or tab; everything else is a comment or noise and is skipped. Its limits are kept as well, so
that the gateway asks the servers that a program on the host would ask.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import stat
from collections.abc import Iterable
from typing import Protocol

MAX_NAMESERVERS = 3
"""MAXNS of resolv.conf(5): a fourth nameserver line has no effect."""
MAX_FIXED_NAMESERVERS = 8
"""Servers that an explicit list may name: each may cost a socket per query under way."""
MAX_SEARCH = 32
"""Search domains kept; the C library has no limit since 2.26, a DHCP option has one."""
MAX_TIMEOUT = 30
MAX_ATTEMPTS = 5
MAX_NDOTS = 15
"""Caps that resolv.conf(5) gives for `timeout`, `attempts` and `ndots`."""
MAX_FILE = 64 * 1024
"""Bytes of the file that are read."""
CHECK_INTERVAL = 1.0
"""Seconds between two looks at the file."""


@dataclasses.dataclass(frozen=True, slots=True)
class Nameserver:
    """Where queries go: 4 or 16 address bytes, an interface name or index for link-local ones."""

    address: bytes
    scope: str = ""
    port: int = 53


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resolvers:
    """The content of a resolv.conf. `timeout` is in seconds, per attempt and server."""

    nameservers: tuple[Nameserver, ...]
    search: tuple[str, ...] = ()
    timeout: float = 5.0
    attempts: int = 2
    ndots: int = 1


class Upstreams(Protocol):
    """Tells which resolvers to use now."""

    def current(self, now: float) -> Resolvers: ...


LOCAL_RESOLVER = Nameserver(b"\x7f\x00\x00\x01")
"""resolv.conf(5): without a nameserver entry it is the one on the local machine."""


def parse_nameserver(text: str, port: int = 53) -> Nameserver | None:
    """The server that `text` names ("192.0.2.1", "fe80::1%eth0"), or None if it names none."""
    host, _, scope = text.partition("%")
    try:
        if ":" in host:
            return Nameserver(socket.inet_pton(socket.AF_INET6, host), scope, port)
        if scope:
            return None
        # inet_aton and not inet_pton: the C library takes short forms such as 127.1 here.
        return Nameserver(socket.inet_aton(host), "", port)
    except (OSError, ValueError):
        return None


def parse_resolv_conf(text: str) -> Resolvers:
    """What `text` says; any text has a meaning, lines that make no sense are skipped."""
    nameservers: list[Nameserver] = []
    search: tuple[str, ...] = ()
    options: dict[str, int] = {}
    for line in text.split("\n"):
        if not line or line[0] in "#; \t":
            continue
        keyword, *words = line.split() or ("",)
        if not words:
            continue
        if keyword == "nameserver":
            server = parse_nameserver(words[0].split("#")[0].split(";")[0])
            if server is not None and len(nameservers) < MAX_NAMESERVERS:
                nameservers.append(server)
        elif keyword == "search":
            search = _domains(words)
        elif keyword == "domain":
            search = _domains(words[:1])
        elif keyword == "options":
            _read_options(words, options)
    return Resolvers(
        nameservers=tuple(nameservers) or (LOCAL_RESOLVER,),
        search=search,
        timeout=float(min(max(options.get("timeout", 5), 1), MAX_TIMEOUT)),
        attempts=min(max(options.get("attempts", 2), 1), MAX_ATTEMPTS),
        ndots=min(options.get("ndots", 1), MAX_NDOTS),
    )


def _domains(words: Iterable[str]) -> tuple[str, ...]:
    # These may be written into the guest's resolv.conf: nothing but plain printable names.
    plain = (word for word in words if word.isascii() and word.isprintable() and word[0] not in "#;")
    return tuple(plain)[:MAX_SEARCH]


def _read_options(words: Iterable[str], options: dict[str, int]) -> None:
    for word in words:
        name, _, value = word.partition(":")
        if name in ("timeout", "attempts", "ndots") and value.isascii() and value.isdigit():
            options[name] = int(value[:9])


class ResolvConf:
    """The resolvers of the file at `path`, looked at again at most once a second.

    A file that is missing, unreadable or no regular file changes nothing: the last content
    that could be read stays in force, and before there is one, the local machine's resolver.
    """

    def __init__(self, path: str = "/etc/resolv.conf") -> None:
        self.path = path
        self._resolvers = Resolvers(nameservers=(LOCAL_RESOLVER,))
        self._identity: tuple[int, ...] | None = None
        self._checked: float | None = None

    def current(self, now: float) -> Resolvers:
        """The resolvers in force at `now` (seconds on any clock that does not run backwards)."""
        if self._checked is None or now - self._checked >= CHECK_INTERVAL:
            self._checked = now
            try:
                if _identity(os.stat(self.path)) != self._identity:
                    self._read()
            except (OSError, ValueError):
                self._identity = None
        return self._resolvers

    def _read(self) -> None:
        # Not blocking: a FIFO in the file's place must not stop the gateway.
        descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                self._identity = None
                return
            content = os.read(descriptor, MAX_FILE)
        finally:
            os.close(descriptor)
        self._resolvers = parse_resolv_conf(content.decode("ascii", "replace"))
        self._identity = _identity(status)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


class FixedResolvers:
    """An explicit list of servers in the place of a resolv.conf.

    Raises ValueError for an empty list or one of more than `MAX_FIXED_NAMESERVERS`.
    """

    def __init__(
        self, nameservers: Iterable[bytes | Nameserver], *, timeout: float = 5.0, attempts: int = 2
    ) -> None:
        servers = tuple(Nameserver(item) if isinstance(item, bytes) else item for item in nameservers)
        if not 1 <= len(servers) <= MAX_FIXED_NAMESERVERS:
            raise ValueError(f"between 1 and {MAX_FIXED_NAMESERVERS} DNS servers can be given")
        self._resolvers = Resolvers(nameservers=servers, timeout=timeout, attempts=attempts)

    def current(self, now: float) -> Resolvers:
        """The same servers at any time."""
        return self._resolvers
