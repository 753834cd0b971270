"""The scripted peer of a `Stack` of this project, in virtual time, without a device."""

from __future__ import annotations

import random
from collections.abc import Callable

from tunstack import native
from tunstack.ip.addresses import Prefix
from tunstack.limits import Limits
from tunstack.packet import GsoType, Packet
from tunstack.stack import Event, Stack
from tunstack.tcp.connection import Connection
from tunstack.tcp.endpoint import CloseReason
from tunstack.tcp.listener import TcpRequest
from tunstack.tcp.states import State
from tunstack.testing.checkers import Mismatch
from tunstack.testing.peer.conversation import PEER_PORT, STACK_PORT, Peer
from tunstack.testing.peer.wire import MOD

DEFAULT_ISNS = [(1_000, 5_000)]
"""ISNs (peer, stack) of a `StackPeer` that is not told any: the last ones."""

_ROUNDS = 100
"""Rounds of events and output without an input after which a stack is said not to come to rest."""


class StackPeer(Peer):
    """A stack, and the far end of one connection of it.

    Attributes:
        stack: the stack, on layer 3.
        now: virtual time; moved by `advance` and `wait` only.
        accept: whether requests are accepted as they come.
        requests: all that came.
        connection: the connection that was opened or accepted last.
        on_progress: called for each connection that the stack reports.
    """

    def __init__(
        self,
        *,
        isns: tuple[int, int] | None = None,
        mtu: int = 1500,
        limits: Limits | None = None,
        seed: int = 7,
        timestamps: bool = False,
        window: int = 65535,
        accept: bool = True,
        listen: bool = True,
        congestion: str = "newreno",
        family: int = 4,
        sack: bool = False,
    ) -> None:
        """`isns`: those of peer and stack. `listen`: False refuses what the peer opens."""
        iss, wanted = isns or DEFAULT_ISNS[-1]
        super().__init__(iss=iss, family=family, mtu=mtu, timestamps=timestamps, window=window, sack=sack)
        self.stack = Stack(
            mac=bytes(6),
            mtu=mtu,
            prefixes=[Prefix.parse("10.0.0.0/24"), Prefix.parse("fd00::/64")],
            own_addresses=[self.local],
            rng=random.Random(seed),
            l2=False,
            limits=limits or Limits(),
            congestion=congestion,
            ecn=False,
        )
        self.now = self._moment_for(wanted)
        self.accept = accept
        self.listen = listen
        self.requests: list[TcpRequest] = []
        self.connection: Connection | None = None
        self._held: list[Packet] = []
        self._frames: list[bytearray] = []
        self.on_progress: Callable[[Connection], None] = lambda connection: None

    def _moment_for(self, iss: int) -> float:
        """A time at which the stack's ISN for this connection is `iss` (RFC 6528: a clock of 4 us)."""
        source = self.stack.sequence
        start = 1000.0
        ticks = (iss - source.isn(self.local, STACK_PORT, self.remote, PEER_PORT, start)) % MOD
        return start + (ticks + 0.5) / 250_000

    @property
    def conn(self) -> Connection:
        """The stack's connection."""
        assert self.connection is not None
        return self.connection

    @property
    def state(self) -> State:
        return self.conn.state

    @property
    def error(self) -> CloseReason | None:
        return self.conn.error

    @property
    def at_end(self) -> bool:
        return self.conn.receive_eof and not self.conn.readable

    def drops(self) -> dict[str, int]:
        """The drop counters of the stack."""
        return self.stack.drops.as_dict()

    def connect(self) -> None:
        self.connection = self.stack.connect(self.local, STACK_PORT, self.remote, PEER_PORT, self.now)
        self.pump()

    def write(self, data: bytes) -> int:
        return self.write_to(self.conn, data)

    def write_to(self, connection: Connection, data: bytes) -> int:
        """The same for any connection; how much found room."""
        taken = connection.send(data)
        self.pump()
        return taken

    def read(self, limit: int | None = None) -> bytes:
        data = b"".join(self.conn.peek())[:limit]
        self.conn.consume(len(data))
        self.pump()
        return data

    def shutdown(self) -> None:
        self.conn.shutdown()
        self.pump()

    def close(self) -> None:
        self.conn.release(self.now)
        self.pump()

    def abort(self) -> None:
        self.conn.abort()
        self.pump()

    def keep_alive(self, seconds: int) -> None:
        self.conn.keep_alive(float(seconds))
        self.pump()

    def _hold(self, frame: bytes, gso: int) -> None:
        buffer = bytearray(frame)
        self._frames.append(buffer)
        kind = GsoType.NONE if not gso else GsoType.TCPV4 if len(self.local) == 4 else GsoType.TCPV6
        self._held.append(Packet(memoryview(buffer), gso_size=gso, gso_type=kind))

    def release(self) -> None:
        held, self._held = self._held, []
        for packet in held:
            self.stack.receive(packet, self.now)
        self.pump()

    def pump(self) -> None:
        """Serve events and collect output until the stack is quiet; then the frame buffers are reused."""
        for _ in range(_ROUNDS):
            events = self.stack.poll_events()
            for event in events:
                self.on_event(event)
            packets = self.stack.poll_transmit(self.now)
            for packet in packets:
                for wire in native.segment(packet, False):
                    self._collect(bytes(wire), self.now)
            if not events and not packets:
                break
        else:
            raise Mismatch("the stack does not come to rest")
        self.stack.settle()
        for frame in self._frames:
            frame[:] = b"\xee" * len(frame)
        self._frames.clear()

    def on_event(self, event: Event) -> None:
        """The stack's user is told of `event`."""
        if isinstance(event, TcpRequest):
            self._request(event)
        elif isinstance(event, Connection):
            self.on_progress(event)

    def _request(self, request: TcpRequest) -> None:
        self.requests.append(request)
        if request.cancelled:
            return
        if not self.listen:
            self.stack.reset(request, self.now)
        elif self.accept:
            self.connection = self.stack.accept(request, self.now)

    def advance(self, seconds: float) -> None:
        """Let virtual time pass; timers of the stack run when they are due."""
        target = self.now + seconds
        stuck = 0
        while (deadline := self.stack.next_timeout()) is not None and deadline <= target:
            stuck = stuck + 1 if deadline <= self.now else 0
            assert stuck < _ROUNDS, "a timer that is due is not acted upon"
            self.now = max(self.now, deadline)
            self.stack.handle_timeout(self.now)
            self.pump()
        self.now = target

    def wait(self, seconds: float) -> bool:
        target = self.now + seconds
        while not self.inbox:
            deadline = self.stack.next_timeout()
            if deadline is None or deadline > target:
                self.now = max(self.now, target)
                return False
            self.advance(max(0.0, deadline - self.now))
        return True

    def _collect(self, raw: bytes, time: float) -> None:
        super()._collect(raw, time)
        if self.inbox and self.inbox[-1].raw is raw:
            tcp = self.inbox[-1].frame.tcp
            assert tcp is not None and not tcp.urgent, "the stack sends no urgent data"

    def end(self) -> None:
        """Nothing is occupied."""

    def _postscript(self) -> str:
        return f"\ndrops: {self.drops()}"
