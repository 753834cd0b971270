"""One flow of a script, and the ways between its numbers and those on the wire.

A script counts from its own initial sequence numbers, usually 0 on either side. The stack's ISN is learned
from its first SYN, that of the peer is the script's choice (`--remote_isn`). Timestamps of the stack are what
the script called them: each `TS val N` that matched a segment is remembered with the value on the wire, and a
later `ecr N` goes out as that. Of a value that the script never named, the distance to the nearest one that
it did name is kept; if it named none, the latest one on the wire is echoed.
"""

from __future__ import annotations

from collections.abc import Iterator

MASK = 0xFFFFFFFF
_FIRST_REMOTE_PORT = 40000
"""Of the peer, where the script names none; one more for each connection."""


class TimestampMap:
    """The stack's timestamps: what the script calls them, and what they are on the wire."""

    def __init__(self) -> None:
        self._live: dict[int, int] = {}
        self._base: tuple[int, int] | None = None
        self.latest: int | None = None
        """The newest value on the wire."""

    def learn(self, script: int, live: int) -> None:
        """A segment with `live` was what the script calls `script`."""
        self._live[script] = live
        if self._base is None:
            self._base = (script, live)

    def to_live(self, script: int) -> int:
        """What the peer echoes when the script says `ecr script`."""
        if script in self._live:
            return self._live[script]
        if script == 0 and self.latest is None:
            return 0
        if self._live:
            nearest = min(self._live, key=lambda known: abs(known - script))
            return (self._live[nearest] + script - nearest) & MASK
        return script if self.latest is None else self.latest

    def to_script(self, live: int) -> int:
        """How the script would call `live`; the value itself before the script named any."""
        if self._base is None:
            return live
        script, at = self._base
        return (live - at + script) & MASK

    @property
    def known(self) -> bool:
        """Whether the script has named a value."""
        return self._base is not None


class Flow:
    """A connection (or what the script takes for one) by its ports, with what maps its numbers."""

    def __init__(self, local_port: int, remote_port: int, remote_isn: int) -> None:
        self.local_port = local_port
        self.remote_port = remote_port
        self.remote_offset = remote_isn
        self.local_offset: int | None = None
        """Number on the wire of the stack's 0; None before its first SYN."""
        self.fresh = True
        """The next SYN of the stack opens a connection: its number is a new ISN, not a repeated one."""
        self.isn_named = False
        """The script has said how it calls the stack's ISN."""
        self.remote_syn: int | None = None
        """The number in the peer's latest SYN, as in the script."""
        self.peer_mss: int | None = None
        """What the peer's latest SYN said of its MSS."""
        self.timestamps = TimestampMap()
        self.sent = bytearray()
        """What the stack has sent, from the first byte on; a repetition must be equal."""

    def __str__(self) -> str:
        return f"{self.local_port} > {self.remote_port}"

    def local_to_live(self, number: int) -> int:
        """A number of the stack: script to wire."""
        return (number + (self.local_offset or 0)) & MASK

    def local_to_script(self, number: int) -> int:
        """A number of the stack: wire to script."""
        return (number - (self.local_offset or 0)) & MASK

    def remote_to_live(self, number: int) -> int:
        """A number of the peer: script to wire."""
        return (number + self.remote_offset) & MASK

    def remote_to_script(self, number: int) -> int:
        """A number of the peer: wire to script."""
        return (number - self.remote_offset) & MASK

    def stack_sent_syn(self, seq: int) -> None:
        """The stack has sent a SYN with `seq` on the wire."""
        if self.fresh:
            self.local_offset = seq
            self.fresh = False
            self.isn_named = False
            self.sent.clear()

    def name_isn(self, seq: int, number: int) -> None:
        """The script calls the `seq` of the stack's SYN `number`, of which only the first counts."""
        if self.local_offset == seq and not self.isn_named:
            self.local_offset = (seq - number) & MASK
            self.isn_named = True

    def peer_sends_syn(self, number: int) -> None:
        """The script sends a SYN with `number`: another than before opens a new connection."""
        if self.remote_syn is not None and self.remote_syn != number:
            self.fresh = True
        self.remote_syn = number

    def check_payload(self, start: int, data: bytes) -> int | None:
        """Remember what the stack sent at `start` (script numbers, 1 is the first byte).

        Returns the number of the first byte that differs from what was sent there before, or None.
        """
        place = (start - 1) & MASK
        if place > len(self.sent):
            return None
        known = self.sent[place : place + len(data)]
        if known != data[: len(known)]:
            return next((start + index) & MASK for index, byte in enumerate(known) if byte != data[index])
        self.sent += data[len(known) :]
        return None


class FlowTable:
    """The flows of a script, and which of them packets without ports belong to.

    A packet of the script belongs to the newest flow. A SYN that repeats the number of a handshake under way,
    or that has a number other than 0 while the flow is alive, belongs to the newest flow too; any other SYN
    opens a flow with a port of its own.
    """

    def __init__(self, local_port: int, connect_port: int, remote_isn: int) -> None:
        self._local_port = local_port
        self._connect_port = connect_port
        self._remote_isn = remote_isn
        self._next_port = _FIRST_REMOTE_PORT
        self._flows: dict[tuple[int, int], Flow] = {}
        self.current: Flow | None = None
        self.datagrams: Flow | None = None
        """The latest flow of UDP."""

    def __iter__(self) -> Iterator[Flow]:
        return iter(self._flows.values())

    def get(self, local_port: int, remote_port: int, *, opens: bool = False) -> Flow:
        """The flow with these ports; a new one becomes the current one if it `opens` or there is none."""
        flow = self._flows.get((local_port, remote_port))
        if flow is None:
            flow = self._flows[local_port, remote_port] = Flow(local_port, remote_port, self._remote_isn)
            if opens or self.current is None:
                self.current = flow
        return flow

    def known(self, local_port: int, remote_port: int) -> bool:
        """Whether there is a flow with these ports."""
        return (local_port, remote_port) in self._flows

    def for_syn(self, number: int, opening: bool, alive: bool) -> Flow:
        """The flow of the peer's SYN with `number`; the current flow is `opening`, or `alive` at all."""
        current = self.current
        if current is not None and ((opening and current.remote_syn in (None, number)) or (alive and number)):
            return current
        return self._new()

    def for_segment(self) -> Flow:
        """The flow of any other segment of the peer."""
        return self.current or self._new()

    def for_datagram(self) -> Flow:
        """The flow of a datagram of the peer: the latest, or one from the port that `connect` goes to."""
        if self.datagrams is None:
            self.datagrams = Flow(self._local_port, self._connect_port, 0)
        return self.datagrams

    def see_datagram(self, local_port: int, remote_port: int) -> Flow:
        """The stack has sent a datagram."""
        flow = self.datagrams
        if flow is None or (flow.local_port, flow.remote_port) != (local_port, remote_port):
            flow = self.datagrams = Flow(local_port, remote_port, 0)
        return flow

    def _new(self) -> Flow:
        while self.known(self._local_port, self._next_port):
            self._next_port += 1
        self._next_port += 1
        return self.get(self._local_port, self._next_port - 1, opens=True)
