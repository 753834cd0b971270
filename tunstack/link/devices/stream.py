"""A device behind a stream socket, each frame behind its length: QEMU's `-netdev stream`.

Theory of operation. Reading: one recv fills what is free of one buffer, and the frames in it are handed out
as views; the beginning of the next frame moves to the front before the next recv. Writing: many frames in
one sendmsg. What the socket takes of a frame cannot be taken back: the rest of a frame that it took a part
of is kept, and nothing else is taken before `flush` has sent it.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Sequence

from tunstack.errors import BadPacket, DropCounters
from tunstack.limits import MAX_FRAME
from tunstack.link.devices.base import DeviceClosed, Offloads
from tunstack.link.devices.framed import FramedDevice
from tunstack.link.devices.vnet_header import VNET_LENGTH, pack_header, parse_frame
from tunstack.link.framings import QEMU, Deframer, Framing
from tunstack.native.fastpath import Stream
from tunstack.packet import Buffer, Checksum, Packet

READ_SIZE = 64 * 1024
"""Bytes of one recv at the most."""
_IOV = 512
"""Views in one sendmsg."""


class StreamDevice(FramedDevice):
    """One end of a connected stream socket that carries Ethernet frames. Implements `Device`."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        mtu: int,
        framing: Framing = QEMU,
        drops: DropCounters | None = None,
        name: str = "stream",
        is_trusted: bool = False,
        offloads: Offloads | None = None,
    ) -> None:
        """See `FramedDevice`."""
        super().__init__(
            sock, framing, mtu=mtu, drops=drops, name=name, is_trusted=is_trusted, offloads=offloads
        )
        self._framing = framing
        self._header = VNET_LENGTH if self.has_header else 0
        self._deframer = Deframer(framing, self._header + MAX_FRAME, self.drops)
        self._buffer = bytearray(framing.prefix + self._header + MAX_FRAME + READ_SIZE)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._unsent = b""
        """The rest of a frame of which the socket has taken a part."""

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
            raise self._closed(error) from None
        else:
            if not count and not self._is_behind:
                raise DeviceClosed(f"the other end of {self.name} is closed")
        self._is_behind = False
        self._end += count
        if self._end < self._deframer.wanted:
            return []
        frames, used = self._deframer.find(self._view[: self._end])
        self._start = used
        if self._header:
            return self._parse(frames)
        checksum = self._checksum
        return [Packet(frame, (), 0, 0, checksum) for frame in frames]

    def _parse(self, frames: Sequence[memoryview]) -> list[Packet]:
        """The packets of frames with headers."""
        otherwise = int(Checksum.VALID if self._is_trusted else Checksum.UNKNOWN)
        packets = []
        for frame in frames:
            try:
                packets.append(parse_frame(frame, otherwise))
            except BadPacket as error:
                self.drops.add(error.reason)
        return packets

    def _fill(self, stream: Stream) -> None:
        stream.fill(bytes(self._view[self._start : self._end]), self._deframer.skip, self._unsent)
        self._start = self._end = 0
        self._unsent = b""

    def _resume(self, stream: Stream) -> None:
        incoming, skip, self._unsent = stream.take_over()
        size = len(incoming)
        if size + READ_SIZE > len(self._buffer):
            self._buffer = bytearray(size + READ_SIZE)
            self._view = memoryview(self._buffer)
        self._view[:size] = incoming
        self._start, self._end = 0, size
        self._deframer.resume(skip)

    def _write(self, packets: Sequence[Packet]) -> int:
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

    def _flush(self) -> bool:
        if self._unsent:
            self._unsent = self._unsent[self._send([self._unsent]) :]
        return not self._unsent

    def _collect(self, packets: Sequence[Packet], start: int) -> list[list[Buffer]]:
        """The views to be sent of as many packets as one call takes; none of a packet that never can be."""
        parts: list[list[Buffer]] = []
        count = 0
        for packet in packets[start:]:
            length = len(packet)
            part: list[Buffer] = []
            try:
                if not 0 < length <= self.offloads.max_frame:
                    raise ValueError("no frame can carry it")
                part.append(self._framing.header(self._header + length))
                if self._header:
                    part.append(pack_header(packet))
                part += [packet.head, *packet.payload]
            except (struct.error, ValueError, IndexError):
                part.clear()
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
            if sys.platform == "win32":  # a socket takes one buffer there
                return self._sock.send(views[0] if len(views) == 1 else b"".join(views))
            return self._sock.sendmsg(views, (), socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise self._closed(error) from None
