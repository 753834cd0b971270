"""A device as the engine sees it: a token of the poller, its transmit queue, and maybe a shaper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunstack import native
from tunstack.errors import DropReason
from tunstack.gateway.alarm import make_alarm
from tunstack.link.devices.base import Device
from tunstack.link.devices.vnet_header import pack_header
from tunstack.link.transmit import TransmitQueue
from tunstack.nat.poller import READ, WRITE, Poller
from tunstack.packet import Packet

if TYPE_CHECKING:
    from tunstack.gateway.engine import Engine
    from tunstack.link.shaping.shaper import Shaper
    from tunstack.native.fastpath import FastPath, Shape
    from tunstack.native.pipeline import NativePipeline

_BEHIND = 0.005
"""Seconds by which trio's own timer stands behind an alarm, which makes it needless."""
_SHAPED_BATCH = 64
"""Packets that come out of the up pipeline and are coalesced and handled at once."""


class DevicePort:
    """The device as a token of the poller."""

    __slots__ = ("_coalesce", "_engine", "_interest", "device", "queue")

    def __init__(self, engine: Engine, device: Device, limit: int | None = None) -> None:
        """`limit`: of the transmit queue, in the place of the one in the stack's limits."""
        self._engine = engine
        self.device = device
        self.queue = TransmitQueue(device, engine.stack.limits, engine.stack.drops, limit)
        offloads = device.offloads
        self._coalesce = not (offloads.tso4 or offloads.tso6)
        self._interest = READ

    def fileno(self) -> int:
        """The device's descriptor; -1 if it has none and calls `on_ready` instead."""
        fd = self.device.fileno()
        return -1 if fd is None else fd

    def attach(self, poller: Poller) -> None:
        """Be told of the device's readiness."""
        if self.fileno() < 0:
            self.device.on_ready = self._engine.wake
        else:
            poller.add(self, self, READ)

    def detach(self, poller: Poller) -> None:
        """Be told no longer."""
        if self.fileno() < 0:
            self.device.on_ready = None
        else:
            poller.remove(self)

    def on_ready(self, ready: int, now: float) -> None:
        """Read one batch; whatever the stack makes of it is delivered before the next is read."""
        if ready & ~WRITE:
            self.read(now)

    def read(self, now: float) -> bool:
        """Read one batch; False if there was nothing."""
        engine = self._engine
        stack = engine.stack
        packets = self.device.read_batch(stack.limits.device_batch)
        if not packets:
            return False
        self.take(packets, now)
        return True

    def take(self, packets: list[Packet], now: float) -> None:
        """Hand one batch to the stack."""
        stack = self._engine.stack
        if self._coalesce and len(packets) > 1:
            packets = native.coalesce(packets, stack.l2)
        receive = stack.receive
        for packet in packets:
            receive(packet, now)
        self._engine.deliver(now)

    def take_early(self, packets: list[Packet], now: float) -> None:
        """Take packets that a fast path has left for Python before they were on the link."""
        self.take(packets, now)

    def flush(self, now: float) -> None:
        """Write what the stack has to send."""
        self.write(self._engine.stack.poll_transmit(now))

    def write(self, packets: list[Packet]) -> None:
        """Write `packets` and what waits; ask for writability while the device refuses."""
        queue = self.queue
        if packets:
            queue.push(packets)
        done = not len(queue) or queue.flush()
        done = self.device.flush() and done
        interest = READ if done else READ | WRITE
        if interest != self._interest:
            self._interest = interest
            if self.fileno() >= 0:
                self._engine.poller.modify(self, self, interest)


class ShapedPort(DevicePort):
    """The same with `shaper` between the device and the stack.

    While the pipelines are lent to a fast path, what that has read has passed them; it takes what is sent.
    """

    __slots__ = ("_alarm", "_natives", "_shape", "_shaper")

    def __init__(self, engine: Engine, device: Device, shaper: Shaper) -> None:
        from tunstack.link.shaping.stage import PACKET_OVERHEAD  # who does not shape does not pay for it

        device.set_offloads(False)
        # A pipeline may let go of all that it holds at once; what fits into it waits for the device, too.
        limits = engine.stack.limits
        room = limits.shaping_memory // (device.offloads.mtu + PACKET_OVERHEAD)
        super().__init__(engine, device, max(limits.transmit_queue, room))
        self._shaper = shaper
        self._shape: Shape | None = None
        self._natives: tuple[NativePipeline, NativePipeline]
        shaper.attach(engine.stack.l2)
        self._alarm = make_alarm()

    def attach(self, poller: Poller) -> None:
        super().attach(poller)
        if self._alarm is not None:
            poller.add(self._alarm, self._alarm, READ)

    def detach(self, poller: Poller) -> None:
        super().detach(poller)
        if self._alarm is not None:
            poller.remove(self._alarm)
            self._alarm.close()
            self._alarm = None

    def set_alarm(self, deadline: float, now: float) -> float | None:
        """Be woken for `deadline`, if that can be; returns the one at which trio is to do that.

        None: that is so soon that it is not worth while to sleep.
        """
        if self._alarm is None:
            return deadline
        at = deadline - self._alarm.lead
        if at <= now:
            return None
        self._alarm.set(at)
        return deadline + _BEHIND

    @property
    def has_native_form(self) -> bool:
        """Whether the pipelines can be lent."""
        return self._shaper.has_native_form

    def lend(self, fast: FastPath) -> None:
        """Let `fast` shape the link from now on. MemoryError."""
        self._natives = up, down = self._shaper.lend()
        self._shape = fast.open_shape(up.c, down.c)

    def take_back(self) -> bool:
        """Shape it in Python again; False if that is so anyway."""
        shape = self._shape
        if shape is None:
            return False
        self.count_drops()
        shape.close()
        self._shape = None
        self._shaper.restore(self._natives)
        return True

    def count_drops(self) -> None:
        """Count what was dropped by a fast path."""
        shape = self._shape
        if shape is not None and shape.has_dropped:
            self._shaper.count_drops(self._natives)
            if bad := shape.take_bad():
                self._engine.stack.drops.add(DropReason.BAD_VNET_HEADER, bad)

    def next_timeout(self) -> float | None:
        """When something comes out of either pipeline, unless they are lent."""
        return None if self._shape is not None else self._shaper.next_timeout()

    def clear(self) -> None:
        """Drop what is on its way."""
        self._shaper.clear()

    def release(self, now: float) -> None:
        """Let all that is on its way arrive: the link is shaped no longer."""
        from tunstack.link.shaping.classes import release

        up, down = self._shaper.up, self._shaper.down
        if up is not None:
            self._arrive(release(up, now), now)
        if down is not None:
            self.write(release(down, now))

    def take(self, packets: list[Packet], now: float) -> None:
        if self._shape is not None or (self._shaper.up is None and not self._shaper.is_cut):
            super().take(packets, now)
        else:
            self._shaper.push_up(packets, self._engine.stack.l2, now)
            self.advance(now)

    def take_early(self, packets: list[Packet], now: float) -> None:
        if self._shape is None:
            self.take(packets, now)
            return
        for packet in packets:
            self._shape.put_up(pack_header(packet) + packet.tobytes(), now)

    def advance(self, now: float) -> None:
        """Hand to the stack what has come out of the up pipeline, unless it is lent."""
        up = self._shaper.up
        if self._shape is None and up is not None and (packets := up.pop(now)):
            self._arrive(packets, now)

    def flush(self, now: float) -> None:
        down = self._shaper.down
        stack = self._engine.stack
        if (shape := self._shape) is not None:
            for packet in stack.poll_transmit(now):
                shape.put(pack_header(packet) + packet.tobytes(), now)
            self.write([])
            return
        if down is None and not self._shaper.is_cut:
            super().flush(now)
            return
        self._shaper.push_down(stack.poll_transmit(now), stack.l2, now)
        self.write([] if down is None else down.pop(now))

    def _arrive(self, packets: list[Packet], now: float) -> None:
        for start in range(0, len(packets), _SHAPED_BATCH):
            super().take(packets[start : start + _SHAPED_BATCH], now)
