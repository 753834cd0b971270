"""iphlpapi.dll by cffi: what Windows knows of an interface, and how it is told addresses, routes, resolvers.

Theory of operation. An interface is known by its LUID, a number that Wintun tells. Windows hands out rows
with defaults, which are filled in and given back; each function returns the error itself. Types are of fixed
width, so the same text serves a library of the same functions elsewhere, with which tests run. Functions are
looked up when they are first called: older Windows has not all of them, and wine hardly any that writes.

Everything may be done twice: what exists already is as good as made. Nothing is undone here, as addresses,
routes and resolvers go with the adapter.

Source: netioapi.h and the pages about its functions; DNS_INTERFACE_SETTINGS of netioapi.h 10.0.19041.
"""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Sequence
from typing import Any

import cffi

from tunstack import dll

DEFINITIONS = """
typedef struct { uint32_t data1; uint16_t data2, data3; uint8_t data4[8]; } GUID;
typedef struct {
    uint16_t si_family, port;
    union {
        uint8_t ipv4[4];
        struct { uint32_t flow; uint8_t address[16]; uint32_t scope; } ipv6;
    };
} SOCKADDR_INET;
typedef struct { SOCKADDR_INET Prefix; uint8_t PrefixLength; } IP_ADDRESS_PREFIX;
typedef struct {
    SOCKADDR_INET Address;
    uint64_t InterfaceLuid;
    uint32_t InterfaceIndex;
    int32_t PrefixOrigin, SuffixOrigin;
    uint32_t ValidLifetime, PreferredLifetime;
    uint8_t OnLinkPrefixLength, SkipAsSource;
    int32_t DadState;
    uint32_t ScopeId;
    int64_t CreationTimeStamp;
} MIB_UNICASTIPADDRESS_ROW;
typedef struct {
    uint16_t Family;
    uint64_t InterfaceLuid;
    uint32_t InterfaceIndex, MaxReassemblySize;
    uint64_t InterfaceIdentifier;
    uint32_t MinRouterAdvertisementInterval, MaxRouterAdvertisementInterval;
    uint8_t AdvertisingEnabled, ForwardingEnabled, WeakHostSend, WeakHostReceive, UseAutomaticMetric,
        UseNeighborUnreachabilityDetection, ManagedAddressConfigurationSupported,
        OtherStatefulConfigurationSupported, AdvertiseDefaultRoute;
    int32_t RouterDiscoveryBehavior;
    uint32_t DadTransmits, BaseReachableTime, RetransmitTime, PathMtuDiscoveryTimeout;
    int32_t LinkLocalAddressBehavior;
    uint32_t LinkLocalAddressTimeout, ZoneIndices[16], SitePrefixLength, Metric, NlMtu;
    uint8_t Connected, SupportsWakeUpPatterns, SupportsNeighborDiscovery, SupportsRouterDiscovery;
    uint32_t ReachableTime;
    uint8_t TransmitOffload, ReceiveOffload, DisableDefaultRoutes;
} MIB_IPINTERFACE_ROW;
typedef struct {
    uint64_t InterfaceLuid;
    uint32_t InterfaceIndex;
    IP_ADDRESS_PREFIX DestinationPrefix;
    SOCKADDR_INET NextHop;
    uint8_t SitePrefixLength;
    uint32_t ValidLifetime, PreferredLifetime, Metric;
    int32_t Protocol;
    uint8_t Loopback, AutoconfigureAddress, Publish, Immortal;
    uint32_t Age;
    int32_t Origin;
} MIB_IPFORWARD_ROW2;
typedef struct {
    uint32_t Version;
    uint64_t Flags;
    const char16_t *Domain, *NameServer, *SearchList;
    uint32_t RegistrationEnabled, RegisterAdapterName, EnableLLMNR, QueryAdapterName;
    const char16_t *ProfileNameServer;
} DNS_INTERFACE_SETTINGS;
uint32_t __stdcall ConvertInterfaceAliasToLuid(const char16_t *alias, uint64_t *luid);
uint32_t __stdcall ConvertInterfaceLuidToGuid(const uint64_t *luid, GUID *guid);
void __stdcall InitializeUnicastIpAddressEntry(MIB_UNICASTIPADDRESS_ROW *row);
uint32_t __stdcall CreateUnicastIpAddressEntry(const MIB_UNICASTIPADDRESS_ROW *row);
void __stdcall InitializeIpInterfaceEntry(MIB_IPINTERFACE_ROW *row);
uint32_t __stdcall GetIpInterfaceEntry(MIB_IPINTERFACE_ROW *row);
uint32_t __stdcall SetIpInterfaceEntry(MIB_IPINTERFACE_ROW *row);
void __stdcall InitializeIpForwardEntry(MIB_IPFORWARD_ROW2 *row);
uint32_t __stdcall CreateIpForwardEntry2(const MIB_IPFORWARD_ROW2 *row);
uint32_t __stdcall SetInterfaceDnsSettings(GUID guid, const DNS_INTERFACE_SETTINGS *settings);
"""
FUNCTIONS = tuple(re.findall(r"__stdcall (\w+)", DEFINITIONS))
IPV4, IPV6 = 2, 23
"""AF_INET and AF_INET6 as Windows counts."""
FOREVER = 0xFFFFFFFF
"""A lifetime without end."""
DAD_PREFERRED = 4
"""IpDadStatePreferred: an address is used at once, without looking for others that have it."""
LEAST_MTU6 = 1280

ACCESS_DENIED, NOT_SUPPORTED, INVALID_PARAMETER, NO_FUNCTION, NOT_FOUND, EXISTS = 5, 50, 87, 127, 1168, 5010
_SENTENCES = {
    ACCESS_DENIED: "Windows lets an administrator alone do this: start the program elevated",
    NOT_SUPPORTED: "Windows does not have this for the interface",
    INVALID_PARAMETER: "Windows does not take this",
    NO_FUNCTION: "this version of Windows has no function for it",
    NOT_FOUND: "the interface is not there, or the protocol is switched off for it",
}
_SETTINGS_VERSION = 1
_DNS_IPV6, _DNS_NAMESERVER = 1, 2

ffi: Any = cffi.FFI()
ffi.cdef(DEFINITIONS)


class InterfaceError(dll.DllError):
    """Windows has refused to change an interface."""

    sentences = _SENTENCES


class Interfaces:
    """The functions about interfaces, with errors as exceptions. Addresses are `bytes`, 4 or 16."""

    def __init__(self, functions: Any) -> None:
        """`functions`: an open library with the functions of iphlpapi.dll."""
        self._functions = functions

    def missing(self) -> list[str]:
        """The functions that this version of Windows does not have."""
        return [name for name in FUNCTIONS if not hasattr(self._functions, name)]

    def luid_of(self, alias: str) -> int | None:
        """The interface that users know by `alias`, if there is one."""
        luid = ffi.new("uint64_t *")
        return None if self._function("ConvertInterfaceAliasToLuid")(alias, luid) else int(luid[0])

    def guid_of(self, luid: int) -> uuid.UUID | None:
        """The identity of an interface, if it is there."""
        guid = self._guid(luid)
        return None if guid is None else uuid.UUID(bytes_le=bytes(ffi.buffer(guid)))

    def set_up(self, luid: int, family: int, mtu: int, metric: int | None) -> None:
        """MTU (bytes) and metric of a family; None: Windows finds a metric itself. No autoconfiguration.

        Raises:
            InterfaceError: `NOT_FOUND`: the family is not there (yet); no right, …
        """
        row = ffi.new("MIB_IPINTERFACE_ROW *")
        self._function("InitializeIpInterfaceEntry")(row)
        row.Family, row.InterfaceLuid = family, luid
        what = "the interface"
        self._call("GetIpInterfaceEntry", what, row)
        if family == IPV4:
            row.SitePrefixLength = 0  # it is read as 64, which would be refused
        row.NlMtu = max(mtu, LEAST_MTU6) if family == IPV6 else mtu
        row.UseAutomaticMetric = metric is None
        row.Metric = metric or 0
        row.DadTransmits = row.RouterDiscoveryBehavior = 0
        row.ManagedAddressConfigurationSupported = row.OtherStatefulConfigurationSupported = 0
        self._call("SetIpInterfaceEntry", what, row)

    def add_address(self, luid: int, address: bytes, length: int) -> None:
        """Give an interface an address, with the `length` of its prefix in bits; `InterfaceError`."""
        row = ffi.new("MIB_UNICASTIPADDRESS_ROW *")
        self._function("InitializeUnicastIpAddressEntry")(row)
        row.InterfaceLuid, row.OnLinkPrefixLength = luid, length
        row.ValidLifetime = row.PreferredLifetime = FOREVER
        row.DadState = DAD_PREFERRED
        _fill(row.Address, address)
        self._call("CreateUnicastIpAddressEntry", "the address", row)

    def add_route(self, luid: int, network: bytes, length: int) -> None:
        """Lead a network (first address, bits) to the other end of an interface; `InterfaceError`."""
        row = ffi.new("MIB_IPFORWARD_ROW2 *")
        self._function("InitializeIpForwardEntry")(row)
        row.InterfaceLuid = luid
        _fill(row.DestinationPrefix.Prefix, network)
        row.DestinationPrefix.PrefixLength = length
        _fill(row.NextHop, bytes(len(network)))  # on the link
        row.Metric = 0  # in addition to the interface's
        self._call("CreateIpForwardEntry2", "the route", row)

    def set_resolvers(self, luid: int, family: int, servers: Sequence[str]) -> None:
        """What resolvers of a family, as text, Windows asks by an interface.

        Raises:
            InterfaceError: `NO_FUNCTION`: Windows is older than 10 2004; …
        """
        what = "the resolvers"
        function = self._function("SetInterfaceDnsSettings", what)
        guid = self._guid(luid)
        if guid is None:
            raise InterfaceError(NOT_FOUND, what)
        text = ffi.new("char16_t[]", ",".join(servers))
        settings = ffi.new("DNS_INTERFACE_SETTINGS *")
        settings.Version = _SETTINGS_VERSION
        settings.Flags = _DNS_NAMESERVER | (_DNS_IPV6 if family == IPV6 else 0)
        settings.NameServer = text
        _check(function(guid[0], settings), what)

    def _guid(self, luid: int) -> Any:
        guid = ffi.new("GUID *")
        code = self._function("ConvertInterfaceLuidToGuid")(ffi.new("uint64_t *", luid), guid)
        return None if code else guid

    def _call(self, name: str, what: str, row: Any) -> None:
        _check(self._function(name, what)(row), what)

    def _function(self, name: str, what: str = "the interface") -> Any:
        try:
            return getattr(self._functions, name)
        except AttributeError:
            raise InterfaceError(NO_FUNCTION, what) from None


def system_interfaces() -> Interfaces | None:
    """Those of this machine; None: it does not run Windows."""
    if sys.platform == "win32":
        return Interfaces(dll.load_dll(ffi, "iphlpapi.dll", dll.SEARCH_SYSTEM))
    return None


def family_of(address: bytes) -> int:
    """`IPV4` or `IPV6`."""
    return IPV4 if len(address) == 4 else IPV6


def _fill(place: Any, address: bytes) -> None:
    place.si_family = family_of(address)
    if len(address) == 4:
        place.ipv4 = address
    else:
        place.ipv6.address = address


def _check(code: int, what: str) -> None:
    if code and code != EXISTS:
        raise InterfaceError(code, what)
