"""The agent's TAP interface: it is made, or found as an agent before has left it, and gets its addresses.

The interface is made persistent, so that it outlives an agent that is killed, with its addresses and the
connections of the guest; the next agent attaches to it. It goes when the agent ends in order, unless it is
to be kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import socket
import struct
from collections.abc import Iterator

from tunstack.link.devices.linux import ioctl
from tunstack.link.devices.tap import TapDevice
from tunstack.link.ethernet import format_mac, local_mac
from tunstack.vsock.agent.netlink import Netlink
from tunstack.vsock.sockets import local_cid

TUNSETPERSIST = 0x400454CB
_SIOCGIFHWADDR = 0x8927
_MARK = "# written by tunstack agent\n"


class InterfaceError(Exception):
    """The interface cannot be; the message is one sentence."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """What an interface has. Addresses are 4 or 16 bytes.

    Attributes:
        addresses: each with the length of its prefix.
        routers: default routes, at most one of a family.
        dns: resolvers.
        domain: for names without a dot.
    """

    addresses: tuple[tuple[bytes, int], ...] = ()
    routers: tuple[bytes, ...] = ()
    dns: tuple[bytes, ...] = ()
    domain: str | None = None


NO_ADDRESSES = Addresses()


class Interface:
    """The interface, as long as the agent. Made by `open_interface`.

    Attributes:
        device: its TAP.
        mac: 6 bytes.
        index: of the interface in its network namespace.
    """

    def __init__(self, device: TapDevice, resolv_conf: str | None) -> None:
        """`resolv_conf`: the file that is written when there are resolvers; None: none is."""
        self.device = device
        self.index = socket.if_nametoindex(device.name)
        self.mac = _read_mac(device.name)
        self._resolv_conf = resolv_conf
        self._former: str | None = None
        self._now = NO_ADDRESSES

    def set_link(self, *, mtu: int, mac: bytes | None = None) -> None:
        """Bring it up with this MTU (bytes), and this MAC if that is given."""
        with Netlink() as netlink:
            if mac is not None and mac != self.mac:
                netlink.set_link(self.index, up=False, mac=mac)
                self.mac = mac
            netlink.set_link(self.index, up=True, mtu=mtu)

    def configure(self, wanted: Addresses) -> None:
        """Have these addresses, routes and resolvers in the place of those that were given before."""
        before, self._now = self._now, wanted
        with Netlink() as netlink:
            for address, bits in before.addresses:
                if (address, bits) not in wanted.addresses:
                    netlink.remove_address(self.index, address, bits)
            for address, bits in wanted.addresses:
                netlink.add_address(self.index, address, bits)
            for router in wanted.routers:
                netlink.set_default_route(self.index, router)
        if self._resolv_conf is not None and (wanted.dns or before.dns):
            self._write_resolvers(self._resolv_conf, wanted)

    def is_gone(self) -> bool:
        """Whether somebody has deleted it."""
        return not _exists(self.device.name)

    def restore_resolvers(self) -> None:
        """What the file had before."""
        if self._resolv_conf is not None and self._former is not None:
            with contextlib.suppress(OSError):  # there is nobody left to be told
                _write(self._resolv_conf, self._former)
            self._former = None

    def _write_resolvers(self, path: str, wanted: Addresses) -> None:
        if self._former is None:
            with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
                former = file.read()
                self._former = "" if former.startswith(_MARK) else former
        lines = [_MARK]
        if wanted.domain is not None:
            lines.append(f"search {wanted.domain}\n")
        for address in wanted.dns:
            family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
            lines.append(f"nameserver {socket.inet_ntop(family, address)}\n")
        _write(path, "".join(lines))


@contextlib.contextmanager
def open_interface(
    name: str, *, mtu: int, mac: bytes | None, keep: bool, resolv_conf: str | None
) -> Iterator[Interface]:
    """Interface `name`, up, as long as the block, and longer if `keep`.

    Without `mac` it is one that this machine has for this name each time, or the one that it has.

    Raises:
        InterfaceError: it cannot be made.
    """
    is_new = not _exists(name)
    try:
        device = TapDevice.open(name, mtu=mtu)
    except ValueError as error:
        raise InterfaceError(str(error)) from None
    except OSError as error:
        raise InterfaceError(_explain(name, error)) from None
    try:
        ioctl(device.fileno(), TUNSETPERSIST, 1)
        try:
            interface = Interface(device, resolv_conf)
            if mac is None and is_new:
                mac = usual_mac(name)
            interface.set_link(mtu=mtu, mac=mac)
            yield interface
        finally:
            if not keep:
                with contextlib.suppress(OSError):  # somebody has deleted it
                    ioctl(device.fileno(), TUNSETPERSIST, 0)
    except OSError as error:
        raise InterfaceError(f"the interface {name} cannot be set up: {error.strerror or error}") from None
    finally:
        device.close()


def usual_mac(name: str) -> bytes | None:
    """The MAC of an interface of that name in this machine; None if the machine has no identity."""
    try:
        with open("/etc/machine-id", "rb") as file:
            machine = file.read().strip()
    except OSError:
        return None
    if not machine:
        return None
    place = f"{name} {local_cid()} {os.stat('/proc/self/ns/net').st_ino}".encode()
    return local_mac(hashlib.sha256(b"tunstack agent " + machine + b" " + place).digest())


def _exists(name: str) -> bool:
    # Not by /sys, which shows the interfaces of the namespace that it was mounted in.
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


def _read_mac(name: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer: bytes = ioctl(sock, _SIOCGIFHWADDR, struct.pack("40s", name.encode()))
    return answer[18:24]


def _write(path: str, text: str) -> None:
    # In place: in a container the file is a mount of its own, which nothing can be renamed to.
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


def _explain(name: str, error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return f"the interface {name} is another program's; choose another one by --interface"
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"this user may not make the interface {name}: run the agent as root"
    if error.errno == errno.ENOENT:
        return "there is no /dev/net/tun: the kernel has no TUN driver, or the container does not show it"
    return f"the interface {name} cannot be made: {error.strerror}"


def describe(interface: Interface) -> str:
    """Name and MAC, for people."""
    return f"{interface.device.name}, {format_mac(interface.mac)}"
