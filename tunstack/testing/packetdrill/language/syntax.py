"""The syntax tree of a script. Nodes are immutable and equal by content; positions do not count.

Times are whole microseconds, sequence and acknowledgement numbers those of the script (32 bits, relative).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TypeAlias

from tunstack.testing.packetdrill.language.errors import Position
from tunstack.testing.packetdrill.language.values import Value

NOWHERE = Position(1, 1)


class Direction(enum.Enum):
    """Seen from the stack under test."""

    INBOUND = "<"
    OUTBOUND = ">"


class TimeKind(enum.Enum):
    """How the time of an event is given."""

    ABSOLUTE = "0.5"
    RELATIVE = "+0.5"
    ANY = "*"
    ABSOLUTE_RANGE = "0.5~1"
    RELATIVE_RANGE = "+0.5~+1"


@dataclass(frozen=True, slots=True)
class EventTime:
    """When an event is due: `start`, or from `start` to `end` for a range (microseconds)."""

    kind: TimeKind
    start: int = 0
    end: int = 0

    @property
    def relative(self) -> bool:
        """Whether the times count from when the event before happened."""
        return self.kind in (TimeKind.RELATIVE, TimeKind.RELATIVE_RANGE)


class Ecn(enum.Enum):
    """The two low bits of the traffic class, as the language calls them."""

    NONE = "noecn"
    ECT0 = "ect0"
    ECT1 = "ect1"
    ECT01 = "ect01"
    CE = "ce"


@dataclass(frozen=True, slots=True)
class IpInfo:
    """What a packet says about its IP header; None: not said, hence not checked."""

    ecn: Ecn | None = None
    tos: int | None = None
    ttl: int | None = None
    flow_label: int | None = None


# TCP options


@dataclass(frozen=True, slots=True)
class Mss:
    """`mss 1460`"""

    value: int


@dataclass(frozen=True, slots=True)
class WindowScale:
    """`wscale 7`"""

    shift: int


@dataclass(frozen=True, slots=True)
class SackPermitted:
    """`sackOK`"""


@dataclass(frozen=True, slots=True)
class Sack:
    """`sack 1001:2001 3001:4001`"""

    blocks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Timestamps:
    """`TS val 100 ecr 0`; None stands for `...`: any value."""

    val: int | None
    ecr: int | None


@dataclass(frozen=True, slots=True)
class Nop:
    """`nop`"""


@dataclass(frozen=True, slots=True)
class EndOfOptions:
    """`eol`"""


@dataclass(frozen=True, slots=True)
class FastOpen:
    """`FO`, `FO 8a1b`; `experimental`: `FOEXP`, the option of RFC 6994 with the number of RFC 7413."""

    cookie: bytes = b""
    experimental: bool = False


@dataclass(frozen=True, slots=True)
class AccurateEcn:
    """`ECN e0b 1 ceb 0 e1b 1`: counters in the order in which they stand, e0b or e1b first (RFC 9768)."""

    counters: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class UnknownOption:
    """`unknown 253 0a0b`: kind and data of any other option. An extension of the published grammar."""

    kind: int
    data: bytes = b""


TcpOption: TypeAlias = (
    Mss
    | WindowScale
    | SackPermitted
    | Sack
    | Timestamps
    | Nop
    | EndOfOptions
    | FastOpen
    | AccurateEcn
    | UnknownOption
)


@dataclass(frozen=True, slots=True)
class Range:
    """`1:1001(1000)`: sequence numbers, and the length of the payload."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The first number behind it."""
        return (self.start + self.length) & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Ports:
    """`40000 > 8080` before the flags, for scripts of several flows."""

    src: int
    dst: int


@dataclass(frozen=True, slots=True)
class TcpPacket:
    """A segment. `flags` is in the order `FSRPEWUA.`; `options` None stands for `<...>`; what is None is not
    said: `ack`, `window`, `urgent` 0 inbound, and `window` not checked outbound."""

    direction: Direction
    flags: str
    range: Range
    ack: int | None = None
    window: int | None = None
    urgent: int | None = None
    options: tuple[TcpOption, ...] | None = ()
    ip: IpInfo = IpInfo()
    ports: Ports | None = None


@dataclass(frozen=True, slots=True)
class UdpPacket:
    """`udp (1000)`: a datagram by the length of its payload."""

    direction: Direction
    length: int
    ip: IpInfo = IpInfo()
    ports: Ports | None = None


@dataclass(frozen=True, slots=True)
class IcmpPacket:
    """An ICMP message. `quote`: the range of the segment that an error quotes, or the length of a datagram's
    payload; `echo_id`: the identifier of an echo."""

    direction: Direction
    type: str
    code: str | None = None
    mtu: int | None = None
    quote: Range | int | None = None
    ip: IpInfo = IpInfo()
    echo_id: int | None = None


@dataclass(frozen=True, slots=True)
class SystemCall:
    """`write(4, ..., 1000) = 1000`.

    Attributes:
        end: for a call that blocks, when it returns (microseconds, counted like the time of the event).
        errno: the name of the error, as in `= -1 EAGAIN (Resource temporarily unavailable)`.
        note: the words in parentheses, which mean nothing.
    """

    name: str
    arguments: tuple[Value, ...]
    result: Value
    errno: str | None = None
    note: str | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A shell command in back-quotes."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """`%{ ... }%`: Python."""

    text: str


PacketAction: TypeAlias = TcpPacket | UdpPacket | IcmpPacket
Action: TypeAlias = PacketAction | SystemCall | Command | Code


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a script; `source` is its text there, on one line."""

    time: EventTime
    action: Action
    position: Position = field(default=NOWHERE, compare=False)
    source: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Option:
    """`--name=value` at the head of the script; `--name` alone has the value 1."""

    name: str
    value: str
    position: Position = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Script:
    """A whole script. `setup` and `cleanup` are commands in back-quotes before and behind the events."""

    options: tuple[Option, ...]
    setup: Command | None
    events: tuple[Event, ...]
    cleanup: Command | None = None
