"""What the stack has sent against what an event expects: put into the script's words, and compared.

One event may expect more payload than fits one segment (`> P. 1:10001(10000) ack 1`), as scripts do that were
written for kernels with segmentation offload. Then the segments of one instant that continue each other are
taken as one, provided that all but the last are of one size and only the last carries PSH or FIN.
"""

from __future__ import annotations

import dataclasses

from tunstack.testing.packetdrill.compare import differences
from tunstack.testing.packetdrill.flow import Flow
from tunstack.testing.packetdrill.language.printer import format_packet
from tunstack.testing.packetdrill.language.syntax import (
    PacketAction,
    Ports,
    Range,
    TcpPacket,
    Timestamps,
    UdpPacket,
)
from tunstack.testing.packetdrill.machine import INSTANT, Machine, Sent
from tunstack.testing.packetdrill.settings import Settings
from tunstack.testing.packetdrill.wire import options_size, read
from tunstack.testing.packets import Tcp, describe

_HEADERS = {4: 40, 6: 60}
"""By version: bytes of the headers of IP and TCP without options."""
_DEFAULT_MSS = {4: 536, 6: 1220}
"""What is sent to a peer that names no MSS (RFC 9293 MUST-15)."""


@dataclasses.dataclass(slots=True)
class Taken:
    """A packet from the queue: when it left (seconds), as a line of the script, what differs."""

    time: float
    line: str
    hints: list[str]
    segments: int = 1


class Outbound:
    """Takes packets of the stack."""

    def __init__(self, machine: Machine, settings: Settings) -> None:
        self._machine = machine
        self._settings = settings

    def take(self, packet: PacketAction) -> Taken:
        """The next packet, of which there must be one, compared with `packet`."""
        first = self._machine.sent.popleft()
        self._name(first, packet)
        actual = self._read(first, packet)
        pieces = [first]
        if isinstance(packet, TcpPacket) and isinstance(actual, TcpPacket):
            actual = self._join(pieces, actual, packet)
        taken = Taken(first.time, line_of(first, actual), self._hints(pieces, packet, actual), len(pieces))
        if not taken.hints:
            self._learn(first, packet)
        return taken

    def left_over(self, before: float) -> str | None:
        """The first packet that nobody took and that was sent before `before`, as a line of a script."""
        for sent in self._machine.sent:
            if sent.time < before - INSTANT:
                return line_of(sent, read(sent.frame, sent.flow))
        return None

    def rest(self) -> list[str]:
        """All packets that nobody took, as lines of a script."""
        return [line_of(sent, read(sent.frame, sent.flow)) for sent in self._machine.sent]

    # into the script's words

    def _name(self, sent: Sent, packet: PacketAction) -> None:
        """The first SYN of the script names the stack's ISN, its first timestamp the stack's clock."""
        flow, tcp = sent.flow, sent.frame.tcp
        if isinstance(packet, TcpPacket) and "S" in packet.flags and flow is not None and tcp is not None:
            flow.name_isn(tcp.seq, packet.range.start)
        if flow is not None and not flow.timestamps.known:
            self._learn(sent, packet)

    def _learn(self, sent: Sent, packet: PacketAction) -> None:
        """What the script has called the stack's timestamp."""
        if not isinstance(packet, TcpPacket) or sent.flow is None or sent.frame.tcp is None:
            return
        live = next((option.stamps for option in sent.frame.tcp.options if option.stamps), None)
        for option in packet.options or ():
            if isinstance(option, Timestamps) and option.val is not None and live is not None:
                sent.flow.timestamps.learn(option.val, live[0])

    def _read(self, sent: Sent, packet: PacketAction) -> PacketAction | None:
        actual = read(sent.frame, sent.flow, packet)
        if (
            isinstance(packet, TcpPacket | UdpPacket)
            and isinstance(actual, TcpPacket | UdpPacket)
            and packet.ports is not None
            and sent.flow is not None
        ):
            return dataclasses.replace(actual, ports=Ports(sent.flow.local_port, sent.flow.remote_port))
        return actual

    # trains

    def _join(self, pieces: list[Sent], actual: TcpPacket, packet: TcpPacket) -> TcpPacket:
        """`actual` and what follows it as one, for as long as `packet` expects more; extends `pieces`."""
        first = pieces[0]
        size = wanted = actual.range.length
        if first.flow is None or first.frame.tcp is None or not size:
            return actual
        if packet.range.length > self._largest(first.flow, first.frame.tcp):
            wanted = packet.range.length
        queue = self._machine.sent
        last = actual
        while actual.range.length < wanted and queue and queue[0].flow is first.flow:
            other = self._read(queue[0], packet)
            if (
                queue[0].time > first.time + INSTANT
                or last.range.length != size
                or not isinstance(other, TcpPacket)
                or not _continues(actual, other)
                or not 0 < other.range.length <= min(size, wanted - actual.range.length)
            ):
                break
            pieces.append(queue.popleft())
            last = other
            actual = dataclasses.replace(
                actual,
                flags=other.flags,
                range=Range(actual.range.start, actual.range.length + other.range.length),
            )
        return actual

    def _largest(self, flow: Flow, tcp: Tcp) -> int:
        """Payload bytes of the largest segment with the options of `tcp`."""
        version = self._settings.ip_version
        peer = _DEFAULT_MSS[version] if flow.peer_mss is None else flow.peer_mss
        return min(peer, self._settings.mtu - _HEADERS[version]) - options_size(tcp)

    # comparison

    def _hints(self, pieces: list[Sent], packet: PacketAction, actual: PacketAction | None) -> list[str]:
        problems = dict.fromkeys(problem.value for sent in pieces for problem in sent.frame.problems)
        hints = [f"malformed: {problem}" for problem in problems]
        if actual is None:
            return [*hints, "the packet is of a kind that no script can expect"]
        hints += differences(packet, actual, self._settings)
        flow = pieces[0].flow
        if flow is None or not isinstance(packet, TcpPacket) or not isinstance(actual, TcpPacket):
            return hints
        if packet.ports is None and flow is not self._machine.flows.current:
            hints.append(f"flow: the packet is of another one, {flow}; write its ports to expect it")
        payload = b"".join(sent.frame.payload for sent in pieces)
        place = flow.check_payload(actual.range.start + ("S" in actual.flags), payload) if payload else None
        if place is not None:
            hints.append(f"payload: byte {place} is not what was sent there before")
        return hints


def _continues(before: TcpPacket, after: TcpPacket) -> bool:
    """Whether a segment goes on where the one before ends, and says the same otherwise."""
    return after.range.start == before.range.end and before == dataclasses.replace(
        after, range=before.range, flags=after.flags.replace("P", "").replace("F", "")
    )


def line_of(sent: Sent, actual: PacketAction | None) -> str:
    """What was sent as a line of a script, or of tcpdump if no script can say it."""
    if actual is None:
        return describe(sent.frame, time=sent.time)
    return f"{sent.time:.6f} {format_packet(actual)}"
