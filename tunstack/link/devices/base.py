"""What every device is to the rest: a source and a sink of batches of packets.

A device carries frames between the guest and the link. It knows nothing of what is in
them; it fills and reads offload metadata where its transport has some.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tunstack.packet import Packet

if TYPE_CHECKING:
    from tunstack.native.fastpath import FastPath


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Offloads:
    """What a device takes off the stack's hands, in both directions.

    `l2` is true for Ethernet frames and false for bare IP packets. `mtu` is the IP MTU of
    the wire in bytes; a packet with `gso_size` may be larger, up to `max_frame` bytes in all.
    """

    l2: bool = True
    mtu: int = 1500
    checksum: bool = False
    tso4: bool = False
    tso6: bool = False
    uso: bool = False
    max_frame: int = 1514


class Device(Protocol):
    """A network device, non-blocking.

    `fileno()` is a descriptor that polls readable when `read_batch` has something and
    writable when `write_batch` would take something, or None for a device without one.
    A device without a descriptor calls `on_ready` (set by the engine) when it turns
    readable or writable.
    """

    offloads: Offloads
    name: str
    on_ready: Callable[[], None] | None

    def fileno(self) -> int | None: ...

    def set_offloads(self, enabled: bool) -> None:
        """Turn on every offload that there is, or none, for both directions; possible at any time.

        What was queued when they were turned off may still come as trains.
        """
        ...

    def read_batch(self, limit: int) -> list[Packet]:
        """Up to `limit` packets; empty when there is none now.

        The buffers are borrowed until the next call. Raises `DeviceClosed` at the end.
        """
        ...

    def write_batch(self, packets: Sequence[Packet]) -> int:
        """Write `packets` in order; returns how many were taken.

        The rest was refused for now and is the caller's to offer again. A packet that the
        device can never take (malformed) counts as taken and is counted in
        `write_errors`. Raises `DeviceClosed` when the other end is gone.
        """
        ...

    def flush(self) -> bool:
        """Send what was taken and waits in the device itself; True if nothing does any more.

        Raises `DeviceClosed` when the other end is gone.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class LendableDevice(Device, Protocol):
    """A device without offloads, whose sockets a fast path can read and write in its place."""

    def fileno(self) -> int: ...

    def lend(self, fast: FastPath) -> bool:
        """Let `fast` read and write from now on, with all offloads; False if it does already. MemoryError."""
        ...

    def take_back(self) -> None:
        """Read and write in Python again, from where the fast path is, which must have ended."""
        ...


READ = 1
WRITE = 2
ERROR = 4
"""What a poller (`tunstack.nat.poller`) says of a descriptor, and is asked about it. As interest ERROR tells
of errors and hang-ups only; as readiness it says that one of these is there."""


class DeviceClosed(Exception):
    """The device's other end has gone away."""
