"""The unit that travels through the stack: a super-segment.

A `Packet` is one frame (link layer 2) or one IP packet (layer 3), possibly larger than the
MTU: with `gso_size` set it stands for a train of wire-size packets with equal headers
(up to 64 KiB), which the device, or `native.segment` for a device that cannot, cuts apart.

On the way up (from the guest) `head` is the whole frame as the device read it and
`payload` is empty. `head` is then borrowed: it is valid until the next `read_batch` of the
same device, and whoever wants to keep bytes copies them. On the way down `head` holds all headers and
`payload` views of the sender's pages.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview


class Checksum(enum.IntEnum):
    """What is known of the layer-4 checksum of a packet."""

    UNKNOWN = 0
    """Up: must be verified. Down: complete."""
    PARTIAL = 1
    """Only the folded sum of the pseudo-header is in the field (offload). Up: trusted, the
    guest's kernel left it to us. Down: whoever puts it on a wire completes it."""
    VALID = 2
    """Up: the device has verified it."""
    UNTOLD = 3
    """Up, over a link that cannot tell of offloads: it is right, or only the folded sum of the pseudo-header,
    as some virtual machines leave it; must be verified."""


UNVERIFIED = frozenset((int(Checksum.UNKNOWN), int(Checksum.UNTOLD)))
"""What must be verified on the way up."""


class GsoType(enum.IntEnum):
    """The kind of a packet with `gso_size`; the values are those of virtio-net."""

    NONE = 0
    TCPV4 = 1
    TCPV6 = 4
    UDP_L4 = 5


class Packet:
    """One frame or IP packet, maybe a train of them.

    Attributes:
        head: the frame (up) or all headers (down), starting at the link layer of the
            device: Ethernet on an L2 link, IP on an L3 link.
        payload: views that follow `head` on the wire, in order; empty on the way up.
        gso_size: payload bytes of each wire packet, 0 if this is a single one.
        gso_type: what kind of train, `GsoType.NONE` if `gso_size` is 0.
        checksum: what is known of the layer-4 checksum.
        csum_start: offset in `head` where the layer-4 header starts (down, PARTIAL only).
        csum_offset: offset of the checksum field from `csum_start` (down, PARTIAL only).
    """

    __slots__ = (
        "checksum",
        "csum_offset",
        "csum_start",
        "gso_size",
        "gso_type",
        "head",
        "payload",
    )

    def __init__(
        self,
        head: Buffer,
        payload: Sequence[Buffer] = (),
        gso_size: int = 0,
        gso_type: int = GsoType.NONE,
        checksum: int = Checksum.UNKNOWN,
        csum_start: int = 0,
        csum_offset: int = 0,
    ) -> None:
        self.head = head
        self.payload = payload
        self.gso_size = gso_size
        self.gso_type = gso_type
        self.checksum = checksum
        self.csum_start = csum_start
        self.csum_offset = csum_offset

    def __len__(self) -> int:
        return len(self.head) + sum(map(len, self.payload)) if self.payload else len(self.head)

    def tobytes(self) -> bytes:
        """The frame as one bytes object (a copy)."""
        return b"".join((self.head, *self.payload))

    def detach(self) -> None:
        """Copy what is borrowed, so that the packet may outlive its buffers."""
        self.head = bytes(self.head)
        if self.payload:
            self.payload = (b"".join(self.payload),)

    def __repr__(self) -> str:
        train = f", gso_size={self.gso_size}" if self.gso_size else ""
        return f"<Packet {len(self)} bytes{train}, checksum={Checksum(self.checksum).name}>"
