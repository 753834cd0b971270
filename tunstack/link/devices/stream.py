"""A device behind a stream socket, each frame behind its length: QEMU's `-netdev stream`.

Theory of operation. Reading: one recv fills what is free of one buffer, and the frames in it are handed out
as views; the beginning of the next frame moves to the front before the next recv. Writing: many frames in
one sendmsg. What the socket takes of a frame cannot be taken back: the rest of a frame that it took a part
of is kept, and nothing else is taken before `flush` has sent it.

There are no offloads: frames come and go as they are on a wire, with complete checksums. Frames larger than
the MTU are accepted, as some senders make them.

The socket can be lent to the fast path (`lend`), which reads the frames then, cuts trains and completes
checksums, so that the device has all offloads; what Python sends goes through it too, until it is taken back.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Sequence

from tunstack.errors import DropCounters, DropReason
from tunstack.limits import MAX_FRAME
from tunstack.link.devices.base import DeviceClosed, Offloads
from tunstack.link.devices.vnet_header import pack_header, parse_frame
from tunstack.link.framings import QEMU, Deframer, Framing
from tunstack.native.fastpath import FastPath, Stream
from tunstack.packet import Buffer, Packet

READ_SIZE = 64 * 1024
"""Bytes of one recv at the most."""
_IOV = 512
"""Views in one sendmsg."""
_ETHERNET = 14


class StreamDevice:
    """One end of a connected stream socket that carries Ethernet frames. Implements `Device`.

    Attributes:
        drops: frames that no frame can be, by reason.
        offloads: none; all, once it is lent.
        write_errors: packets that no frame can carry.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        mtu: int,
        framing: Framing = QEMU,
        drops: DropCounters | None = None,
        name: str = "stream",
    ) -> None:
        """Take over `sock`; it is made non-blocking. `mtu`: IP MTU of the link in bytes."""
        sock.setblocking(False)
        self.name = name
        self.offloads = self._plain = Offloads(l2=True, mtu=mtu, max_frame=mtu + _ETHERNET)
        self.drops = DropCounters() if drops is None else drops
        self.write_errors = 0
        self.on_ready: Callable[[], None] | None = None
        self._sock = sock
        self._framing = framing
        self._deframer = Deframer(framing, MAX_FRAME, self.drops)
        self._buffer = bytearray(framing.prefix + MAX_FRAME + READ_SIZE)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._unsent = b""
        """The rest of a frame of which the socket has taken a part."""
        self._lent: Stream | None = None
        self._is_behind = False
        """There may be whole frames in the buffer, of which the descriptor does not tell."""

    def fileno(self) -> int:
        """See `Device`."""
        return self._sock.fileno()

    def set_offloads(self, enabled: bool) -> None:
        """See `Device`; there are none."""

    def read_batch(self, limit: int) -> list[Packet]:
        """See `Device`. One recv is one batch; after `take_back` there may be one without a recv."""
        left = self._end - self._start
        if self._start:
            self._view[:left] = self._view[self._start : self._end]
            self._start, self._end = 0, left
        try:
            count = self._sock.recv_into(self._view[left : left + READ_SIZE])
        except (BlockingIOError, InterruptedError):
            if not self._is_behind:
                return []
            count = 0
        except OSError as error:
            raise DeviceClosed(f"{self.name}: {os.strerror(error.errno or 0)}") from None
        else:
            if not count and not self._is_behind:
                raise DeviceClosed(f"the other end of {self.name} is closed")
        self._is_behind = False
        self._end += count
        if self._end < self._deframer.wanted:
            return []
        frames, used = self._deframer.find(self._view[: self._end])
        self._start = used
        return list(map(Packet, frames))

    def lend(self, fast: FastPath) -> bool:
        """Let `fast` read and write the socket from now on; False if it does already. MemoryError."""
        if self._lent is not None:
            return False
        framing = self._framing
        stream = fast.open_stream(
            self._sock.fileno(), framing.prefix, framing.order == "little", self.offloads.max_frame
        )
        stream.fill(bytes(self._view[self._start : self._end]), self._deframer.skip, self._unsent)
        self._start = self._end = 0
        self._unsent = b""
        self._lent = stream
        self.offloads = Offloads(
            l2=True,
            mtu=self.offloads.mtu,
            checksum=True,
            tso4=True,
            tso6=True,
            uso=True,
            max_frame=MAX_FRAME,
        )
        return True

    def take_back(self) -> None:
        """Read and write the socket in Python again, from where the fast path is, which must have ended."""
        lent = self._lent
        if lent is None:
            return
        self._count_drops(lent)
        incoming, skip, self._unsent = lent.take_over()
        self._lent = None
        self.offloads = self._plain
        size = len(incoming)
        if size + READ_SIZE > len(self._buffer):
            self._buffer = bytearray(size + READ_SIZE)
            self._view = memoryview(self._buffer)
        self._view[:size] = incoming
        self._start, self._end = 0, size
        self._deframer.resume(skip)
        self._is_behind = True

    def take_frames(self, frames: Sequence[memoryview]) -> list[Packet]:
        """The packets of what the fast path has read, or was refused, virtio-net header first."""
        return list(map(parse_frame, frames))

    def write_batch(self, packets: Sequence[Packet]) -> int:
        """See `Device`."""
        if self._lent is not None:
            return self._write_lent(self._lent, packets)
        taken = 0
        while taken < len(packets) and self.flush():
            parts = self._collect(packets, taken)
            sent = self._send([view for part in parts for view in part])
            for part in parts:
                length = sum(map(len, part))
                if sent < length:
                    if sent:
                        self._unsent = b"".join(part)[sent:]
                        taken += 1
                    return taken
                sent -= length
                taken += 1
        return taken

    def flush(self) -> bool:
        """See `Device`."""
        if self._lent is not None:
            return self._flush_lent(self._lent)
        if self._unsent:
            self._unsent = self._unsent[self._send([self._unsent]) :]
        return not self._unsent

    def close(self) -> None:
        """See `Device`."""
        self._lent = None
        self._sock.close()

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
            raise DeviceClosed(f"{self.name}: {error.strerror}") from None
        return taken

    def _count_drops(self, lent: Stream) -> None:
        too_long, too_short = lent.take_drops()
        if too_long or too_short:
            self.drops.add(DropReason.FRAME_TOO_LONG, too_long)
            self.drops.add(DropReason.FRAME_TOO_SHORT, too_short)

    def _flush_lent(self, lent: Stream) -> bool:
        self._count_drops(lent)
        try:
            return lent.flush()
        except OSError as error:
            raise DeviceClosed(f"{self.name}: {error.strerror}") from None

    def _collect(self, packets: Sequence[Packet], start: int) -> list[list[Buffer]]:
        """The views to be sent of as many packets as one call takes; none of a packet that never can be."""
        parts: list[list[Buffer]] = []
        count = 0
        for packet in packets[start:]:
            length = len(packet)
            part: list[Buffer] = []
            if 0 < length <= self.offloads.max_frame:
                part += [self._framing.header(length), packet.head, *packet.payload]
            else:
                self.write_errors += 1
            count += len(part)
            if count > _IOV and parts:
                break
            parts.append(part)
        return parts

    def _send(self, views: Sequence[Buffer]) -> int:
        """The bytes that the socket has taken."""
        if not views:
            return 0
        try:
            return self._sock.sendmsg(views, (), socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise DeviceClosed(f"{self.name}: {os.strerror(error.errno or 0)}") from None
