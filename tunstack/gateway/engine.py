"""The trio driver of one gateway: one task that moves everything.

Theory of operation. The engine waits on one poller behind which the device and all host sockets are. When
something is ready it runs *rounds*: handle one bounded batch of each ready source, deliver the stack's
events, flush the stack and write the device, once for the round. After a round it polls again without
waiting, up to `ROUNDS` times, because under load the next round is nearly always due and a turn of the trio
loop costs as much as several packets; then it yields to trio.

A shaped link has its offloads turned off; `shape` may change that at any time. What is read goes through the
up pipeline and reaches the stack when it has left that, coalesced again; what the stack sends goes through
the down pipeline and then to the transmit queue. Where both pipelines have a native form they are lent to the
fast path, which shapes all traffic then, Python's too; where one has none, there is no fast path.

Timers: the earliest deadline of stack, NAT and shaping is the deadline of a cancel scope around the wait. For
a shaped link there is an `Alarm` beside, as those deadlines count milliseconds.
Who touches the stack from another task (library streams, services) calls `wake`, which cancels that wait.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, cast

import trio

from tunstack.background import beside
from tunstack.errors import DropReason
from tunstack.gateway.ports import DevicePort, ShapedPort
from tunstack.link.devices.base import Device, DeviceClosed, LendableDevice
from tunstack.link.devices.segment import SegmentDevice
from tunstack.link.devices.vnet import VnetDevice
from tunstack.nat.poller import Poller, Token
from tunstack.native import fastpath
from tunstack.packet import Packet
from tunstack.stack import Event, Stack

if TYPE_CHECKING:
    from tunstack.link.shaping.shaper import Shaper
    from tunstack.link.shaping.spec import ShapeSpec
    from tunstack.nat.fast import FastFlows

ROUNDS = 8
"""Rounds in a row before other trio tasks get their turn."""
LINGER = 0.0003
"""Seconds that C waits for what comes next before it goes back to trio, whose turn costs about 60 us."""
TURN = 0.003
"""Seconds after which other trio tasks get their turn, however busy C and Python are."""
QUIET = 1.0
"""Seconds without another trio task after which `QUIET_TURN` is both: so short a wait has its own price."""
QUIET_TURN = 0.01
_FAST_ROUNDS = 1 << 16
"""In C, in a row; time ends them before."""


class EventHandler(Protocol):
    """What the engine drives besides the stack: the NAT."""

    def handle(self, event: Event, now: float) -> None: ...
    def next_timeout(self) -> float | None: ...
    def handle_timeout(self, now: float) -> None: ...


class FrameDevice(Device, Protocol):
    """A device that knows the frames that C has read from it."""

    def take_frames(self, frames: Sequence[memoryview]) -> list[Packet]: ...


class _Others(trio.abc.Instrument):
    """Notices that other tasks of trio want their turn, and when one last did."""

    __slots__ = ("_me", "are_due", "last")

    def __init__(self) -> None:
        self._me = trio.lowlevel.current_task()
        self.are_due = False
        self.last = trio.current_time()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if task is not self._me:
            self.are_due = True
            self.last = trio.current_time()


class Engine:
    """Drives `stack`, `handler` and at most one device at a time.

    Attributes:
        detached: set when the device has gone; replaced when another is attached.
        shaper: shapes the link, if there is one; set by `shape`.
    """

    def __init__(self, stack: Stack, poller: Poller) -> None:
        self.stack = stack
        self.poller = poller
        self.handler: EventHandler | None = None
        self.shaper: Shaper | None = None
        self.detached = trio.Event()
        self.detached.set()
        self._port: DevicePort | None = None
        self._shaped: ShapedPort | None = None
        self._scope: trio.CancelScope | None = None
        self._woken = False
        self._fast: FastFlows | None = None
        self._accelerated_before = 0
        self.set_carrier: Callable[[FastFlows | None], None] | None = None
        """Tells the NAT who carries established flows; without it Python carries them all."""

    @property
    def device(self) -> Device | None:
        """The attached device."""
        return None if self._port is None else self._port.device

    def attach(self, device: Device) -> None:
        """Begin to serve `device`, which the engine closes in the end."""
        if self._port is not None:
            raise RuntimeError("a device is attached already")
        self._open_port(device)
        self.detached = trio.Event()
        self.wake()

    def shape(self, shaper: Shaper | None) -> None:
        """Put `shaper` between device and stack from now on, or nothing. Not from within a round.

        Nothing is lost: what is on its way through the shaper before arrives.
        """
        if shaper is self.shaper:
            return
        self.shaper = shaper
        self._set_train_limit()
        port = self._port
        if port is None:
            return
        now = trio.current_time()
        try:
            self._close_fast(now)
            if self._shaped is not None:
                self._shaped.release(now)
                self._shaped = None
            waiting = port.queue.hand_over()
            port.detach(self.poller)
            device = port.device
            if shaper is None:
                device.set_offloads(True)
            self._open_port(device)
            assert self._port is not None
            self._port.queue.adopt(waiting)
            self._port.write([])
            if self._fast is None:
                self._port.read(now)  # a device that was lent may hold what its descriptor does not tell of
        except (DeviceClosed, OSError):  # the interface is gone, which its offloads tell first
            self.detach()
        self.wake()

    def change_shape(self, up: ShapeSpec | None, down: ShapeSpec | None, *, is_cut: bool) -> None:
        """Let the shaper that there is do this from now on; see `Shaper.change`. Not from within a round."""
        shaper, shaped = self.shaper, self._shaped
        assert shaper is not None
        now = trio.current_time()
        if shaped is not None:
            shaped.take_back()
        try:
            shaper.change(up, down, now)
            if shaped is not None:
                try:
                    shaped.advance(now)
                    shaped.flush(now)
                except DeviceClosed:
                    self.detach()
            shaper.prune()
            shaper.set_cut(is_cut)
            self._set_train_limit()
        finally:
            self._settle_fast(now)
        self.wake()

    def settle_shaping(self) -> None:
        """Bring the statistics of the shaper up to date. Not from within a round."""
        if self._shaped is not None and self._shaped.take_back():
            self._settle_fast(trio.current_time())

    def _settle_fast(self, now: float) -> None:
        """Shape in C again, or in Python from now on: the pipelines were taken back, and maybe changed."""
        port, shaped = self._port, self._shaped
        if port is None or shaped is None:
            return
        if not shaped.has_native_form:
            self._close_fast(now)
        elif self._fast is not None:
            shaped.lend(self._fast.fast)
        else:
            self._set_fast(self._make_fast(port.device))

    def _set_train_limit(self) -> None:
        self.stack.set_train_limit(None if self.shaper is None else self.shaper.train_limit)
        if self._fast is not None:
            self._fast.take_train_limit()

    def _open_port(self, device: Device) -> None:
        if self.shaper is None:
            self._port = DevicePort(self, device)
        else:
            self._port = self._shaped = ShapedPort(self, device, self.shaper)
        self._port.attach(self.poller)
        self._set_fast(self._make_fast(device))

    def _close_fast(self, now: float) -> None:
        """Give everything back to Python."""
        if self._fast is not None:
            frames = self._fast.close(now)
            self._set_fast(None)
            if self._shaped is not None:
                self._shaped.take_back()
            port = self._port
            if port is None:
                return
            if isinstance(port.device, LendableDevice):
                port.device.take_back()
            if frames:
                port.take(cast(FrameDevice, port.device).take_frames(frames), now)

    def detach(self) -> None:
        """Close the device, if there is one. The stack keeps its state."""
        port = self._port
        if port is not None:
            self._close_fast(self.stack.now)
            self._port = None
            port.detach(self.poller)
            port.device.close()
            if self._shaped is not None:
                self._shaped.clear()
                self._shaped = None
            self.detached.set()

    def _make_fast(self, device: Device) -> FastFlows | None:
        """The fast path for `device`, where there can be one.

        It needs descriptors, and all offloads for TCP, unless a shaper cuts all trains, which has to have a
        native form.
        """
        offloads, shaped = device.offloads, self._shaped
        epoll_fd, device_fd = self.poller.fileno(), device.fileno()
        if self.set_carrier is None or not fastpath.available or epoll_fd < 0 or device_fd is None:
            return None
        if shaped is not None and not shaped.has_native_form:
            return None
        if isinstance(device, VnetDevice):
            has_all = offloads.checksum and offloads.tso4 and offloads.tso6
            if not (device.has_header and (has_all or shaped is not None)):
                return None
        elif not isinstance(device, LendableDevice):
            return None
        from tunstack.nat.fast import FastFlows

        stack = self.stack
        fast = fastpath.FastPath(
            random.SystemRandom().getrandbits(64),
            epoll_fd=epoll_fd,
            device_fd=device_fd,
            mac=stack.link.mac if stack.l2 else None,
        )
        if isinstance(device, LendableDevice):
            if not device.lend(fast):
                return None
            fast.c.untold = 1
        else:
            fast.c.burst_minimum = 1
        fast.c.udp.uso = device.offloads.uso
        fast.c.clock_offset = trio.current_time() - time.monotonic()
        if shaped is not None:
            shaped.lend(fast)
        return FastFlows(fast, stack)

    @property
    def has_fast_path(self) -> bool:
        """Whether flows may be carried in C now."""
        return self._fast is not None

    @property
    def accelerated_segments(self) -> int:
        """TCP segments that the fast path has handled so far."""
        return self._accelerated_before + (0 if self._fast is None else self._fast.segments)

    def _set_fast(self, fast: FastFlows | None) -> None:
        self._accelerated_before = self.accelerated_segments
        self._fast = fast
        if self.set_carrier is not None:
            self.set_carrier(fast)

    def wake(self) -> None:
        """Somebody touched the stack: run a round soon. Callable from any task of this thread."""
        self._woken = True
        if self._scope is not None:
            self._scope.cancel()

    def deliver(self, now: float) -> None:
        """Hand the stack's events to the handler until there are none, then settle the stack."""
        stack = self.stack
        handler = self.handler
        assert handler is not None
        while events := stack.poll_events():
            for event in events:
                handler.handle(event, now)
        stack.settle()

    def running(self) -> contextlib.AbstractAsyncContextManager[trio.Nursery]:
        """Serve as long as the block, and so does what it starts in the nursery; see `beside`."""
        return beside(self.run)

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            while True:
                if self._fast is None:
                    await self._serve()
                else:
                    await self._serve_fast(self._fast)
        finally:
            self.detach()

    async def _serve(self) -> None:
        """Serve by Python alone, as long as there is no fast path."""
        poller = self.poller
        ready: list[tuple[Token, int]] = []
        rounds = 0
        while self._fast is None:
            self._woken = False
            now = trio.current_time()
            try:
                for token, bits in ready:
                    token.on_ready(bits, now)
                self._work(now)
            except DeviceClosed:
                self.detach()
                self._woken = True  # the round was cut short; what is ready beside the device waits
            rounds += 1
            ready = poller.poll()
            if not ready and not self._woken:
                wait = self._sleep_until(self._next_deadline())
                if wait is not None:
                    rounds = 0
                    ready = await self._wait(wait)
                    continue
            if rounds >= ROUNDS:
                rounds = 0
                await trio.lowlevel.checkpoint()

    async def _serve_fast(self, fast: FastFlows) -> None:
        """Serve with C in front, as long as it is `fast`."""
        others = _Others()
        trio.lowlevel.add_instrument(others)
        try:
            await self._serve_while(fast, others)
        finally:
            trio.lowlevel.remove_instrument(others)

    async def _serve_while(self, fast: FastFlows, others: _Others) -> None:
        c = fast.fast.c
        linger, end = LINGER, trio.current_time() + TURN
        while self._fast is fast:
            self._woken = False
            try:
                busy = self.fast_turn(fast, linger, end)
            except DeviceClosed:
                self.detach()
                return
            deadline = None
            if not busy and not self._woken:
                deadline = self._sleep_until(min(self._next_deadline(), fast.next_timeout()))
            if deadline is not None:
                others.are_due = False
                await self._wait_fast(deadline)
            elif c.now >= end or others.are_due:
                others.are_due = False
                await trio.lowlevel.checkpoint()
            else:
                continue
            now = trio.current_time()
            is_quiet = now - others.last > QUIET
            linger = QUIET_TURN if is_quiet else LINGER
            end = now + (QUIET_TURN if is_quiet else TURN)

    def fast_turn(self, fast: FastFlows, linger: float, end: float = math.inf) -> bool:
        """Rounds in C until `end`, and what they leave for Python; False if nothing is ready any more."""
        c = fast.fast.c
        c.hold = self._port is not None and len(self._port.queue) != 0
        status = fast.run(linger, min(self._next_deadline(), end), _FAST_ROUNDS)
        now = c.now
        if status == 1:
            self._take_fast(fast, now)
        fast.after_flush(now)
        self._work(now)
        if fast.changes != self.stack.link.changes:
            fast.check_neighbours(now)
        fast.offer()
        if self._shaped is not None:
            self._shaped.count_drops()
        return status > 0

    def _take_fast(self, fast: FastFlows, now: float) -> None:
        """What C has left for Python, and the second half of its round."""
        port = self._port
        assert port is not None
        device = cast(FrameDevice, port.device)
        ready = fast.decide(now)
        if frames := fast.fast.frames():
            if isinstance(device, SegmentDevice):
                frames = self._sort(device, frames, fast.fast.frame_ports(), now)
            port.take(device.take_frames(frames), now)
        for token, bits in self.poller.tokens(fast.fast.ready()):
            token.on_ready(bits, now)
        for flow, bits in ready:
            flow.on_ready(bits, now)
        fast.flush()
        if refused := fast.fast.refused():
            port.write(device.take_frames([memoryview(frame) for frame in refused]))
        if fast.fast.c.device_errno:
            raise DeviceClosed(os.strerror(fast.fast.c.device_errno))

    def _sort(
        self, segment: SegmentDevice, frames: list[memoryview], numbers: list[int], now: float
    ) -> list[memoryview]:
        """Deal with the frames of ports that C could not judge; returns the others."""
        if not any(numbers):
            return frames
        strange = [index for index, number in enumerate(numbers) if number]
        packets = segment.sort_frames([frames[i] for i in strange], [numbers[i] for i in strange])
        if packets and self._port is not None:
            self._port.take_early(packets, now)
        return [frame for frame, number in zip(frames, numbers, strict=True) if not number]

    def _sleep_until(self, deadline: float) -> float | None:
        """The deadline for trio's wait; None: `deadline` is too near for one."""
        shaped = self._shaped
        return deadline if shaped is None else shaped.set_alarm(deadline, trio.current_time())

    async def _wait_fast(self, deadline: float) -> None:
        """Wait until something is ready, `deadline` passes or somebody calls `wake`."""
        with trio.CancelScope(deadline=deadline) as scope:
            self._scope = scope
            try:
                await trio.lowlevel.wait_readable(self.poller.fileno())
            finally:
                self._scope = None

    async def _wait(self, deadline: float) -> list[tuple[Token, int]]:
        """What is ready, as soon as something is; nothing if the deadline passes or somebody calls `wake`."""
        with trio.CancelScope(deadline=deadline) as scope:
            self._scope = scope
            try:
                return await self.poller.wait()
            finally:
                self._scope = None
        return []

    def _work(self, now: float) -> None:
        """Timers, a device without a descriptor, events, output: what every round does."""
        stack = self.stack
        handler = self.handler
        assert handler is not None
        deadline = stack.next_timeout()
        if deadline is not None and deadline <= now:
            stack.handle_timeout(now)
        deadline = handler.next_timeout()
        if deadline is not None and deadline <= now:
            handler.handle_timeout(now)
        port = self._port
        if port is not None and port.fileno() < 0 and port.read(now):
            self._woken = True
        if self._shaped is not None:
            self._shaped.advance(now)
        self.deliver(now)
        self._flush(now)
        while stack.has_events:  # a flush may end a connection
            self.deliver(now)
            self._flush(now)

    def _flush(self, now: float) -> None:
        if self._port is not None:
            self._port.flush(now)
        elif lost := self.stack.poll_transmit(now):
            self.stack.drops.add(DropReason.NO_DEVICE, len(lost))

    def _next_deadline(self) -> float:
        handler = self.handler
        assert handler is not None
        deadlines = [self.stack.next_timeout(), handler.next_timeout()]
        if self._shaped is not None:
            deadlines.append(self._shaped.next_timeout())
        return min((d for d in deadlines if d is not None), default=float("inf"))
