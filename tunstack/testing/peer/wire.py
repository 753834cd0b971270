"""A segment that came from the device under test, with its numbers relative."""

from __future__ import annotations

import dataclasses

from tunstack.testing.packets import ACK, SYN, Frame, Ipv4, Ipv6, Relative, Tcp, describe
from tunstack.testing.packets.tcp_options import (
    KIND_EOL,
    KIND_MSS,
    KIND_NOP,
    KIND_SACK,
    KIND_SACK_PERMITTED,
    KIND_TIMESTAMPS,
    KIND_WINDOW_SCALE,
)

MOD = 1 << 32


class Numbers(Relative):
    """Numbers of both directions of one conversation, counted from the two ISNs.

    An ISN that is not known counts as 0. Attributes:
        iss: the peer's.
        stack_iss: that of the device under test, None until its SYN was seen.
    """

    def __init__(self, local: bytes, iss: int) -> None:
        super().__init__()
        self._local = local
        self.iss = iss
        self.stack_iss: int | None = None

    def see(self, frame: Frame) -> None:
        """Learn from a SYN of the device."""
        ip, tcp = frame.ip, frame.tcp
        if ip is not None and tcp is not None and tcp.flags & SYN and ip.src == self._local:
            self.stack_iss = tcp.seq

    def seq(self, ip: Ipv4 | Ipv6, tcp: Tcp, number: int) -> int:
        return (number - self._isn(ip.src)) % MOD

    def ack(self, ip: Ipv4 | Ipv6, tcp: Tcp, number: int) -> int:
        return (number - self._isn(ip.dst)) % MOD

    def _isn(self, sender: bytes) -> int:
        return (self.stack_iss or 0) if sender == self._local else self.iss


@dataclasses.dataclass(slots=True)
class Wire:
    """One segment of the device under test.

    Attributes:
        time: when it came, seconds of the peer's clock.
        seq, ack: relative, to the device's ISN and to the peer's; `ack` is 0 without ACK.
        window: the field, not scaled.
        mss, shift, stamps, sack, sack_permitted: its options.
        ports: source and destination.
        raw: the packet.
        frame: the packet taken apart.
    """

    time: float
    flags: int
    seq: int
    ack: int
    window: int
    data: bytes
    mss: int | None
    shift: int | None
    stamps: tuple[int, int] | None
    sack_permitted: bool
    raw: bytes
    ports: tuple[int, int]
    sack: tuple[tuple[int, int], ...]
    frame: Frame
    numbers: Numbers

    def __str__(self) -> str:
        return describe(self.frame, time=self.time, relative=self.numbers)


def wire_of(frame: Frame, ip: Ipv4 | Ipv6, tcp: Tcp, time: float, numbers: Numbers) -> Wire:
    """The segment in `frame`, whose form is checked.

    Asserts MUST-64, -65, -68, -69 of RFC 9293: a list of options that can be walked, SYN options on SYNs
    only, zeros behind its end.
    """
    numbers.see(frame)
    wire = Wire(
        time,
        tcp.flags,
        numbers.seq(ip, tcp, tcp.seq),
        numbers.ack(ip, tcp, tcp.ack) if tcp.flags & ACK else 0,
        tcp.window,
        frame.payload,
        None,
        None,
        None,
        False,
        frame.raw,
        (tcp.src_port, tcp.dst_port),
        (),
        frame,
        numbers,
    )
    syn = tcp.flags & SYN
    for option in tcp.options:
        kind, size = option.kind, len(option.data)
        if kind == KIND_EOL:
            assert not any(option.data), "padding must be zero (MUST-69)"
        elif kind == KIND_MSS:
            assert size == 2 and syn, "MSS on SYNs only (MUST-65)"
            wire.mss = option.mss
        elif kind == KIND_WINDOW_SCALE:
            assert size == 1 and syn, "window scale on SYNs only"
            wire.shift = option.shift
        elif kind == KIND_SACK_PERMITTED:
            assert not size and syn, "SACK-permitted on SYNs only"
            wire.sack_permitted = True
        elif kind == KIND_SACK:
            assert size in (8, 16, 24, 32) and not syn, "SACK not on SYNs, of whole blocks"
            blocks = option.blocks or ()
            wire.sack = tuple((numbers.ack(ip, tcp, a), numbers.ack(ip, tcp, b)) for a, b in blocks)
        elif kind == KIND_TIMESTAMPS:
            assert size == 8
            wire.stamps = option.stamps
        else:
            assert kind == KIND_NOP, f"option {kind} was not expected"
    return wire
