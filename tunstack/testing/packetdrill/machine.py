"""The stack and its host in virtual time: packets and calls go in, packets come out with the time they left.

Nothing sleeps: time is what `advance` says, and jumps from one timer to the next. Instants within half a
microsecond of each other are one instant, the unit of a script being the microsecond; at one instant timers
come before what the script does.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tunstack import native
from tunstack.packet import Packet
from tunstack.stack import Stack
from tunstack.tcp import congestion
from tunstack.tcp.isn import SequenceSource
from tunstack.testing.packetdrill.flow import Flow, FlowTable
from tunstack.testing.packetdrill.language.values import Value
from tunstack.testing.packetdrill.settings import Settings
from tunstack.testing.packetdrill.system import Call, System
from tunstack.testing.packets import SYN, Frame, dissect

START = 1000.0
"""The machine's clock at time 0 of a script, in seconds."""
INSTANT = 5e-7
ROUNDS = 10_000
"""A stack that has more to do at one instant than this many rounds never comes to rest."""
_MAC = bytes.fromhex("020000000001")


class Restless(Exception):
    """The stack or its host does something again and again without time going on."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A packet of the stack: when it left (seconds since the start of the script), and in which flow."""

    time: float
    frame: Frame
    flow: Flow | None


class Machine:
    """What a script is run against.

    Attributes:
        sent: what the stack has sent and nobody has taken.
        flows: the connections seen so far.
        on_packet: called with the time, the bytes and whether they came from the stack, for each packet.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._rng = random.Random(settings.seed)
        self.stack = Stack(
            mac=_MAC,
            mtu=settings.mtu,
            prefixes=[settings.prefix],
            own_addresses=[settings.local],
            rng=self._rng,
            l2=False,
            ecn=settings.ecn != "off",
            congestion=settings.congestion or congestion.DEFAULT,
        )
        if settings.local_isn is not None:
            self.stack.sequence = _FixedSource(self._rng.randbytes(32), settings.local_isn)
        self.system = System(
            self.stack,
            local=settings.local,
            remote=settings.remote,
            bind_port=settings.bind_port,
            connect_port=settings.connect_port,
            family=settings.ip_version,
        )
        self._clock = START
        self.sent: deque[Sent] = deque()
        self.flows = FlowTable(settings.bind_port, settings.connect_port, settings.remote_isn)
        self.on_packet: Callable[[float, bytes, bool], None] = lambda time, data, outbound: None

    @property
    def now(self) -> float:
        """Seconds since the start of the script."""
        return self._clock - START

    def script_time(self, at: float) -> float:
        """`at` on the machine's clock in seconds of the script."""
        return at - START

    # what the script does

    def inject(self, data: bytes) -> None:
        """A packet of the peer arrives now."""
        self.on_packet(self.now, data, False)
        self.stack.receive(Packet(memoryview(bytearray(data))), self._clock)
        self._rest()

    def call(self, name: str, arguments: list[Value]) -> Call:
        """A system call begins now. Raises `system.Unsupported`."""
        if name == "connect":
            self._expect_new_connections()
            self.stack.ecn = self.settings.ecn == "on"
        call = self.system.call(name, arguments, self._clock)
        self.stack.ecn = self.settings.ecn != "off"
        self._rest()
        return call

    def _expect_new_connections(self) -> None:
        for flow in self.flows:
            if self._key(flow) not in self.stack.connections:
                flow.fresh = True

    # time

    def advance(self, until: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Let time go on to `until` (seconds of the script), or until `done()`; returns `done()`."""
        limit = START + until
        rounds = 0
        while not done():
            due = self.next_timeout()
            if due is None or START + due > limit + INSTANT:
                self._clock = max(self._clock, limit)
                return done()
            rounds = rounds + 1 if START + due <= self._clock else 0
            if rounds > ROUNDS:
                raise Restless(f"a timer that is due at {due:.6f} s is not acted upon")
            self._clock = max(self._clock, START + due)
            self._expire()
        return True

    def next_timeout(self) -> float | None:
        """When the next timer is due (seconds of the script), or None."""
        times = [at for at in (self.stack.next_timeout(), self.system.next_timeout()) if at is not None]
        return min(times) - START if times else None

    def _expire(self) -> None:
        now = self._clock
        deadline = self.stack.next_timeout()
        if deadline is not None and deadline <= now:
            self.stack.handle_timeout(now)
            self._rest()
        deadline = self.system.next_timeout()
        if deadline is not None and deadline <= now:
            self.system.handle_timeout(now)
            self._rest()

    def _rest(self) -> None:
        """Carry events and packets until nothing more happens at this instant."""
        for _ in range(ROUNDS):
            events = self.stack.poll_events()
            for event in events:
                self.system.on_event(event, self._clock)
            self.stack.settle()
            packets = self.stack.poll_transmit(self._clock)
            for packet in packets:
                for wire in native.segment(packet, False):
                    self._capture(wire)
            if not events and not packets:
                return
        raise Restless("the stack and its host do not come to rest")

    def _capture(self, wire: bytes) -> None:
        self.on_packet(self.now, wire, True)
        frame = dissect(wire)
        self.sent.append(Sent(self.now, frame, self._flow_of(frame)))

    # flows

    def _flow_of(self, frame: Frame) -> Flow | None:
        tcp = frame.tcp
        if tcp is not None:
            flow = self.flows.get(tcp.src_port, tcp.dst_port, opens=bool(tcp.flags & SYN))
            if tcp.flags & SYN:
                flow.stack_sent_syn(tcp.seq)
            for option in tcp.options:
                if option.stamps is not None:
                    flow.timestamps.latest = option.stamps[0]
            return flow
        if frame.udp is not None:
            return self.flows.see_datagram(frame.udp.src_port, frame.udp.dst_port)
        quote = frame.quote
        if quote is not None and quote.tcp is not None:
            return self.flows.get(quote.tcp.dst_port, quote.tcp.src_port)
        return self.flows.current

    def _key(self, flow: Flow) -> bytes:
        """How the stack calls the flow."""
        ports = flow.remote_port.to_bytes(2, "big") + flow.local_port.to_bytes(2, "big")
        return self.settings.remote + self.settings.local + ports

    def is_alive(self, flow: Flow | None) -> bool:
        """Whether the stack has a connection for the flow, or a request."""
        return flow is not None and (
            self._key(flow) in self.stack.connections or self._key(flow) in self.stack.requests
        )

    def is_opening(self, flow: Flow | None) -> bool:
        """Whether the handshake of the flow is under way."""
        if flow is None:
            return False
        key = self._key(flow)
        connection = self.stack.connections.get(key)
        if connection is None:
            return key in self.stack.requests
        return not connection.established and not connection.closed


class _FixedSource(SequenceSource):
    """Initial sequence numbers that a test chooses; the next connection begins 2^16 higher."""

    __slots__ = ("_next",)

    def __init__(self, secret: bytes, first: int) -> None:
        super().__init__(secret)
        self._next = first

    def isn(self, local: bytes, local_port: int, remote: bytes, remote_port: int, now: float) -> int:
        """The next number."""
        number = self._next
        self._next = (number + (1 << 16)) & 0xFFFFFFFF
        return number
