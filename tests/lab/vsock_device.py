"""A virtio-vsock device for a virtual machine, as a vhost-user back end; the host's side are UNIX sockets.

    python -I vsock_device.py SOCKET BASE CID

The monitor of the machine connects to SOCKET. The guest's connections to port P of the host (CID 2) come in
at the UNIX socket BASE_P; who connects to BASE and says "CONNECT P" is connected to port P of the guest and
told "OK" and a number, or cut off. That is hybrid vsock, as monitors have it. It ends with the machine.

Three parts: `Ring` reads and fills the buffers that the guest offers (virtio 1.2, 2.7), `FrontEnd` is told by
the monitor where they are (vhost-user), `Device` has the streams with their credit (virtio 1.2, 5.10).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import selectors
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

HOST_CID = 2
BUFFER = 1 << 18
"""Bytes that are promised to the guest for each stream."""
CHUNK = 1 << 16

# vhost-user requests
GET_FEATURES, SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE = 1, 5, 8, 9, 10
GET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 11, 12, 13, 14
GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE, SET_BACKEND_REQ_FD, GET_CONFIG = 15, 17, 18, 21, 24
NEED_REPLY = 8
VERSION_1, PROTOCOL_FEATURES = 1 << 32, 1 << 30
PROTOCOL_BITS = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9
"""Several queues, acknowledgements, back channel (User Mode Linux wants one), configuration."""

# vsock operations
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
STREAM = 1
SHUTDOWN_RECEIVE, SHUTDOWN_SEND = 1, 2
PACKET = struct.Struct("<QQIIIHHIII")

Key = tuple[int, int]
"""The host's port and the guest's."""


class Region(NamedTuple):
    """A part of the guest's memory."""

    guest: int
    size: int
    user: int
    offset: int
    data: mmap.mmap


class Memory:
    """The guest's memory, as the monitor has shown it."""

    def __init__(self) -> None:
        self._regions: list[Region] = []

    def show(self, body: bytes, fds: list[int]) -> None:
        """A table of regions, each with a descriptor."""
        (count,) = struct.unpack_from("<I", body)
        self._regions = []
        for number, fd in zip(range(count), fds, strict=True):
            guest, size, user, offset = struct.unpack_from("<QQQQ", body, 8 + 32 * number)
            self._regions.append(Region(guest, size, user, offset, mmap.mmap(fd, size + offset)))
            os.close(fd)

    def at_user(self, address: int) -> memoryview:
        """What stands at an address of the monitor's own, and behind it."""
        for region in self._regions:
            if region.user <= address < region.user + region.size:
                return memoryview(region.data)[address - region.user + region.offset :]
        raise ValueError(f"{address:#x} is in no region")

    def at_guest(self, address: int, size: int) -> memoryview:
        """`size` bytes at an address of the guest's."""
        for region in self._regions:
            start = address - region.guest
            if start >= 0 and start + size <= region.size:
                return memoryview(region.data)[start + region.offset :][:size]
        raise ValueError(f"{address:#x} is in no region")


class Ring:
    """A split virtqueue."""

    NEXT, WRITE = 1, 2

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.size = 0
        self.seen = 0
        self.kick = self.call = -1
        self.is_enabled = False
        self.descriptors = self.used = self.available = memoryview(b"")

    def take(self) -> tuple[int, list[memoryview], list[memoryview]] | None:
        """The next chain of buffers: its head, what is to be read and written; None: there is none."""
        if struct.unpack_from("<H", self.available, 2)[0] == self.seen & 0xFFFF:
            return None
        (head,) = struct.unpack_from("<H", self.available, 4 + 2 * (self.seen % self.size))
        self.seen += 1
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        number = head
        while True:
            address, size, flags, following = struct.unpack_from("<QIHH", self.descriptors, 16 * number)
            (writable if flags & self.WRITE else readable).append(self._memory.at_guest(address, size))
            if not flags & self.NEXT:
                return head, readable, writable
            number = following

    def give(self, head: int, written: int) -> None:
        """The chain is the guest's again."""
        (index,) = struct.unpack_from("<H", self.used, 2)
        struct.pack_into("<II", self.used, 4 + 8 * (index % self.size), head, written)
        struct.pack_into("<H", self.used, 2, index + 1 & 0xFFFF)

    def notify(self) -> None:
        """Tell the guest."""
        if self.call >= 0:
            os.write(self.call, struct.pack("<Q", 1))


class Stream:
    """A stream between the guest and a UNIX socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.waiting = b""
        """What the guest has sent and the socket has not taken."""
        self.received = self.sent = self.promised = self.forwarded = 0
        self.is_open = self.has_ended = self.guest_has_ended = False
        self.greeting = b""

    @property
    def credit(self) -> int:
        """Bytes that the guest has room for."""
        return self.promised - (self.sent - self.forwarded & 0xFFFFFFFF)


class Device:
    """The streams."""

    RECEIVE, SEND = 0, 1

    def __init__(self, base: str, cid: int, selector: selectors.BaseSelector) -> None:
        self.memory = Memory()
        self.rings = [Ring(self.memory) for _ in range(3)]
        self.cid = cid
        self._base = base
        self._selector = selector
        self._streams: dict[Key, Stream] = {}
        self._queue: deque[tuple[Key, int, int, bytes]] = deque()
        self._next_port = 1 << 30
        self._hosts = socket.socket(socket.AF_UNIX)
        self._hosts.bind(base)
        self._hosts.listen(64)
        self._selector.register(self._hosts, selectors.EVENT_READ, self._host_connects)

    def run_rings(self) -> None:
        """Deal with what the guest has sent, and send it what waits."""
        sending = self.rings[self.SEND]
        if sending.is_enabled and sending.kick >= 0:
            while (chain := sending.take()) is not None:
                head, readable, _ = chain
                data = b"".join(readable)
                sending.give(head, 0)
                self._receive(PACKET.unpack_from(data), data[PACKET.size :])
            sending.notify()
        self._fill()

    def _fill(self) -> None:
        ring = self.rings[self.RECEIVE]
        if not (ring.is_enabled and ring.kick >= 0):
            return
        count = 0
        while self._queue and (chain := ring.take()) is not None:
            head, _, writable = chain
            key, operation, flags, data = self._queue.popleft()
            room = sum(map(len, writable)) - PACKET.size
            if len(data) > room:
                self._queue.appendleft((key, operation, flags, data[room:]))
                data = data[:room]
            stream = self._streams.get(key)
            received = stream.received & 0xFFFFFFFF if stream is not None else 0
            ends = HOST_CID, self.cid, *key
            packet = PACKET.pack(*ends, len(data), STREAM, operation, flags, BUFFER, received) + data
            size = len(packet)
            for view in writable:
                part, packet = packet[: len(view)], packet[len(view) :]
                view[: len(part)] = part
            ring.give(head, size)
            count += 1
        if count:
            ring.notify()
            for key in list(self._streams):
                self._watch(key)

    def _send(self, key: Key, operation: int, data: bytes = b"", flags: int = 0) -> None:
        self._queue.append((key, operation, flags, data))

    def _receive(self, head: tuple[int, ...], data: bytes) -> None:
        _, destination, guest_port, host_port, size, kind, operation, flags, promised, forwarded = head
        key, data = (host_port, guest_port), data[:size]
        stream = self._streams.get(key)
        if stream is not None:
            stream.promised, stream.forwarded = promised, forwarded
        if operation == REQUEST:
            sock = socket.socket(socket.AF_UNIX)
            try:
                if destination != HOST_CID or kind != STREAM or stream is not None:
                    raise OSError("it cannot be")
                sock.connect(f"{self._base}_{host_port}")
            except OSError:
                sock.close()
                self._send(key, RST)
                return
            sock.setblocking(False)
            stream = self._streams[key] = Stream(sock)
            stream.is_open, stream.promised, stream.forwarded = True, promised, forwarded
            self._send(key, RESPONSE)
        elif stream is None:
            if operation != RST:
                self._send(key, RST)
            return
        elif operation == RESPONSE:
            stream.is_open = True
            stream.sock.send(stream.greeting)
        elif operation == RST:
            self._close(key)
            return
        elif operation == RW:
            stream.waiting += data
        elif operation == CREDIT_REQUEST:
            self._send(key, CREDIT_UPDATE)
        elif operation == SHUTDOWN:
            stream.guest_has_ended |= bool(flags & SHUTDOWN_SEND)
            if flags & SHUTDOWN_RECEIVE:
                stream.has_ended = True
        self._write(key, stream)

    def _write(self, key: Key, stream: Stream) -> None:
        try:
            if stream.waiting:
                count = stream.sock.send(stream.waiting)
                stream.waiting = stream.waiting[count:]
                stream.received += count
                self._send(key, CREDIT_UPDATE)
            if stream.guest_has_ended and not stream.waiting:
                stream.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self._send(key, RST)
            self._close(key)
            return
        if stream.guest_has_ended and stream.has_ended and not stream.waiting:
            self._send(key, RST)  # which ends a shutdown in both directions (virtio 1.2, 5.10.6.6)
            self._close(key)
            return
        self._watch(key)

    def _read(self, key: Key, stream: Stream) -> None:
        try:
            data = stream.sock.recv(min(stream.credit, CHUNK))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            stream.sent += len(data)
            self._send(key, RW, data)
        else:
            stream.has_ended = True
            self._send(key, SHUTDOWN, flags=SHUTDOWN_SEND)
            self._write(key, stream)

    def _watch(self, key: Key) -> None:
        stream = self._streams.get(key)
        if stream is None:
            return
        events = selectors.EVENT_WRITE if stream.waiting else 0
        if stream.is_open and not stream.has_ended and stream.credit > 0 and len(self._queue) < 64:
            events |= selectors.EVENT_READ

        def ready(mask: int) -> None:
            if mask & selectors.EVENT_WRITE:
                self._write(key, stream)
            if mask & selectors.EVENT_READ and self._streams.get(key) is stream:
                self._read(key, stream)
                self._watch(key)
            self._fill()

        _watch(self._selector, stream.sock, events, ready)

    def _close(self, key: Key) -> None:
        stream = self._streams.pop(key)
        _watch(self._selector, stream.sock, 0, None)
        stream.sock.close()

    def _host_connects(self, mask: int) -> None:
        sock, _ = self._hosts.accept()
        sock.settimeout(5)
        line = b""
        with contextlib.suppress(OSError):
            while not line.endswith(b"\n") and len(line) < 32 and (one := sock.recv(1)):
                line += one
        word, _, port = line.strip().partition(b" ")
        if word != b"CONNECT" or not port.isdigit():
            sock.close()
            return
        key = self._next_port, int(port)
        self._next_port += 1
        sock.setblocking(False)
        stream = self._streams[key] = Stream(sock)
        stream.greeting = b"OK %d\n" % key[0]
        self._send(key, REQUEST)
        self._fill()


class FrontEnd:
    """The monitor, which says where the rings are."""

    def __init__(self, sock: socket.socket, device: Device, selector: selectors.BaseSelector) -> None:
        self._sock = sock
        self._device = device
        self._selector = selector
        self._kept: list[int] = []
        self.has_ended = False
        selector.register(sock, selectors.EVENT_READ, self._receive)

    def _receive(self, mask: int) -> None:
        head, fds, *_ = socket.recv_fds(self._sock, 12, 16)
        if len(head) < 12:
            self.has_ended = True
            return
        request, flags, size = struct.unpack("<III", head)
        body = self._sock.recv(size, socket.MSG_WAITALL) if size else b""
        answer = self._act(request, body, list(fds))
        if answer is None and flags & NEED_REPLY:
            answer = bytes(8)
        if answer is not None:
            self._sock.sendall(struct.pack("<III", request, 1 | 4, len(answer)) + answer)

    def _act(self, request: int, body: bytes, fds: list[int]) -> bytes | None:
        device = self._device
        if request == GET_FEATURES:
            return struct.pack("<Q", VERSION_1 | PROTOCOL_FEATURES)
        if request == GET_PROTOCOL_FEATURES:
            return struct.pack("<Q", PROTOCOL_BITS)
        if request == GET_QUEUE_NUM:
            return struct.pack("<Q", len(device.rings))
        if request == GET_CONFIG:
            offset, size, flags = struct.unpack_from("<III", body)
            space = struct.pack("<Q", device.cid)[offset : offset + size]
            return struct.pack("<III", offset, size, flags) + space.ljust(size, b"\0")
        if request == SET_MEM_TABLE:
            device.memory.show(body, fds)
        elif request == SET_BACKEND_REQ_FD:
            self._kept += fds  # that it is closed would be taken for a failure
        elif request in (SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ENABLE, GET_VRING_BASE):
            number, value = struct.unpack_from("<II", body)
            ring = device.rings[number]
            if request == SET_VRING_NUM:
                ring.size = value
            elif request == SET_VRING_BASE:
                ring.seen = value
            elif request == SET_VRING_ENABLE:
                ring.is_enabled = bool(value)
                device.run_rings()
            else:
                ring.is_enabled = False
                self._set_kick(ring, -1)
                return struct.pack("<II", number, ring.seen & 0xFFFF)
        elif request == SET_VRING_ADDR:
            number, _, descriptors, used, available, _ = struct.unpack_from("<IIQQQQ", body)
            ring = device.rings[number]
            ring.descriptors, ring.used, ring.available = map(
                device.memory.at_user, (descriptors, used, available)
            )
        elif request in (SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR):
            ring = device.rings[struct.unpack("<Q", body)[0] & 0xFF]
            fd = fds[0] if fds else -1
            if request == SET_VRING_KICK:
                self._set_kick(ring, fd)
            elif request == SET_VRING_CALL:
                ring.call = fd
        return None

    def _set_kick(self, ring: Ring, fd: int) -> None:
        if ring.kick >= 0:
            self._selector.unregister(ring.kick)
            os.close(ring.kick)
        ring.kick = fd
        if fd >= 0:
            os.set_blocking(fd, False)

            def kicked(mask: int) -> None:
                with contextlib.suppress(BlockingIOError):
                    os.read(fd, 8)
                self._device.run_rings()

            self._selector.register(fd, selectors.EVENT_READ, kicked)


def _watch(
    selector: selectors.BaseSelector, sock: socket.socket, events: int, ready: Callable[[int], None] | None
) -> None:
    is_there = sock in selector.get_map()
    if events and is_there:
        selector.modify(sock, events, ready)
    elif events:
        selector.register(sock, events, ready)
    elif is_there:
        selector.unregister(sock)


def main(path: str, base: str, cid: str) -> None:
    """Serve one machine."""
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(path)
        listener.listen(1)
        device = Device(base, int(cid), selector)
        print("waiting", flush=True)
        sock, _ = listener.accept()
        front_end = FrontEnd(sock, device, selector)
        while not front_end.has_ended:
            for key, mask in selector.select():
                if key.fileobj in selector.get_map():
                    key.data(mask)


if __name__ == "__main__":
    main(*sys.argv[1:])
