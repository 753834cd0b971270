"""Both directions of a shaped link: wire-size packets in front of either pipeline."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tunstack import native
from tunstack.errors import DropCounters, DropReason, LocalError
from tunstack.limits import Limits
from tunstack.link.shaping.classes import Classes, Shaped, build_classes, inherit
from tunstack.link.shaping.pipeline import Pipeline, read_none
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.stage import Read
from tunstack.native.pipeline import NativePipeline
from tunstack.packet import Checksum, Packet

TRAIN_SECONDS = 0.001
"""A train of TCP segments is at most what the link sends in this time, so that it is no burst on it."""


class Shaper:
    """The pipelines of one link; a direction without one is not shaped.

    Attributes:
        up: from the device to the stack.
        down: from the stack to the device.
        up_spec: what `up` does, or None.
        down_spec: what `down` does, or None.
        is_cut: the link is down: all that comes is dropped as LINK_DOWN.
    """

    __slots__ = ("_drops", "_l2", "_limits", "_read", "_seed", "down", "down_spec", "is_cut", "up", "up_spec")

    def __init__(
        self,
        up: ShapeSpec | None,
        down: ShapeSpec | None,
        seed: int,
        limits: Limits,
        drops: DropCounters,
        read: Read | None = None,
    ) -> None:
        """`seed` serves the directions that bring none of their own; `read` reads files. `ShapeError`."""
        self._drops = drops
        self._read = read or read_none
        self._limits = limits
        self._seed = random.Random(seed)
        self._l2 = False
        self.is_cut = False
        self.up_spec = up
        self.down_spec = down
        # Two directions with one seed would lose the same packets by number.
        self.up: Shaped | None = None if up is None else self._build(up, seed, up=True)
        self.down: Shaped | None = None if down is None else self._build(down, seed ^ 1, up=False)

    @property
    def train_limit(self) -> int | None:
        """Bytes of TCP payload that the stack may send down in one piece, or None."""
        spec = self.down_spec
        specs = [] if spec is None else [spec, *(part for _, part in spec.classes)]
        rates = [one.rate for one in specs if one.rate]
        return int(min(rates) / 8 * TRAIN_SECONDS) if rates else None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is shaped, and the link is up."""
        return self.up_spec is None and self.down_spec is None and not self.is_cut

    def attach(self, l2: bool) -> None:
        """A device comes whose packets begin with an Ethernet header, or do not."""
        self._l2 = l2
        for pipeline in (self.up, self.down):
            if pipeline is not None:
                pipeline.set_l2(l2)

    def change(self, up: ShapeSpec | None, down: ShapeSpec | None, now: float) -> None:
        """Shape by these words from `now` on; a direction whose words are the same goes on as it is.

        What is inside of the pipelines goes on in the new ones; see `Pipeline.inherit`. Those of a direction
        that is shaped no longer leave with the next `pop`, after which `prune` forgets the pipeline.

        Raises:
            ShapeError: a trace cannot be read; nothing has changed then.
        """
        new_up, new_down = self._replace(up, self.up_spec, True), self._replace(down, self.down_spec, False)
        for old, new in ((self.up, new_up), (self.down, new_down)):
            if old is not None and new is not None:
                inherit(new, old, now)
        self.up = new_up or self.up
        self.down = new_down or self.down
        self.up_spec, self.down_spec = up, down

    def prune(self) -> None:
        """Forget the pipelines of directions that are shaped no longer; they must have been popped."""
        if self.up_spec is None:
            self.up = None
        if self.down_spec is None:
            self.down = None

    def set_cut(self, is_cut: bool) -> None:
        """The link goes down, and what is on its way is dropped, or comes up again."""
        if is_cut and not self.is_cut:
            self.clear()
        self.is_cut = is_cut

    @property
    def has_native_form(self) -> bool:
        """Whether both directions can be lent."""
        return not self.is_cut and all(one is None or one.has_native_form for one in (self.up, self.down))

    def lend(self) -> tuple[NativePipeline, NativePipeline]:
        """The native forms of up and down, with all that is inside; of a direction without one, no stage.

        Until they are restored, which must be before any other call, nothing is here. MemoryError.
        """
        natives = NativePipeline(), NativePipeline()
        lent = []
        try:
            for pipeline, form in zip(self._lendable(), natives, strict=True):
                if pipeline is not None:
                    pipeline.lend(form)
                    lent.append((pipeline, form))
        except MemoryError:
            for pipeline, form in lent:
                pipeline.restore(form)
            raise
        return natives

    def restore(self, natives: tuple[NativePipeline, NativePipeline]) -> None:
        """Take everything back."""
        for pipeline, form in zip(self._lendable(), natives, strict=True):
            if pipeline is not None:
                pipeline.restore(form)

    def count_drops(self, natives: tuple[NativePipeline, NativePipeline]) -> None:
        """Count what the native forms have dropped."""
        for pipeline, form in zip(self._lendable(), natives, strict=True):
            if pipeline is not None:
                pipeline.count_drops(form)

    def _lendable(self) -> tuple[Pipeline | None, Pipeline | None]:
        up, down = self.up, self.down
        assert not isinstance(up, Classes) and not isinstance(down, Classes)
        return up, down

    def _build(self, spec: ShapeSpec, seed: int, *, up: bool) -> Shaped:
        return build_classes(spec, seed, self._limits, self._drops, self._read, up=up)

    def _replace(self, new: ShapeSpec | None, old: ShapeSpec | None, up: bool) -> Shaped | None:
        """The pipeline that comes in the place of that of `old`; None if that stays."""
        if new == old:
            return None
        if new is None:
            return Pipeline(())
        # Another seed each time: the decisions of the first packets would be the same after each change.
        pipeline = self._build(new, self._seed.getrandbits(64), up=up)
        pipeline.set_l2(self._l2)
        return pipeline

    def push_up(self, packets: Sequence[Packet], l2: bool, now: float) -> None:
        """Send what came from the device, borrowed buffers and all, into the up pipeline.

        What the guest's kernel had queued before the offloads were turned off is cut and completed here; a
        header that does not agree with its packet is dropped as BAD_VNET_HEADER.
        """
        if self.is_cut:
            self._drops.add(DropReason.LINK_DOWN, len(packets))
            return
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
        if self.is_cut:
            self._drops.add(DropReason.LINK_DOWN, len(packets))
            return
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
