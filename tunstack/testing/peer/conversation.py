"""A scripted peer: it speaks raw TCP to a device under test and says what it expects.

Sequence numbers are relative, as in tcpdump: in `send`, `seq` counts from the peer's ISN and `ack` from the
device's; in `expect` it is the other way round. Number 0 is the SYN, 1 the first byte. Everything that the
device sends is taken apart and checked (lengths, both checksums, option list) by `tunstack.testing.packets`,
which shares nothing with the stack.

    peer.connect()                                # the device's user opens
    peer.expect("S", seq=0)
    peer.send("SA", seq=0, ack=1, mss=1460)
    peer.expect("A", seq=1, ack=1)
    peer.expect_nothing()

What the device is, and what time is, are matters of the subclass.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import Any, Self

from tunstack.ip.addresses import parse_address
from tunstack.tcp.endpoint import CloseReason
from tunstack.tcp.states import State
from tunstack.testing.checkers import ANY, Checker, Mismatch, flag_bits, matches, payload, tcp
from tunstack.testing.checkers.base import Seen, together
from tunstack.testing.checkers.expectations import report
from tunstack.testing.packets import (
    NOP,
    SACK_PERMITTED,
    SYN,
    Icmp,
    Ipv4,
    Ipv6,
    Layer,
    Raw,
    Tcp,
    TcpOption,
    dissect,
    emit,
)
from tunstack.testing.packets import mss as mss_option
from tunstack.testing.packets import sack as sack_option
from tunstack.testing.packets import timestamps as timestamps_option
from tunstack.testing.packets import window_scale as window_scale_option
from tunstack.testing.packets.layers import PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP
from tunstack.testing.packets.tcp_options import parse_options
from tunstack.testing.peer.wire import MOD, Numbers, Wire, wire_of

ADDRESSES = {
    4: (parse_address("10.0.0.1"), parse_address("10.0.0.2")),
    6: (parse_address("fd00::1"), parse_address("fd00::2")),
}
"""Of each family: the device's and the peer's."""
STACK_PORT = 80
PEER_PORT = 40000

_AUTO: Any = object()
_SHOWN = 10
"""Segments beside the wrong one that a report shows."""


def ramp(size: int, start: int = 0) -> bytes:
    """Bytes of period 251, from position `start` of the stream."""
    period = bytes(range(251))
    offset = start % 251
    return (period * ((size + offset) // 251 + 1))[offset : offset + size]


class Peer(abc.ABC):
    """The far end of one connection, and the device under test.

    Attributes:
        local, remote: the addresses of the device and of the peer.
        mtu: what no packet of the device may exceed, bytes.
        timestamps: whether the peer's segments carry timestamps, which echo the newest of the device.
        window: the window field of the peer's segments, unless `win` says otherwise.
        sack: whether the peer's SYN permits SACK.
        inbox: the segments that came and were not looked at.
        sent_by_stack: all that came.
        icmp: the ICMP messages that came.
        last_stamp: the newest TSval of the device, to be echoed.
        stamp_base: what the peer's timestamp clock (milliseconds) starts from.
    """

    patience = 0.0
    """Seconds that an answer may take which needs no timer of the device."""
    silence = 0.0
    """Seconds without a packet that show that no immediate answer comes."""

    def __init__(
        self,
        *,
        iss: int = 1000,
        family: int = 4,
        mtu: int = 1500,
        timestamps: bool = False,
        window: int = 65535,
        sack: bool = False,
    ) -> None:
        self.local, self.remote = ADDRESSES[family]
        self.mtu = mtu
        self.timestamps = timestamps
        self.window = window
        self.sack = sack
        self.inbox: list[Wire] = []
        self.sent_by_stack: list[Wire] = []
        self.icmp: list[bytes] = []
        self.last_stamp = 0
        self.stamp_base = 100_000
        self.numbers = Numbers(self.local, iss)

    @property
    def iss(self) -> int:
        """The peer's ISN; another one may be set."""
        return self.numbers.iss

    @iss.setter
    def iss(self, iss: int) -> None:
        self.numbers.iss = iss

    @property
    def stack_iss(self) -> int | None:
        """The device's ISN, once its SYN was seen; another one may be set."""
        return self.numbers.stack_iss

    @stack_iss.setter
    def stack_iss(self, iss: int | None) -> None:
        self.numbers.stack_iss = iss

    # the device's user

    @abc.abstractmethod
    def connect(self) -> None:
        """The user opens a connection to the peer."""

    @abc.abstractmethod
    def write(self, data: bytes) -> int:
        """The user sends `data`; how much of it was taken."""

    @abc.abstractmethod
    def read(self, limit: int | None = None) -> bytes:
        """The user takes what is readable, at most `limit` bytes."""

    @abc.abstractmethod
    def shutdown(self) -> None:
        """The user closes the sending side."""

    @abc.abstractmethod
    def close(self) -> None:
        """The user lets go of the connection."""

    @abc.abstractmethod
    def abort(self) -> None:
        """The user resets the connection."""

    @abc.abstractmethod
    def keep_alive(self, seconds: int) -> None:
        """The user wants an idle peer to be probed after `seconds` of silence."""

    @property
    @abc.abstractmethod
    def state(self) -> State:
        """The state of the connection."""

    @property
    @abc.abstractmethod
    def error(self) -> CloseReason | None:
        """Why the connection ended before its time, as the user is told."""

    @property
    @abc.abstractmethod
    def at_end(self) -> bool:
        """Whether the user has read everything up to the peer's FIN."""

    # time and frames

    now: float
    """Seconds of the clock of this peer."""

    @abc.abstractmethod
    def advance(self, seconds: float) -> None:
        """Let time pass."""

    @abc.abstractmethod
    def wait(self, seconds: float) -> bool:
        """Let time pass until there is a segment in the inbox, at most `seconds`; whether there is."""

    @abc.abstractmethod
    def release(self) -> None:
        """Hand the held packets to the device in one batch, and let it answer."""

    @abc.abstractmethod
    def _hold(self, frame: bytes, gso: int) -> None:
        """Keep a packet for `release`; `gso` > 0: a train of segments of that size."""

    def until_output(self, seconds: float = 1000.0) -> float:
        """Let time pass until there is a segment in the inbox; how long that took.

        Raises:
            Mismatch: nothing came within `seconds`.
        """
        start = self.now
        if not self.wait(seconds):
            raise Mismatch(f"nothing came within {seconds} s{self._postscript()}")
        return self.inbox[0].time - start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    @abc.abstractmethod
    def end(self) -> None:
        """Give back what the device occupies."""

    # the wire, towards the device

    def stamp(self) -> int:
        """The peer's timestamp clock: milliseconds."""
        return (self.stamp_base + int(self.now * 1000)) % MOD

    def build(
        self,
        flags: str,
        seq: int = 0,
        ack: int | None = None,
        data: bytes = b"",
        *,
        win: int | None = None,
        mss: int | None = None,
        shift: int | None = None,
        ts: tuple[int, int] | None = _AUTO,
        options: bytes | Sequence[TcpOption] = b"",
        urgent: int = 0,
        src: bytes | None = None,
        dst: bytes | None = None,
        ports: tuple[int, int] = (PEER_PORT, STACK_PORT),
        flip: int | None = None,
        sack: Iterable[tuple[int, int]] = (),
    ) -> bytes:
        """An IP packet with one segment.

        Args:
            flags: letters of FSRPAUEC.
            win: the window field; by default `self.window`.
            mss, shift, ts, sack: options; the blocks of `sack` count from the device's ISN, as `ack` does.
            options: further ones, as values or as bytes of any kind.
            src, dst, ports: in place of those of the conversation.
            flip: the index of a bit of the segment to invert after checksumming.
        """
        # Two thirds are parameters and what they mean; the rest goes through the segment field by field.
        src, dst = src or self.remote, dst or self.local
        bits = flag_bits(flags)
        if ts is _AUTO:
            ts = (self.stamp(), self.last_stamp) if self.timestamps else None
        chosen: list[TcpOption] = []
        if mss is not None:
            chosen.append(mss_option(mss))
        if self.sack and bits & SYN:
            chosen.append(SACK_PERMITTED)
        if ts is not None:
            chosen += (NOP, NOP, timestamps_option(*ts))
        if shift is not None:
            chosen += (NOP, window_scale_option(shift))
        base = self.stack_iss or 0
        blocks = [(base + left, base + right) for left, right in sack]
        if blocks:
            chosen += (NOP, NOP, sack_option(*blocks))
        chosen += parse_options(options)[0] if isinstance(options, bytes) else options
        segment = Tcp(
            src_port=ports[0],
            dst_port=ports[1],
            seq=(self.iss + seq) % MOD,
            ack=0 if ack is None else (base + ack) % MOD,
            flags=bits,
            window=self.window if win is None else win,
            urgent=urgent,
            options=tuple(chosen),
        )
        packet = emit(_header(src, dst, None), segment, Raw(data=data))
        if flip is None:
            return packet
        damaged = bytearray(packet)
        damaged[(20 if len(src) == 4 else 40) + flip // 8] ^= 0x80 >> flip % 8
        return bytes(damaged)

    @staticmethod
    def ip(
        payload: bytes, protocol: int, src: bytes = ADDRESSES[4][1], dst: bytes = ADDRESSES[4][0]
    ) -> bytes:
        """`payload` in an IP packet, of the family of `src`."""
        return emit(_header(src, dst, protocol), Raw(data=payload))

    def hold(self, flags: str, seq: int = 0, ack: int | None = None, data: bytes = b"", **more: Any) -> None:
        """Build a segment for the next batch; `gso` > 0 makes it a train of segments of that size."""
        gso = more.pop("gso", 0)
        self._hold(self.build(flags, seq, ack, data, **more), gso)

    def send(self, flags: str, seq: int = 0, ack: int | None = None, data: bytes = b"", **more: Any) -> None:
        """Send one segment and let the device answer; see `build` for the options."""
        self.hold(flags, seq, ack, data, **more)
        self.release()

    def send_raw(self, frame: bytes) -> None:
        """Send any bytes."""
        self._hold(frame, 0)
        self.release()

    def send_icmp(self, kind: int, code: int, quoted: Wire, *, mtu: int = 0, quote: bytes = b"") -> None:
        """An ICMP error of the peer's family about `quoted`, a segment of the device (or about `quote`)."""
        six = len(self.local) == 16
        text = quote or quoted.raw[: 1232 if six else 28]
        header = _header(self.remote, self.local, PROTOCOL_ICMPV6 if six else PROTOCOL_ICMP)
        self.send_raw(emit(header, Icmp(type=kind, code=code, rest=mtu), Raw(data=text)))

    # the wire, from the device

    def _collect(self, raw: bytes, time: float) -> None:
        """Take a packet of the device, whose form is checked."""
        assert len(raw) <= self.mtu, "larger than the MTU"
        frame = dissect(raw)
        assert not frame.problems, f"{', '.join(frame.problems)}: {raw.hex()}"
        ip, segment = frame.ip, frame.tcp
        assert ip is not None and not frame.trailer
        assert (ip.src, ip.dst) == (self.local, self.remote), "wrong addresses"
        if frame.icmp is not None:
            self.icmp.append(raw)
            return
        assert segment is not None and frame.protocol == PROTOCOL_TCP, f"not TCP: {raw.hex()}"
        if isinstance(ip, Ipv4):
            assert not ip.options, "IPv4 with options"
            assert ip.df, "TCP goes out with DF (RFC 1191)"
        assert not segment.reserved, "reserved bits"
        wire = wire_of(frame, ip, segment, time, self.numbers)
        if wire.stamps:
            self.last_stamp = wire.stamps[0]
        self.inbox.append(wire)
        self.sent_by_stack.append(wire)

    # expectations

    def expect(
        self,
        flags: str,
        seq: int | None = None,
        ack: int | None = None,
        data: bytes | None = None,
        *,
        within: float = 0.0,
        **fields: Any,
    ) -> Wire:
        """The next segment of the device; fields that are not named are not looked at.

        PSH is compared only if `flags` contains it. `length`, `window`, `mss`, `shift`, `stamps`, `sack`,
        `sack_permitted`, `ports` by name, as values or as predicates of the checkers. `within`: seconds that
        it may take to come.

        Raises:
            Mismatch: it is another one, or none came.
        """
        return self.expect_that(*_checkers(flags, seq, ack, data, fields), within=within)

    def expect_that(self, *checkers: Checker, within: float = 0.0) -> Wire:
        """The next segment of the device passes all of `checkers`; see `expect`."""
        checker = together(checkers)
        if not self.inbox and (within or self.patience):
            self.wait(max(within, self.patience))
        if not self.inbox:
            raise Mismatch(f"expected: {checker!r}\nbut nothing came{self._postscript()}")
        wire = self.inbox.pop(0)
        differences = checker.differences(Seen(wire.frame, self.numbers))
        if differences:
            text = report(wire.frame, checker, differences, self.numbers)
            rest = "".join(f"\nthen:     {other}" for other in self.inbox[:_SHOWN])
            raise Mismatch(text + rest + self._postscript(), differences)
        return wire

    def expect_nothing(self, during: float = 0.0) -> None:
        """The device has sent nothing that was not looked at, nor does it within `during` seconds.

        Raises:
            Mismatch: it has.
        """
        if not self.inbox and (during or self.silence):
            self.wait(max(during, self.silence))
        if self.inbox:
            lines = "\n".join(map(str, self.inbox[:_SHOWN]))
            raise Mismatch(f"unexpected:\n{lines}{self._postscript()}")

    def skip(self, *checkers: Checker) -> list[Wire]:
        """Take the segments from the head of the inbox that pass all of `checkers`."""
        taken = []
        while self.inbox and matches(self.inbox[0].frame, *checkers, relative=self.numbers):
            taken.append(self.inbox.pop(0))
        return taken

    def take(self) -> list[Wire]:
        """All that came and was not looked at; clears."""
        wires, self.inbox = self.inbox, []
        return wires

    def payload(self, wires: Iterable[Wire]) -> int:
        """Bytes of payload of `wires`."""
        return sum(len(wire.data) for wire in wires)

    def _postscript(self) -> str:
        """What a report says besides."""
        return ""


def _header(src: bytes, dst: bytes, protocol: int | None) -> Layer:
    if len(src) == 4:
        return Ipv4(src=src, dst=dst, protocol=protocol, df=True)
    return Ipv6(src=src, dst=dst, next_header=protocol)


_NAMES = {"shift": "window_scale", "stamps": "timestamps"}
"""What the fields of `Wire` are called by the checker of TCP."""


def _checkers(
    flags: str, seq: int | None, ack: int | None, data: bytes | None, fields: dict[str, Any]
) -> list[Checker]:
    wanted = {_NAMES.get(name, name): value for name, value in fields.items()}
    src_port, dst_port = wanted.pop("ports", (ANY, ANY))
    length = wanted.pop("length", None)
    sack = wanted.pop("sack", ANY)
    if sack == ():
        sack = None
    if ack is not None and "A" not in flags:
        assert not ack, "a segment without ACK acknowledges nothing"
        ack = None
    checkers = [
        tcp(
            flags=flags,
            seq=ANY if seq is None else seq,
            ack=ANY if ack is None else ack,
            src_port=src_port,
            dst_port=dst_port,
            sack=sack,
            **wanted,
        )
    ]
    if data is not None or length is not None:
        checkers.append(payload(ANY if data is None else data, length=ANY if length is None else length))
    return checkers
