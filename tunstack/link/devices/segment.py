"""A shared segment as one device: any number of guests, each behind a port of a switch.

Theory of operation. The ports are watched by a poller of their own. Where that has a descriptor (epoll's), it
is the segment's, and turns readable when any port is ready; elsewhere the poller says so. `read_batch` takes
a batch from each ready port in turn and asks the switch for whom each frame is: what is for the gateway is
returned, what is for another guest is written to its port at once. `write_batch` sorts what the gateway sends
in the same way and takes all of it: a frame for which its port has no room waits in a queue of that port, and
is dropped and counted when that is full. So a guest that stops reading is nobody else's concern.

A port ends when its device does; the segment goes on, and whoever connected the port is told.

Lent to a fast path, the ports are read and written there, and plain unicast whose sender and receiver the
switch knows goes from port to port without Python. The switch stays the judge: each frame of a source that
the fast path does not know comes here, and what becomes of it is told (`_teach`) for `TRUST` seconds. When
ports come or go, or leases change, it is told to forget everything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

from tunstack.errors import DropReason
from tunstack.limits import Limits
from tunstack.link.devices.base import READ, WRITE, DeviceClosed, Offloads
from tunstack.link.devices.framed import LENT_DROPS, FramedDevice, lent_offloads
from tunstack.link.devices.port import Port, PortPoller, Wakeup
from tunstack.link.devices.vnet_header import parse_frame
from tunstack.link.ethernet import ETHERTYPE_IPV4, ETHERTYPE_IPV6, HEADER_LENGTH
from tunstack.link.switch import GATEWAY, Switch
from tunstack.native.fastpath import FastPath
from tunstack.native.fastpath import Switch as NativeSwitch
from tunstack.packet import Buffer, Checksum, Packet

TRUST = 5.0
"""Seconds for which the fast path acts on what the switch has said of a station."""
_UNTOLD = int(Checksum.UNTOLD)


class SegmentDevice:
    """The guests of a gateway behind a switch. Implements `Device`; it never refuses a packet.

    Attributes:
        switch: who is where.
        offloads: none; all, once it is lent.
        is_closed: whether `close` was called.
    """

    def __init__(
        self,
        switch: Switch,
        clock: Callable[[], float],
        poller: PortPoller,
        *,
        mtu: int,
        limits: Limits,
        name: str = "segment",
    ) -> None:
        """`clock`: the engine's, in seconds. `poller`: the segment's own. `mtu`: of the links' IP, bytes."""
        self.name = name
        self.switch = switch
        self.offloads = self._plain = Offloads(l2=True, mtu=mtu, max_frame=mtu + HEADER_LENGTH)
        self.write_errors = 0
        self.on_ready: Callable[[], None] | None = None
        self._clock = clock
        self._limits = limits
        self._ports: dict[int, Port] = {}
        self._dirty: set[Port] = set()
        """Ports that have been written to and not flushed."""
        self.is_closed = False
        self._poller = poller
        if poller.fileno() < 0:
            poller.on_ready = self._tell
        self._wakeup: Wakeup | None = None
        self._lent: NativeSwitch | None = None
        self._lease_changes = 0

    @property
    def ports(self) -> list[Port]:
        """Those that are connected."""
        return list(self._ports.values())

    def connect(self, device: FramedDevice, *, is_isolated: bool = False, is_guarded: bool = True) -> Port:
        """Put `device`, which is the segment's from now on, behind a port. Not from within a round.

        Raises:
            LocalError: there are too many ports.
        """
        number = self.switch.open_port(is_isolated=is_isolated, is_guarded=is_guarded)
        port = Port(number, device, self.switch.drops, self._limits.port_queue)
        self._ports[number] = port
        self._poller.add(port, port, port.interest)
        if self._lent is not None:
            self._lend_port(port, self._lent)
        return port

    def disconnect(self, port: Port, why: str = "it was disconnected") -> None:
        """Close `port` and its device."""
        if port.is_closed:
            return
        port.is_closed = True
        del self._ports[port.number]
        self._dirty.discard(port)
        with contextlib.suppress(OSError):
            self._poller.remove(port)
        if self._lent is not None:
            self._lent.disconnect(port.number)
        self.switch.close_port(port.number)
        port.device.close()
        if port.on_closed is not None:
            port.on_closed(why)

    def fileno(self) -> int | None:
        """See `Device`."""
        fd = self._poller.fileno()
        return None if fd < 0 else fd

    def set_offloads(self, enabled: bool) -> None:
        """See `Device`; there are none."""

    def read_batch(self, limit: int) -> list[Packet]:
        """See `Device`. Up to `limit` packets of each port that is ready; it never ends."""
        now = self._clock()
        for watched, bits in self._poller.poll():
            watched.on_ready(bits, now)
        packets: list[Packet] = []
        for port in self.ports:
            ready, port.ready = port.ready, 0
            if port.device.is_behind:
                ready |= READ
            if not ready or port.is_closed:
                continue  # maybe by what was written to it a moment ago
            try:
                if ready & ~WRITE:
                    self._sort(port, port.device.read_batch(limit), packets, now)
                if ready & WRITE:
                    self._dirty.add(port)
            except DeviceClosed as closed:
                self.disconnect(port, str(closed))
        self.flush()
        return packets

    def write_batch(self, packets: Sequence[Packet]) -> int:
        """See `Device`; all of them, whoever reads."""
        now = self._clock()
        send, lent = self.switch.send, self._lent
        leaving: dict[int, list[Packet]] = {}
        for packet in packets:
            targets = send(packet.head, now)
            if len(targets) > 1:
                packet.detach()
            elif targets and lent is not None and not packet.head[0] & 1:
                lent.locate(targets[0], bytes(packet.head[:6]), now + TRUST)
            for number in targets:
                leaving.setdefault(number, []).append(packet)
        self._send(leaving)
        return len(packets)

    def flush(self) -> bool:
        """See `Device`; what waits for a port is not the caller's concern, and so True."""
        if self._lent is not None:
            self._settle(self._lent)
            return True
        while self._dirty:
            port = self._dirty.pop()
            try:
                done = port.flush()
            except DeviceClosed as closed:
                self.disconnect(port, str(closed))
                continue
            self._want(port, READ if done else READ | WRITE)
        return True

    def close(self) -> None:
        """See `Device`. The fast path must have ended."""
        self._lent = None
        for port in self.ports:
            self.disconnect(port, "the gateway ends")
        self._poller.close()
        if self._wakeup is not None:
            self._wakeup.close()
        self.is_closed = True

    def lend(self, fast: FastPath) -> bool:
        """Let `fast` read and write all ports from now on; False if it does already. MemoryError."""
        if self._lent is not None:
            return False
        lent = fast.open_switch(self._poller.fileno())
        if self._wakeup is None:
            self._wakeup = Wakeup()
        else:
            self._poller.remove(self._wakeup)
        for port in self._ports.values():
            self._lend_port(port, lent)
        self._lent = lent
        self.offloads = lent_offloads(self.offloads.mtu)
        return True

    def take_back(self) -> None:
        """Read and write them in Python again, from where the fast path is, which must have ended."""
        lent = self._lent
        if lent is None:
            return
        self._settle(lent)
        self._lent = None
        self.offloads = self._plain
        for port in self._ports.values():
            port.take_back()
            lent.disconnect(port.number)
            self._want(port, READ | WRITE)
        if self._wakeup is not None:
            self._poller.add(self._wakeup, self._wakeup, READ)
            self._wakeup.set()

    def take_frames(self, frames: Sequence[memoryview]) -> list[Packet]:
        """The packets of what the fast path has read, or was refused, virtio-net header first."""
        return [parse_frame(frame, _UNTOLD) for frame in frames]

    def sort_frames(self, frames: Sequence[memoryview], numbers: Sequence[int]) -> list[Packet]:
        """Those for the gateway of `frames` that came in at ports that the fast path knew nothing of."""
        now = self._clock()
        packets: list[Packet] = []
        for number, frame in zip(numbers, frames, strict=True):
            port = self._ports.get(number)
            if port is not None:
                self._sort(port, port.device.take_frames([frame]), packets, now)
        return packets

    def _sort(self, port: Port, frames: Sequence[Packet], packets: list[Packet], now: float) -> None:
        """Send `frames`, which came in at `port`, to whom they are for: the gateway's go to `packets`."""
        receive = self.switch.receive
        leaving: dict[int, list[Packet]] = {}
        for packet in frames:
            targets = receive(port.number, packet.head, now)
            if len(targets) == 1 and self._lent is not None:
                self._teach(self._lent, port.number, packet.head, targets[0], now)
            elif len(targets) > 1:
                packet.detach()
            for number in targets:
                leaving.setdefault(number, []).append(packet)
        packets += leaving.pop(GATEWAY, ())
        self._send(leaving)

    def _teach(self, lent: NativeSwitch, port: int, frame: Buffer, target: int, now: float) -> None:
        """The switch has let `frame` pass from `port` to `target`."""
        mac, ethertype = bytes(frame[6:12]), frame[12] << 8 | frame[13]
        if ethertype == ETHERTYPE_IPV4:
            lent.allow(port, mac, bytes(frame[26:30]), now + TRUST)
        elif ethertype == ETHERTYPE_IPV6:
            lent.allow(port, mac, bytes(frame[22:38]), now + TRUST)
        else:
            return
        lent.locate(port, mac, now + TRUST)
        if target != GATEWAY and self.switch.port_of(bytes(frame[:6]), now) == target:
            lent.locate(target, bytes(frame[:6]), now + TRUST)

    def _send(self, leaving: dict[int, list[Packet]]) -> None:
        for number, packets in leaving.items():
            port = self._ports.get(number)
            if port is None:
                continue  # it has just gone
            try:
                port.write(packets)
                self._dirty.add(port)
            except DeviceClosed as closed:
                self.disconnect(port, str(closed))

    def _settle(self, lent: NativeSwitch) -> None:
        """Send what Python has written, and deal with what the fast path has found."""
        while self._dirty:
            port = self._dirty.pop()
            try:
                lent.flush(port.number)
            except OSError as error:
                self.disconnect(port, f"{port.device.name}: {error.strerror}")
        for number, code in lent.ended():
            port = self._ports[number]
            self.disconnect(port, f"{port.device.name}: {os.strerror(code)}")
        drops = self.switch.drops
        for reason, count in zip(_LENT_DROPS, lent.take_drops(), strict=True):
            if count:
                drops.add(reason, count)
        leases = self.switch.guard.leases
        if leases is not None and leases.changes != self._lease_changes:
            self._lease_changes = leases.changes
            lent.forget()

    def _lend_port(self, port: Port, lent: NativeSwitch) -> None:
        port.lend(lent, is_isolated=self.switch.is_isolated(port.number))
        self._want(port, READ)  # the fast path asks for more when it has to
        self._dirty.add(port)
        lent.forget()

    def _want(self, port: Port, interest: int) -> None:
        if interest != port.interest:
            port.interest = interest
            self._poller.modify(port, port, interest)

    def _tell(self) -> None:
        if self.on_ready is not None:
            self.on_ready()


_LENT_DROPS = (DropReason.PORT_QUEUE_FULL, *LENT_DROPS)
