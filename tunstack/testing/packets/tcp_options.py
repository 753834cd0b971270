"""TCP options: what is in them, and how the list stands on the wire (RFC 9293 3.2)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

KIND_EOL, KIND_NOP, KIND_MSS, KIND_WINDOW_SCALE, KIND_SACK_PERMITTED, KIND_SACK = range(6)
KIND_TIMESTAMPS = 8
KIND_FAST_OPEN = 34


class TcpOption(NamedTuple):
    """One option: `data` is what follows kind and length.

    `length` is the octet on the wire, None for the right one. Kinds 0 and 1 have none; what follows an
    end of the list is the `data` of that option.
    """

    kind: int
    data: bytes = b""
    length: int | None = None

    @property
    def mss(self) -> int | None:
        """The value of a maximum segment size option, in bytes."""
        return int.from_bytes(self.data, "big") if self.kind == KIND_MSS and len(self.data) == 2 else None

    @property
    def shift(self) -> int | None:
        """The value of a window scale option."""
        return self.data[0] if self.kind == KIND_WINDOW_SCALE and len(self.data) == 1 else None

    @property
    def stamps(self) -> tuple[int, int] | None:
        """TSval and TSecr of a timestamps option."""
        if self.kind != KIND_TIMESTAMPS or len(self.data) != 8:
            return None
        value, echo = struct.unpack("!II", self.data)
        return value, echo

    @property
    def blocks(self) -> tuple[tuple[int, int], ...] | None:
        """The blocks of a SACK option, left and right edge of each."""
        if self.kind != KIND_SACK or not self.data or len(self.data) % 8:
            return None
        edges = struct.unpack(f"!{len(self.data) // 4}I", self.data)
        return tuple(zip(edges[::2], edges[1::2], strict=True))

    def emit(self) -> bytes:
        """The option on the wire."""
        if self.kind in (KIND_EOL, KIND_NOP):
            return bytes((self.kind,)) + self.data
        length = 2 + len(self.data) if self.length is None else self.length
        return bytes((self.kind, length & 0xFF)) + self.data


EOL = TcpOption(KIND_EOL)
NOP = TcpOption(KIND_NOP)
SACK_PERMITTED = TcpOption(KIND_SACK_PERMITTED)


def mss(size: int) -> TcpOption:
    """Maximum segment size: `size` bytes."""
    return TcpOption(KIND_MSS, struct.pack("!H", size))


def window_scale(shift: int) -> TcpOption:
    """RFC 7323 2: windows are shifted by `shift`."""
    return TcpOption(KIND_WINDOW_SCALE, bytes((shift,)))


def timestamps(value: int, echo: int) -> TcpOption:
    """RFC 7323 3: TSval and TSecr."""
    return TcpOption(KIND_TIMESTAMPS, struct.pack("!II", value & 0xFFFFFFFF, echo & 0xFFFFFFFF))


def sack(*blocks: tuple[int, int]) -> TcpOption:
    """RFC 2018 3: the left and right edges of what has arrived."""
    edges = [edge & 0xFFFFFFFF for block in blocks for edge in block]
    return TcpOption(KIND_SACK, struct.pack(f"!{len(edges)}I", *edges))


def fast_open(cookie: bytes = b"") -> TcpOption:
    """RFC 7413 4.1.1: a cookie, or the request for one."""
    return TcpOption(KIND_FAST_OPEN, cookie)


def emit_options(options: Iterable[TcpOption]) -> bytes:
    """The list on the wire, ended and padded by zeros to whole words."""
    text = b"".join(option.emit() for option in options)
    return text + bytes(-len(text) % 4)


def parse_options(text: bytes) -> tuple[tuple[TcpOption, ...], bool]:
    """The options in `text` (whole words), and whether each was well-formed; total.

    What cannot be walked becomes one last option with its wrong length. `emit_options` gives `text` again.
    """
    options: list[TcpOption] = []
    place = 0
    intact = True
    while place < len(text):
        kind = text[place]
        if kind == KIND_EOL:
            options.append(TcpOption(kind, text[place + 1 :]))
            break
        if kind == KIND_NOP:
            options.append(NOP)
            place += 1
            continue
        if place + 1 == len(text):
            # A kind without a length: only as the data of an end of the list could it be written again.
            options.append(_Lone(kind))
            intact = False
            break
        length = text[place + 1]
        if length < 2 or place + length > len(text):
            options.append(TcpOption(kind, text[place + 2 :], length))
            intact = False
            break
        options.append(TcpOption(kind, text[place + 2 : place + length]))
        place += length
    while options and options[-1].kind == KIND_EOL and emit_options(options[:-1]) == text:
        options.pop()
    return tuple(options), intact


class _Lone(TcpOption):
    """The kind of an option whose length lies beyond the header."""

    __slots__ = ()

    def emit(self) -> bytes:
        return bytes((self.kind,))
