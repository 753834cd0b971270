"""What can go wrong: the closed list of drop reasons, and the few exceptions of the core.

A fault of the peer is never an exception that leaves the core: a parser raises
:class:`BadPacket`, the layer above catches it and counts its reason. A fault of the
caller is a :class:`LocalError`.
"""

from __future__ import annotations

import enum
import errno


class DropReason(enum.Enum):
    """Why a frame, packet, segment or request was not acted upon.

    The value is the name under which the drop is counted and shown; the table in the
    docs is generated from this enum.
    """

    # link
    FRAME_TOO_SHORT = "frame-too-short"
    FRAME_TOO_LONG = "frame-too-long"
    NOT_FOR_US = "not-for-us"
    UNKNOWN_ETHERTYPE = "unknown-ethertype"
    BAD_VNET_HEADER = "bad-vnet-header"
    BAD_ARP = "bad-arp"
    NEIGHBOUR_TABLE_FULL = "neighbour-table-full"
    NEIGHBOUR_QUEUE_FULL = "neighbour-queue-full"
    NEIGHBOUR_UNREACHABLE = "neighbour-unreachable"
    TRANSMIT_QUEUE_FULL = "transmit-queue-full"
    NO_DEVICE = "no-device"
    SHAPING_LOSS = "shaping-loss"
    SHAPING_QUEUE_FULL = "shaping-queue-full"
    SHAPING_MEMORY = "shaping-memory"
    SHAPING_DETACHED = "shaping-detached"
    SHAPING_QUOTA = "shaping-quota"
    LINK_DOWN = "link-down"
    # switch
    BAD_SOURCE_MAC = "bad-source-mac"
    SPOOFED_MAC = "spoofed-mac"
    SPOOFED_ADDRESS = "spoofed-address"
    ROGUE_SERVER = "rogue-server"
    PORT_ISOLATED = "port-isolated"
    PORT_QUEUE_FULL = "port-queue-full"
    # ip
    BAD_IP_VERSION = "bad-ip-version"
    BAD_IP_HEADER = "bad-ip-header"
    BAD_IP_CHECKSUM = "bad-ip-checksum"
    IP_TRUNCATED = "ip-truncated"
    BAD_SOURCE = "bad-source"
    BAD_DESTINATION = "bad-destination"
    TTL_EXCEEDED = "ttl-exceeded"
    SOURCE_ROUTE = "source-route"
    EXTENSION_HEADER = "extension-header"
    UNKNOWN_PROTOCOL = "unknown-protocol"
    BAD_FRAGMENT = "bad-fragment"
    FRAGMENT_DUPLICATE = "fragment-duplicate"
    FRAGMENT_OVERLAP = "fragment-overlap"
    FRAGMENT_MEMORY = "fragment-memory"
    FRAGMENT_TIMEOUT = "fragment-timeout"
    PACKET_TOO_BIG = "packet-too-big"
    # icmp
    BAD_ICMP = "bad-icmp"
    BAD_ICMP_CHECKSUM = "bad-icmp-checksum"
    ICMP_IGNORED = "icmp-ignored"
    ICMP_RATE_LIMIT = "icmp-rate-limit"
    ICMP_NO_MATCH = "icmp-no-match"
    BAD_NDP = "bad-ndp"
    # udp
    BAD_UDP = "bad-udp"
    BAD_UDP_CHECKSUM = "bad-udp-checksum"
    # tcp
    BAD_TCP = "bad-tcp"
    BAD_TCP_CHECKSUM = "bad-tcp-checksum"
    BAD_TCP_OPTION = "bad-tcp-option"
    TCP_NO_CONNECTION = "tcp-no-connection"
    TCP_BAD_FLAGS = "tcp-bad-flags"
    TCP_OUTSIDE_WINDOW = "tcp-outside-window"
    TCP_BAD_ACK = "tcp-bad-ack"
    TCP_CHALLENGED = "tcp-challenged"
    TCP_PAWS = "tcp-paws"
    TCP_MISSING_TIMESTAMP = "tcp-missing-timestamp"
    TCP_DUPLICATE = "tcp-duplicate"
    TCP_REASSEMBLY_FULL = "tcp-reassembly-full"
    TCP_RECEIVE_MEMORY = "tcp-receive-memory"
    TCP_AFTER_CLOSE = "tcp-after-close"
    TCP_CONNECTION_LIMIT = "tcp-connection-limit"
    TCP_BACKLOG_FULL = "tcp-backlog-full"
    CHALLENGE_ACK_LIMIT = "challenge-ack-limit"
    # nat
    TCP_IDLE = "tcp-idle"
    PENDING_DIALS_GUEST = "pending-dials-guest"
    PENDING_DIALS_TOTAL = "pending-dials-total"
    FLOW_LIMIT = "flow-limit"
    POLICY = "policy"
    UDP_MAPPING_EVICTED = "udp-mapping-evicted"
    UDP_FILTERED = "udp-filtered"
    UDP_SOCKET_FULL = "udp-socket-full"
    UDP_SOCKET_ERROR = "udp-socket-error"
    UDP_QUEUE_FULL = "udp-queue-full"
    ECHO_UNAVAILABLE = "echo-unavailable"
    ECHO_LIMIT = "echo-limit"
    # dns
    BAD_DHCP = "bad-dhcp"
    DHCP_POOL_EXHAUSTED = "dhcp-pool-exhausted"
    BAD_DNS = "bad-dns"
    DNS_QUERY_LIMIT = "dns-query-limit"


class BadPacket(Exception):
    """The only exception that a parser raises: the bytes are not what they should be."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class LocalError(RuntimeError):
    """The API was misused by its caller; never caused by what a peer sends."""


class DropCounters:
    def __init__(self) -> None:
        self._counts: dict[DropReason, int] = {}

    def add(self, reason: DropReason, count: int = 1) -> None:
        """Count `count` drops for `reason`."""
        self._counts[reason] = self._counts.get(reason, 0) + count

    def __getitem__(self, reason: DropReason) -> int:
        return self._counts.get(reason, 0)

    @property
    def total(self) -> int:
        """All drops together."""
        return sum(self._counts.values())

    def as_dict(self) -> dict[str, int]:
        """The counters that are not zero, by the name of their reason."""
        return {reason.value: n for reason, n in self._counts.items() if n}


class WrongSystem(OSError):
    """What was asked for is Linux' own, and this is another system."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSYS, "this is there on Linux alone")
