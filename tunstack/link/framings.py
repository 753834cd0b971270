"""How frames stand in a stream of bytes: each behind its length, as QEMU's devices send them.

Theory of operation. A `Deframer` is given a buffer that begins where a frame begins and finds the whole
frames in it; what is left, the beginning of one frame at the most, is given again with what comes next. A
length that no frame can have does not end the stream: the frame is skipped by its length, whatever that is,
and counted, so that what follows is found. Lengths of 0 are no frames and counted too. Sans-IO, and no byte
is copied.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from tunstack.errors import DropCounters, DropReason


@dataclasses.dataclass(frozen=True, slots=True)
class Framing:
    """The length in front of each frame: its bytes and their order."""

    prefix: int
    order: Literal["big", "little"]

    def header(self, length: int) -> bytes:
        """What stands in front of a frame of `length` bytes; OverflowError for more than can be told."""
        return length.to_bytes(self.prefix, self.order)


QEMU = Framing(4, "big")
"""`-netdev stream` and `-netdev socket` of QEMU, over UNIX and TCP sockets."""


HYPERKIT = Framing(2, "little")
"""vpnkit's protocol, behind its handshake; `/connect` of gvproxy, and its stdio."""


class Deframer:
    """Finds the frames in a stream.

    Attributes:
        wanted: bytes from the beginning of what is left that the next frame needs, its length included, as
            far as is known; at least one more than there are.
    """

    __slots__ = ("_drops", "_most", "_order", "_prefix", "_skip", "wanted")

    def __init__(self, framing: Framing, most: int, drops: DropCounters) -> None:
        """Frames of more than `most` bytes are skipped."""
        self._prefix = framing.prefix
        self._order = framing.order
        self._most = most
        self._drops = drops
        self._skip = 0
        self.wanted = framing.prefix

    @property
    def skip(self) -> int:
        """Bytes that are still to come of a frame that is skipped."""
        return self._skip

    def resume(self, skip: int) -> None:
        """Go on where somebody else has stopped: with that many bytes to be skipped."""
        self._skip = skip
        self.wanted = self._prefix

    def find(self, data: memoryview) -> tuple[list[memoryview], int]:
        """The frames in `data`, as parts of it, and how many of its bytes are dealt with.

        What follows those bytes is the beginning of the next call's data.
        """
        frames: list[memoryview] = []
        prefix, order, most = self._prefix, self._order, self._most
        end = len(data)
        at = min(self._skip, end)
        self._skip -= at
        self.wanted = prefix
        while end - at >= prefix:
            length = int.from_bytes(data[at : at + prefix], order)
            if not 0 < length <= most:
                self._drops.add(DropReason.FRAME_TOO_LONG if length else DropReason.FRAME_TOO_SHORT)
                at += prefix + length
                if at > end:
                    self._skip = at - end
                    at = end
                continue
            following = at + prefix + length
            if following > end:
                self.wanted = prefix + length
                break
            frames.append(data[at + prefix : following])
            at = following
        return frames, at
