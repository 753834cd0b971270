"""A device behind a socket whose messages are frames: UNIX datagrams, or SOCK_SEQPACKET.

Theory of operation. A message is a frame, and there is nothing around it. The socket is connected to its one
peer, so that it turns writable when the peer has read, and nobody else's messages come in. Frames longer than
any can be are cut off by the kernel, and dropped and counted. A message that the peer has no room for is
refused as a whole.

An empty message is how a SOCK_SEQPACKET ends, and may be a message: what has been shut down tells which. A
datagram socket does not end; its peer has gone when it is not at its path any more, which `check_peer` finds
out, and each write.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
from collections import deque
from collections.abc import Iterable, Sequence

from tunstack.errors import DropCounters, DropReason, WrongSystem
from tunstack.limits import MAX_FRAME
from tunstack.link.devices.base import DeviceClosed
from tunstack.link.devices.framed import FramedDevice
from tunstack.native.fastpath import Stream
from tunstack.packet import Packet

_KERNEL_BUFFER = 4 << 20
"""Bytes that we ask the kernel to hold for either end, as it holds little by default."""


class DatagramDevice(FramedDevice):
    """One end of a connected socket that keeps messages apart. Implements `Device`."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        mtu: int,
        drops: DropCounters | None = None,
        name: str = "datagram",
        is_trusted: bool = False,
    ) -> None:
        """See `FramedDevice`."""
        super().__init__(sock, None, mtu=mtu, drops=drops, name=name, is_trusted=is_trusted)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _KERNEL_BUFFER)
        self._is_sequence = sock.type == socket.SOCK_SEQPACKET
        self._buffers: list[bytearray] = []
        self._held: list[bytes] = []
        """What a fast path had received and not looked at."""
        self._unsent: deque[bytes] = deque()
        """What it had not sent."""

    def read_batch(self, limit: int) -> list[Packet]:
        """See `Device`. One recv is one frame."""
        frames: list[memoryview | bytes] = []
        if self._is_behind:
            self._is_behind = False
            frames, self._held = list(self._held), []
        for number in range(limit):
            if number == len(self._buffers):
                self._buffers.append(bytearray(MAX_FRAME + 1))
            buffer = self._buffers[number]
            try:
                count = self._sock.recv_into(buffer)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                if frames:
                    break  # the next call meets it again
                raise self._closed(error) from None
            if not count and self._has_ended():
                if frames:
                    break
                raise DeviceClosed(f"the other end of {self.name} is closed")
            if 0 < count <= MAX_FRAME:
                frames.append(memoryview(buffer)[:count])
            else:
                self.drops.add(DropReason.FRAME_TOO_LONG if count else DropReason.FRAME_TOO_SHORT)
        checksum = self._checksum
        return [Packet(frame, (), 0, 0, checksum) for frame in frames]

    def check_peer(self) -> None:
        """`DeviceClosed` if nobody is at the path of a datagram socket's peer any more."""
        try:
            path = self._sock.getpeername()
            if path and not self._is_sequence:  # the end of a pair has none, and is there
                self._sock.connect(path)
        except OSError as error:
            raise self._closed(error) from None

    def _fill(self, stream: Stream) -> None:
        stream.fill(_joined(self._held), 0, _joined(self._unsent))
        self._held = []
        self._unsent.clear()

    def _resume(self, stream: Stream) -> None:
        self._held, unsent = stream.take_over_messages()
        self._unsent.extend(unsent)

    def _write(self, packets: Sequence[Packet]) -> int:
        for number, packet in enumerate(packets):
            if not self._flush():
                return number
            if not 0 < len(packet) <= self.offloads.max_frame:
                self.write_errors += 1
            elif not self._send(packet.tobytes()):
                return number
        return len(packets)

    def _flush(self) -> bool:
        while self._unsent and self._send(self._unsent[0]):
            self._unsent.popleft()
        return not self._unsent

    def _send(self, frame: bytes) -> bool:
        """False: there is no room for it now."""
        if sys.platform == "win32":
            raise WrongSystem  # there are no sockets of this kind
        try:
            self._sock.send(frame, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return False
            raise self._closed(error) from None
        return True

    def _has_ended(self) -> bool:
        """Whether an empty message was the end."""
        if not self._is_sequence:
            return False
        if sys.platform != "linux":
            raise WrongSystem
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))


def _joined(frames: Iterable[bytes]) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
