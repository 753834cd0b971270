"""Every limit of the stack, with its number and the memory that it implies.

A guest is hostile: whatever it sends, no queue, table or buffer grows beyond the numbers
here. One `Limits` object belongs to one gateway; tests make smaller ones.
"""

from __future__ import annotations

import dataclasses

KIB = 1024
MIB = 1024 * KIB

PAGE_SIZE = 16 * KIB
"""Bytes of one page of the send chain. A super-segment of 64 KiB is at most 5 views."""

MAX_FRAME = 65535 + 14
"""Bytes of the largest frame that an offloading device exchanges (64 KiB of IP, Ethernet)."""

COALESCE_FLOWS = 64
"""Trains that `native.coalesce` holds open at once within a batch; about 8 KiB of C stack."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one gateway. Sizes in bytes, times in seconds."""

    # link
    device_batch: int = 16
    """Frames read from a device in one go: 16 x 64 KiB = 1 MiB of frame buffers."""
    transmit_queue: int = 512
    """Packets that wait for a device that refuses frames; 32 MiB at the worst."""
    ports: int = 64
    """Guests on one shared segment."""
    port_stations: int = 128
    """MACs, and addresses of each family, that the switch knows of one port; 50 KiB each."""
    port_queue: int = 2 * MIB
    """Bytes that wait for a port whose guest does not read."""
    neighbours: int = 1024
    """Entries of the neighbour cache; about 0.3 MiB."""
    neighbour_queue: int = 16
    """Packets that wait for one unresolved neighbour."""
    neighbour_queue_total: int = 256
    """Packets that wait for all unresolved neighbours together; 16 MiB at the worst."""
    shaping_memory: int = 64 * MIB
    """Packets on their way through the shaping of one direction: 0.4 s at 1 Gbit/s."""

    # ip
    reassembly_bytes: int = 4 * MIB
    """Fragments held in all, payload and bookkeeping (RFC 1122 3.3.2 leaves it open)."""
    reassembly_datagrams: int = 256
    """Datagrams under reassembly at once."""
    reassembly_fragments: int = 128
    """Fragments of one datagram: 64 KiB in pieces of 512."""
    reassembly_timeout: float = 60.0
    """RFC 1122 3.3.2: between 60 and 120 s."""
    icmp_errors_per_second: float = 100.0
    """Token bucket for ICMP errors towards one guest (RFC 1812 4.3.2.8)."""
    icmp_errors_burst: int = 50
    ip_header_templates: int = 1024
    """Headers kept half built, one for each (source, destination, protocol, TTL, class); 0.5 MiB."""
    ip_idents: int = 1024
    """Identification counters, one for each (source, destination, protocol); 0.3 MiB."""

    # tcp
    connections: int = 10_000
    """TCP connections; about 4 KiB each when idle."""
    receive_buffer_initial: int = 128 * KIB
    """Bytes that a connection may hold for its reader at first, in order and out of order: two
    super-segments, or four round trips of slow start. 2048 stopped readers fill `receive_memory`."""
    receive_buffer: int = 8 * MIB
    """The same at the most, for a reader that takes half of it in a round trip: 335 Mbit/s at 100 ms. More
    cannot be advertised."""
    receive_memory: int = 256 * MIB
    """The same for all connections together; as it fills windows shrink, in the end to one MSS."""
    send_buffer_floor: int = 64 * KIB
    """Bytes read ahead from a host socket and not yet ACKed: max(this, 2 x cwnd)."""
    send_buffer: int = 4 * MIB
    """The most that one connection queues for sending, whatever its cwnd."""
    send_share: int = 4 * MIB
    """What connections with round trips of less than 30 ms queue together: each at most what is free of it,
    but always `send_buffer_floor`. More would only wait in the guest's queue, and be gone from the caches."""
    page_pool: int = 256 * MIB
    """All pages of all send chains together."""
    reassembly_blocks: int = 256
    """Out-of-order blocks that one connection keeps."""
    listen_backlog: int = 128
    """Connections of a virtual listener in SYN-RECEIVED, and as many not yet accepted."""
    challenge_acks_per_second: int = 100
    """RFC 5961 section 7, for the whole stack; each connection has a limit of its own."""

    # nat
    pending_dials_guest: int = 128
    pending_dials: int = 512
    flows: int = 8192
    """Descriptors of flows; lowered at start to what RLIMIT_NOFILE allows with a reserve."""
    udp_mappings: int = 4096
    udp_destinations: int = 64
    """Destinations that one UDP mapping remembers for filtering and ICMP errors."""
    udp_destinations_total: int = 16_384
    """The same for all mappings together, beyond one each; about 8 MiB with their quotes."""
    udp_receive_buffer: int = 1 << 20
    """Bytes that the kernel is asked to keep for the socket of a mapping that has answered or sent again."""
    udp_receive_memory: int = 64 << 20
    """The same for all mappings together; further ones have what the system gives to every socket."""
    udp_idle: float = 120.0
    """RFC 4787 REQ-5: not less than 2 min."""
    udp_dns_idle: float = 10.0
    """A mapping to port 53 ends after one answer or this time."""
    echo_sessions: int = 256
    echo_requests: int = 64
    """Pings of one session that a reply may still come for; about 0.5 KiB each."""
    echo_idle: float = 60.0
    """RFC 5508 REQ-2: not less than 60 s."""
    tcp_idle: float = 7440.0
    """RFC 5382 REQ-5: a flow that is silent for this long ends; not less than 2 h 4 min."""
    dial_timeout: float = 30.0
    """Silence towards the guest while a destination is silent, then ICMP unreachable."""
    forward_pending: int = 128
    """Accepted clients of one published port that wait for the guest's SYN-ACK."""

    # services
    dhcp_leases: int = 1024
    """Addresses that are leased, offered or remembered, however large the pool is; 0.5 MiB."""
    dns_queries: int = 256
    """DNS queries under way at once; one client address, or all of TCP, has at most half of them."""
    dns_cache: int = 4096
    """Answers of resolvers that are kept for as long as they last."""
    dns_cache_size: int = 4 * MIB
    """Bytes of all of them."""
    dns_timeout: float = 5.0
    """For one query, over all resolvers and attempts; then SERVFAIL."""
    dns_query_size: int = 4 * KIB
    """Bytes of a query; a longer one is malformed."""
    dns_connections: int = 64
    """TCP connections to the DNS service; 1 MiB each at the worst, 16 answers that nobody reads."""
    dns_pipeline: int = 16
    """Queries of one TCP connection under way at once; it is not read further meanwhile."""
    dns_idle: float = 10.0
    """A TCP connection without a whole query, or that takes no answer, ends (RFC 7766 6.2.3)."""


DEFAULT_LIMITS = Limits()
