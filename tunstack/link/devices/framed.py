"""What devices have in common whose socket carries frames: no offloads, unless the socket is lent.

Bare frames have nothing that tells of offloads: they come and go as they are on a wire, with complete
checksums. Where both ends have agreed on it (`tunstack.vsock.upgrade`) a virtio-net header stands in front
of each, and there are the offloads that they have agreed on.

Frames larger than the MTU are accepted, as some senders make them, and checksums that somebody else was to
complete (UNTOLD), or any if the link is trusted.

The socket can be lent to the fast path (`lend`), which reads the frames then, cuts trains and completes
checksums, so that the device has all offloads; what Python sends goes through it too, until it is taken back.
"""

from __future__ import annotations

import abc
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from tunstack.errors import DropCounters, DropReason
from tunstack.limits import MAX_FRAME
from tunstack.link.devices.base import DeviceClosed, Offloads
from tunstack.link.devices.vnet_header import pack_header, parse_frame
from tunstack.link.framings import Framing
from tunstack.native.fastpath import Stream
from tunstack.packet import Checksum, Packet

LENT_DROPS = (DropReason.FRAME_TOO_LONG, DropReason.FRAME_TOO_SHORT, DropReason.BAD_VNET_HEADER)
"""What a stream of the fast path counts."""
_ETHERNET = 14


def lent_offloads(mtu: int) -> Offloads:
    """What a device without offloads has while a fast path reads and writes in its place: all."""
    return Offloads(l2=True, mtu=mtu, checksum=True, tso4=True, tso6=True, uso=True, max_frame=MAX_FRAME)


def _trains(offloads: Offloads) -> int:
    """TS_STREAM_* of the fast path."""
    parts = (offloads.checksum, offloads.tso4, offloads.tso6, offloads.uso)
    return sum(able << bit for bit, able in enumerate(parts))


class Borrower(Protocol):
    """Who reads and writes a lent socket: a fast path, for the whole of its link or for one port."""

    def open_stream(
        self, fd: int, prefix: int, little: bool, most: int, *, is_trusted: bool, trains: int | None = None
    ) -> Stream: ...


class FramedDevice(abc.ABC):
    """One end of a connected socket that carries Ethernet frames. Implements `Device`.

    Attributes:
        drops: frames that no frame can be, by reason.
        offloads: none, or what headers may say; all, once it is lent.
        has_header: whether there are headers.
        write_errors: packets that no frame can carry.
    """

    def __init__(
        self,
        sock: socket.socket,
        framing: Framing | None,
        *,
        mtu: int,
        drops: DropCounters | None,
        name: str,
        is_trusted: bool,
        offloads: Offloads | None = None,
    ) -> None:
        """Take over `sock`; it is made non-blocking. `mtu`: IP MTU of the link in bytes.

        `framing`: how frames stand in a stream, None if the socket keeps messages apart. `is_trusted`:
        checksums of what comes in are right, whatever they are. `offloads`: there is a virtio-net header in
        front of each frame, and this is what it may say to the other end.
        """
        sock.setblocking(False)
        self.name = name
        self._plain = offloads or Offloads(l2=True, mtu=mtu, max_frame=mtu + _ETHERNET)
        self.offloads = self._plain
        self.has_header = offloads is not None
        self.drops = DropCounters() if drops is None else drops
        self.write_errors = 0
        self.on_ready: Callable[[], None] | None = None
        self._sock = sock
        self._prefix = 0 if framing is None else framing.prefix
        self._is_little = framing is not None and framing.order == "little"
        self._is_trusted = is_trusted
        self._checksum = int(Checksum.VALID if is_trusted else Checksum.UNTOLD)
        self._lent: Stream | None = None
        self._is_behind = False
        """There may be whole frames here, of which the descriptor does not tell."""

    def fileno(self) -> int:
        """See `Device`."""
        return self._sock.fileno()

    def set_offloads(self, enabled: bool) -> None:  # noqa: B027 - it is whole
        """See `Device`; there are none."""

    @property
    def is_behind(self) -> bool:
        """Whether `read_batch` may have something though the descriptor is not readable."""
        return self._is_behind

    @abc.abstractmethod
    def read_batch(self, limit: int) -> list[Packet]:
        """See `Device`."""

    def write_batch(self, packets: Sequence[Packet]) -> int:
        """See `Device`."""
        return self._write(packets) if self._lent is None else self._write_lent(self._lent, packets)

    def flush(self) -> bool:
        """See `Device`."""
        return self._flush() if self._lent is None else self._flush_lent(self._lent)

    def close(self) -> None:
        """See `Device`."""
        self._lent = None
        self._sock.close()

    def lend(self, borrower: Borrower) -> bool:
        """Let `borrower` read and write the socket from now on; False if it does already. MemoryError."""
        if self._lent is not None:
            return False
        stream = borrower.open_stream(
            self._sock.fileno(),
            self._prefix,
            self._is_little,
            self.offloads.max_frame,
            is_trusted=self._is_trusted,
            trains=_trains(self._plain) if self.has_header else None,
        )
        self._fill(stream)
        self._lent = stream
        self.offloads = lent_offloads(self.offloads.mtu)
        return True

    def take_back(self) -> None:
        """Read and write the socket in Python again, from where the fast path is, which must have ended."""
        lent = self._lent
        if lent is not None:
            self._count_drops(lent)
            self._lent = None
            self.offloads = self._plain
            self._resume(lent)
            self._is_behind = True

    def take_frames(self, frames: Sequence[memoryview]) -> list[Packet]:
        """The packets of what the fast path has read, or was refused, virtio-net header first."""
        return [parse_frame(frame, self._checksum) for frame in frames]

    @abc.abstractmethod
    def _write(self, packets: Sequence[Packet]) -> int: ...

    @abc.abstractmethod
    def _flush(self) -> bool: ...

    @abc.abstractmethod
    def _fill(self, stream: Stream) -> None:
        """Give what has been read and not been looked at, and what waits, to `stream`."""

    @abc.abstractmethod
    def _resume(self, stream: Stream) -> None:
        """Take it back."""

    def _write_lent(self, lent: Stream, packets: Sequence[Packet]) -> int:
        taken = 0
        try:
            for packet in packets:
                try:
                    if not lent.put(pack_header(packet) + packet.tobytes()):
                        break
                except (struct.error, ValueError, IndexError):
                    self.write_errors += 1
                taken += 1
        except OSError as error:
            raise self._closed(error) from None
        return taken

    def _flush_lent(self, lent: Stream) -> bool:
        self._count_drops(lent)
        try:
            return lent.flush()
        except OSError as error:
            raise self._closed(error) from None

    def _count_drops(self, lent: Stream) -> None:
        for reason, count in zip(LENT_DROPS, lent.take_drops(), strict=True):
            if count:
                self.drops.add(reason, count)

    def _closed(self, error: OSError) -> DeviceClosed:
        return DeviceClosed(f"{self.name}: {os.strerror(error.errno or 0)}")
