"""What the NAT of one gateway is told to do."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """A port of the host that leads to a port of a guest.

    `protocol` is 6 (TCP) or 17 (UDP); addresses are 4 or 16 bytes.
    """

    protocol: int
    host: bytes
    host_port: int
    guest: bytes
    guest_port: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NatConfig:
    """The NAT's part of a gateway's configuration.

    Attributes:
        gateway: the gateway's address, one per family; published connections come from it.
        networks: the prefixes (address, length in bits) of the virtual network.
        host_loopback: addresses of the guest's side that mean 127.0.0.1 or ::1 of the host.
        allow_host: the guest may reach the host's own addresses (never its loopback).
        publish: the published ports.
        endpoint_filtering: UDP from anywhere reaches a mapping (RFC 4787 section 5:
            endpoint-independent filtering); else only from addresses that it has sent to.
    """

    gateway: tuple[bytes, ...]
    networks: tuple[tuple[bytes, int], ...] = ()
    host_loopback: tuple[bytes, ...] = ()
    allow_host: bool = False
    publish: tuple[Publish, ...] = ()
    endpoint_filtering: bool = False
