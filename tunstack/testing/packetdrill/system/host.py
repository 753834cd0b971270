"""What the sockets of one `System` share: the stack, ports, who listens where."""

from __future__ import annotations

from tunstack.ip.addresses import is_loopback, is_unspecified
from tunstack.stack import Stack
from tunstack.testing.packetdrill.system.arguments import AF_INET, AF_INET6, SocketAddress
from tunstack.testing.packetdrill.system.ports import PortTable


class Host:
    """One host: a stack and the addresses of a script.

    Attributes:
        local, remote: what a script means by `...` in bind and connect.
        width: bytes of an address, 4 or 16.
    """

    def __init__(self, stack: Stack, local: SocketAddress, remote: SocketAddress) -> None:
        self.stack = stack
        self.local = local
        self.remote = remote
        self.width = len(local.address)
        self.tcp_ports = PortTable()
        self.udp_ports = PortTable()

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return AF_INET if self.width == 4 else AF_INET6

    @property
    def version(self) -> int:
        """4 or 6."""
        return 4 if self.width == 4 else 6

    def is_own(self, address: bytes) -> bool:
        """A packet to `address` would stay on this host, which no stack carries."""
        return is_unspecified(address) or is_loopback(address) or address in self.stack.own_addresses

    def source_for(self, bound: bytes) -> bytes:
        """The address that packets of a socket come from which is bound to `bound`."""
        return self.local.address if is_unspecified(bound) else bound
