"""The resolvers of Windows: what GetNetworkParams of iphlpapi.dll says, asked anew every few seconds.

It knows those of IPv4 alone, of the interfaces that are up. Source: its page, and iptypes.h.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Container
from typing import Any

import cffi

from tunstack.services.resolv_conf import LOCAL_RESOLVER, MAX_FIXED_NAMESERVERS, Nameserver, Resolvers

if sys.platform == "win32":
    from tunstack import dll

INTERVAL = 5.0
"""Seconds between two questions."""
BUFFER_OVERFLOW = 111
DEFINITIONS = """
typedef struct address {
    struct address *Next;
    char IpAddress[16], IpMask[16];
    uint32_t Context;
} IP_ADDR_STRING;
typedef struct {
    char HostName[132], DomainName[132];
    IP_ADDR_STRING *CurrentDnsServer;
    IP_ADDR_STRING DnsServerList;
    uint32_t NodeType;
    char ScopeId[260];
    uint32_t EnableRouting, EnableProxy, EnableDns;
} FIXED_INFO;
uint32_t __stdcall GetNetworkParams(FIXED_INFO *info, uint32_t *size);
"""

ffi: Any = cffi.FFI()
ffi.cdef(DEFINITIONS)


def resolvers_of(info: Any, own: Container[bytes]) -> Resolvers:
    """What a FIXED_INFO says, without the servers that are our `own`."""
    nameservers: list[Nameserver] = []
    entry = info.DnsServerList
    while len(nameservers) < MAX_FIXED_NAMESERVERS:
        try:
            address = socket.inet_pton(socket.AF_INET, ffi.string(entry.IpAddress).decode("ascii", "replace"))
        except OSError:
            address = b""  # Windows has none, and says so by an empty text
        if address and address not in own:
            nameservers.append(Nameserver(address))
        if not entry.Next:
            break
        entry = entry.Next[0]
    domain = ffi.string(info.DomainName).decode("ascii", "replace")
    search = (domain,) if domain.isascii() and domain.isprintable() and domain else ()
    return Resolvers(nameservers=tuple(nameservers) or (LOCAL_RESOLVER,), search=search)


class WindowsResolvers:
    """Implements `Upstreams`. What cannot be asked leaves the last answer in force."""

    def __init__(self, own: Container[bytes] = ()) -> None:
        """`own`: addresses that are ourselves, who may be among the resolvers of Windows."""
        self._own = own
        self._resolvers = Resolvers(nameservers=(LOCAL_RESOLVER,))
        self._asked: float | None = None

    def current(self, now: float) -> Resolvers:
        """The resolvers in force at `now` (seconds on any clock that does not run backwards)."""
        if self._asked is None or now - self._asked >= INTERVAL:
            self._asked = now
            self._resolvers = _ask(self._own) or self._resolvers
        return self._resolvers


def _ask(own: Container[bytes]) -> Resolvers | None:
    """What Windows says now, if it does."""
    if sys.platform == "win32":
        library = dll.load_dll(ffi, "iphlpapi.dll", dll.SEARCH_SYSTEM)
        size = ffi.new("uint32_t *", ffi.sizeof("FIXED_INFO"))
        for _ in range(3):  # there may be more from one call to the next
            memory = ffi.new("uint8_t[]", size[0])
            info = ffi.cast("FIXED_INFO *", memory)
            code = library.GetNetworkParams(info, size)
            if not code:
                return resolvers_of(info, own)
            if code != BUFFER_OVERFLOW:
                break
    return None
