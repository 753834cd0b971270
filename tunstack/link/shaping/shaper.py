"""Both directions of a shaped link: wire-size packets in front of either pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from tunstack import native
from tunstack.errors import DropCounters, DropReason, LocalError
from tunstack.limits import Limits
from tunstack.link.shaping.pipeline import build
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.packet import Checksum, Packet

TRAIN_SECONDS = 0.001
"""A train of TCP segments is at most what the link sends in this time, so that it is no burst on it."""


class Shaper:
    """The pipelines of one link; a direction without one is not shaped.

    Attributes:
        up: from the device to the stack.
        down: from the stack to the device.
        train_limit: bytes of TCP payload that the stack may send down in one piece, or None.
    """

    __slots__ = ("_drops", "down", "train_limit", "up")

    def __init__(
        self,
        up: ShapeSpec | None,
        down: ShapeSpec | None,
        seed: int,
        limits: Limits,
        drops: DropCounters,
    ) -> None:
        """`seed` serves the directions that bring none of their own, one as well as the other."""
        self._drops = drops
        # Two directions with one seed would lose the same packets by number.
        self.up = None if up is None else build(up, seed, limits, drops)
        self.down = None if down is None else build(down, seed ^ 1, limits, drops)
        self.train_limit = int(down.rate / 8 * TRAIN_SECONDS) if down is not None and down.rate else None

    def push_up(self, packets: Sequence[Packet], l2: bool, now: float) -> None:
        """Send what came from the device, borrowed buffers and all, into the up pipeline.

        What the guest's kernel had queued before the offloads were turned off is cut and completed here; a
        header that does not agree with its packet is dropped as BAD_VNET_HEADER.
        """
        up = self.up
        assert up is not None
        for packet in packets:
            try:
                wire = to_wire(packet, l2)
            except LocalError:
                self._drops.add(DropReason.BAD_VNET_HEADER)
                continue
            for one in wire:
                up.push(one, now)

    def push_down(self, packets: Sequence[Packet], l2: bool, now: float) -> None:
        """Send what the stack made into the down pipeline; nothing is borrowed afterwards."""
        down = self.down
        assert down is not None
        for packet in packets:
            for one in to_wire(packet, l2):
                down.push(one, now)

    def next_timeout(self) -> float | None:
        """When either pipeline has something to pop."""
        pipelines = (self.up, self.down)
        times = [t for p in pipelines if p is not None and (t := p.next_timeout()) is not None]
        return min(times, default=None)

    def clear(self) -> None:
        """The link was cut: drop what is on its way."""
        for pipeline in (self.up, self.down):
            if pipeline is not None:
                pipeline.clear()


def to_wire(packet: Packet, l2: bool) -> list[Packet]:
    """`packet` as what a wire would carry: copies of wire size, checksums filled and none of them verified.

    Raises:
        LocalError: the metadata of `packet` does not agree with its bytes.
    """
    if packet.gso_size:
        return [Packet(frame) for frame in native.segment(packet, l2)]
    if packet.checksum == Checksum.PARTIAL:
        packet = native.complete_checksum(packet)
    return [Packet(packet.tobytes())]
